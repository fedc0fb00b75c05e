"""Upper bounds of a function over a box by subdivision: uniform, or where it matters.

Every bound is the largest one over sub-boxes that cover the box, so that a finer subdivision can
only sharpen it. Which boxes are cut and where to stop is a heuristic and changes no soundness.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.interval import Array, Interval

#: Boxes evaluated in one numpy call.
CHUNK = 512
#: Cuts of every side without gain after which `supremum` stops.
_PATIENCE = 4
#: Boxes (cells, n) -> upper bounds (cells, rows).
Bounded = Callable[[Interval], Array]
#: Boxes (cells, n) -> smaller boxes around the points that count, and whether there may be any.
Restrict = Callable[[Interval], tuple[Interval, NDArray[np.bool_]]]


def subdivide(box: Interval, splits: Array) -> Interval:
    """A box (n,) cut into equal parts, splits[i] along axis i: (prod splits, n)."""
    edges = [
        np.linspace(low, high, count + 1) if count > 1 else np.array([low, high])
        for low, high, count in zip(box.low, box.high, splits, strict=True)
    ]
    index = np.indices(tuple(splits)).reshape(len(splits), -1)
    low = np.stack([e[i] for e, i in zip(edges, index, strict=True)], -1)
    high = np.stack([e[i + 1] for e, i in zip(edges, index, strict=True)], -1)
    return Interval(low, high)


def in_chunks(function: Bounded, boxes: Interval) -> Array:
    """A function of many boxes, a chunk at a time."""
    count = boxes.shape[0]
    parts = [function(boxes[i : i + CHUNK]) for i in range(0, count, CHUNK)]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def supremum(
    function: Bounded,
    box: Interval,
    restrict: Restrict | None = None,
    *,
    tolerance: float = 0.02,
    budget: int = 20_000,
) -> Array:
    """Upper bound (rows,) of each component over a box (n,), at least 0.

    Bisects the boxes whose bound is within `tolerance` of the largest, along the widest side that
    matters, until the bound is within `tolerance` of a value that is attained, or _PATIENCE cuts
    of every side have gained nothing, or `budget` boxes have been evaluated. `restrict` says which
    points count.
    """
    boxes = _kept(box.reshape(1, -1), restrict)
    _require(boxes)
    values = in_chunks(function, boxes)
    sides = _influence(function, box)
    tops, count, attained = [np.maximum(values.max(axis=0), 0.0)], 1, np.zeros(values.shape[1])
    while count < budget and np.any(sides):
        open_rows = tops[-1] > (1.0 + tolerance) * attained
        chosen = _near_top(values[:, open_rows], tops[-1][open_rows], tolerance)
        if not np.any(chosen):
            break
        attained = np.maximum(
            attained, _attained(function, boxes[chosen], restrict, len(attained))
        )
        children = _kept(_halves(boxes[chosen], sides, box), restrict)
        fresh = in_chunks(function, children) if len(children.low) else values[:0]
        count += len(fresh)
        low = np.concatenate((boxes.low[~chosen], children.low))
        boxes = Interval(low, np.concatenate((boxes.high[~chosen], children.high)))
        values = np.concatenate((values[~chosen], fresh))
        _require(boxes)
        tops.append(np.minimum(tops[-1], np.maximum(values.max(axis=0), 0.0)))
        wait = _PATIENCE * int(np.count_nonzero(sides))
        if len(tops) > wait and _little_gain(tops[-1 - wait], tops[-1], 0.5 * tolerance):
            break
    return tops[-1]


def best_splits(weigh: Callable[[Interval], Array], box: Interval, limit: int) -> Array:
    """Splits (n,) whose product is at most `limit`, chosen by following the worst sub-box.

    `weigh` maps boxes to one number each; in every round the side is halved that lowers the
    number of the worst half most.
    """
    splits = np.ones(box.shape[0], int)
    here, current = box, float(weigh(box.reshape(1, -1))[0])
    while 2 * np.prod(splits) <= limit:
        open_sides = np.flatnonzero(np.isfinite(here.width) & (here.high > here.low))
        if not len(open_sides):
            break
        halves = _every_half(here, open_sides)
        weights = in_chunks(weigh, halves).reshape(2, -1)
        worst = weights.max(axis=0)
        best = int(np.argmin(worst))
        if not worst[best] < 0.99 * current:
            break
        splits[open_sides[best]] *= 2
        half = int(np.argmax(weights[:, best]))
        here, current = halves[half * len(open_sides) + best], float(worst[best])
    return splits


def _kept(boxes: Interval, restrict: Restrict | None) -> Interval:
    if restrict is None:
        return boxes
    smaller, possible = restrict(boxes)
    return smaller[possible]


def _require(boxes: Interval) -> None:
    if not len(boxes.low):
        raise CertificateError("no box of the domain may contain a state: check the domain")


def _attained(function: Bounded, boxes: Interval, restrict: Restrict | None, rows: int) -> Array:
    """Values at the middles of the first boxes, as far as they count: bounds from below."""
    middles = _kept(Interval(boxes.mid[:CHUNK]), restrict)
    return in_chunks(function, middles).max(axis=0) if len(middles.low) else np.zeros(rows)


def _near_top(values: Array, top: Array, tolerance: float) -> NDArray[np.bool_]:
    """The boxes that hold some row's bound up, at most 2048 of them."""
    if not values.shape[1]:
        return np.zeros(len(values), bool)
    with np.errstate(invalid="ignore", over="ignore"):
        share = np.where(top > 0.0, values / np.where(top > 0.0, top, 1.0), -np.inf)
    share = np.where(np.isnan(share), 1.0, share).max(axis=1)  # inf / inf
    chosen = share >= 1.0 - tolerance
    if np.count_nonzero(chosen) > 2048:
        order = np.argsort(-share, kind="stable")[:2048]
        chosen = np.zeros_like(chosen)
        chosen[order] = True
    return chosen


