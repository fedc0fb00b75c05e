"""Which of the projection's rows are worth keeping with a state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Single = NDArray[np.float32]
COUNT = 64


def rays(low: Array, high: Array, scale: Array) -> Single:
    """Ends (COUNT, m) of the rays, always the same: uniform over the box, in scaled units."""
    ends = np.random.default_rng(0).uniform(low, high, (COUNT, len(low)))
    return (ends / scale).astype(np.float32)


def facing_rows(
    normals: Array, offsets: Array, inside: Array, ends: Single, keep: int
) -> tuple[Single, Single]:
    """Of the rows normals (B, R, m) v >= offsets (B, R), those that stand in the way most often.

    From `inside` (B, m), where all rows hold, a ray to each of `ends` (D, m) leaves through one
    row: rows are ranked by the number of their rays, then by their distance. The nearest rows
    alone would be a bundle of almost the same ones, of neighbouring nodes of the rollout.
    """
    a = normals.astype(np.float32)
    slack = (a @ inside[..., None].astype(np.float32))[..., 0] - offsets.astype(np.float32)
    slack = np.maximum(slack, 1e-6)
    # How fast a ray approaches a row, per distance: the largest is met first
    speed = -((ends - inside[:, None].astype(np.float32)) @ a.swapaxes(1, 2)) / slack[:, None]
    first = speed.argmax(-1)
    left = np.take_along_axis(speed, first[..., None], -1)[..., 0] > 0.0
    met = (np.arange(len(a))[:, None] * a.shape[1] + first)[left]
    rank = np.bincount(met, minlength=slack.size).reshape(slack.shape) + 0.5 / (1.0 + slack)
    chosen = np.argpartition(-rank, keep - 1, axis=-1)[:, :keep]
    return (
        np.take_along_axis(a, chosen[..., None], 1),
        np.take_along_axis(offsets, chosen, 1).astype(np.float32),
    )