def _little_gain(before: Array, now: Array, share: float) -> bool:
    return bool(np.all(np.isfinite(now) & (before - now <= share * before)))


def _influence(function: Bounded, box: Interval) -> Array:
    """Per side, how much the bound changes when the box is flattened there; at most 1.

    0 for sides that do not matter or have no finite width; at least 0.01 for those that do.
    """
    n = box.shape[0]
    low, high = np.tile(box.low, (2 * n + 1, 1)), np.tile(box.high, (2 * n + 1, 1))
    for i in range(n):
        low[i + 1, i] = high[i + 1, i] = box.mid[i]
        low[n + i + 1, i] = high[n + i + 1, i] = box.low[i] if np.isfinite(box.low[i]) else 0.0
    values = in_chunks(function, Interval(low, high))
    differs = values[1:] != values[0]
    with np.errstate(all="ignore"):
        change = np.abs(values[1:] - values[0]) / np.abs(values[0])
    change = np.where(differs, np.where(np.isfinite(change), change, 1.0), 0.0).max(axis=1)
    change = np.maximum(change[:n], change[n:])
    change = np.where(np.isfinite(box.width) & (box.high > box.low), change, 0.0)
    largest = change.max(initial=0.0)
    return np.where(change > 0.0, np.maximum(change / (largest or 1.0), 0.01), 0.0)


def _halves(boxes: Interval, sides: Array, whole: Interval) -> Interval:
    """Both halves of every box, cut along its widest side in units of `sides`."""
    unit = np.where(sides > 0.0, (whole.high - whole.low) / np.where(sides > 0.0, sides, 1.0), 1.0)
    extent = np.where(sides > 0.0, boxes.high - boxes.low, -1.0) / unit
    rows, axis = np.arange(boxes.shape[0]), np.argmax(extent, axis=1)
    cut = boxes.mid[rows, axis]
    left_high, right_low = boxes.high.copy(), boxes.low.copy()
    left_high[rows, axis] = right_low[rows, axis] = cut
    return Interval(
        np.concatenate((boxes.low, right_low)), np.concatenate((left_high, boxes.high))
    )


def _every_half(box: Interval, sides: Array) -> Interval:
    """The lower halves along each side, then the upper ones: (2 sides, n)."""
    count = len(sides)
    low, high = np.tile(box.low, (2 * count, 1)), np.tile(box.high, (2 * count, 1))
    rows = np.arange(count)
    high[rows, sides] = low[count + rows, sides] = box.mid[sides]
    return Interval(low, high)
