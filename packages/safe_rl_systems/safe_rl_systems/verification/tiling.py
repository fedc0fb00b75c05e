"""How cells of z = C e cover a base set, so that a checker can follow.

- The root box is [-r, r], r a little more than `cell_reach`, divided into `splits` equal parts per
  direction with edges r (2 j / splits - 1). A cell that is not proved is halved at
  0.5 (low + high) in the direction of the largest (high - low) x `weights`, the first of equals.
- A cell may be missing if no point of the set lies in it, or if a symmetry maps it to others: let
  g be a product of the symmetries and i the first place where g turns the sign of z; the cell is
  skipped when high_i <= 0. Among the images of a point, the one with the lexicographically
  largest z lies in no skipped cell, unless some z_i is 0; and kept cells are closed.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.cells import left_open
from safe_rl_systems.verification.ellipsoid import positive_definite
from safe_rl_systems.verification.interval import Array, Interval, point, sqr

#: Slack of the test whether a cell meets the set; it covers the rounding of its matrix.
_OUTSIDE = 1e-6
_PROBES, _PROBE = 64, 0.02
#: Of the largest weight: thin cells help the multipliers too, which the slopes do not tell.
_LEAST_SHARE = 0.1
#: How much larger than the set the root box is: were it exactly as large, corners of halved cells
#: would touch the ellipsoid in a single point, where no multipliers exist.
_ROOT = 1.0069


class Tiling:
    """The cells of a problem: the grid to start from, which are needed, how one is halved."""

    def __init__(self, problem: BaseProblem) -> None:
        self.reach = _ROOT * problem.cell_reach
        self.weights = _weights(problem, self.reach)
        self.folds = _folds(problem)
        self.shadow = _shadow(problem)

    def grid(self, splits: tuple[int, ...]) -> tuple[Array, Array]:
        """The needed cells of the initial grid: low and high (N, q)."""
        parts = zip(self.reach, splits, strict=True)
        edges = [r * (2.0 * np.arange(n + 1) / n - 1.0) for r, n in parts]
        low = np.array(list(itertools.product(*(x[:-1] for x in edges))))
        high = np.array(list(itertools.product(*(x[1:] for x in edges))))
        keep = self.needed(low, high)
        return low[keep], high[keep]

    def needed(self, low: Array, high: Array) -> NDArray[np.bool_]:
        """False for cells outside the set and for those that a symmetry maps to others."""
        folded = np.zeros(len(low), bool)
        for i in self.folds:
            folded |= high[:, i] <= 0.0
        moved = point(self.shadow.T) @ Interval(low, high)[..., None]
        return ~folded & ~(sqr(moved[..., 0]).sum(-1).low > 1.0 + _OUTSIDE)

    def halves(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Both halves of every cell, those that are needed: (<= 2 N, q)."""
        rows = np.arange(len(low))
        direction = ((high - low) * self.weights).argmax(1)
        middle = 0.5 * (low + high)[rows, direction]
        left_high, right_low = high.copy(), low.copy()
        left_high[rows, direction] = right_low[rows, direction] = middle
        low, high = np.concatenate((low, right_low)), np.concatenate((left_high, high))
        keep = self.needed(low, high)
        return low[keep], high[keep]


def _folds(problem: BaseProblem) -> tuple[int, ...]:
    """The directions i in which only high_i > 0 is needed: one per element of the group."""
    k = len(problem.factor)
    group = {tuple(np.ones(k))}
    for signs in problem.symmetries:
        group |= {tuple(np.array(g) * np.array(signs[:k], float)) for g in group}
    first = set()
    for g in group:
        turns = [np.array(g)[row != 0.0][0] < 0.0 for row in problem.cell_directions]
        if any(turns):
            first.add(turns.index(True))
    return tuple(sorted(first))


def _weights(problem: BaseProblem, reach: Array) -> Array:
    """(q,) how much a cell's width in each direction adds to what its slopes leave open.

    Measured on thin cells at random places; a direction that seems to add nothing keeps a share.
    """
    rng = np.random.default_rng(0)
    size = len(reach)
    center = rng.uniform(-0.6, 0.6, (_PROBES, size)) / np.sqrt(size) * reach
    added = np.zeros(size)
    without = left_open(problem, center, center)
    for i in range(size):
        half = np.zeros(size)
        half[i] = _PROBE * reach[i]
        grown = left_open(problem, center - half, center + half) - without
        added[i] = np.mean(grown[np.isfinite(grown)]) if np.isfinite(grown).any() else 0.0
    relative = np.maximum(added, _LEAST_SHARE * max(added.max(), 1e-12))
    return relative / reach


def _shadow(problem: BaseProblem) -> Array:
    """F (q, q) such that |F'z|² <= 1 + _OUTSIDE for every z = C e of the set.

    F F' is the inverse of C P⁻¹ C', in floats; that it does what it says is then proved.
    """
    rows = problem.ellipsoid.ball_rows(problem.cell_directions)
    spread = np.linalg.inv(rows.mid @ rows.mid.T)
    factor = np.linalg.cholesky(0.5 * (spread + spread.T)) * (1.0 - 1e-9)
    moved = rows.swapaxes(0, 1) @ point(factor)
    size = len(problem.factor)
    gap = point((1.0 + _OUTSIDE) * np.eye(size)) - moved @ moved.swapaxes(0, 1)
    if not positive_definite(gap):
        raise CertificateError(
            "the projection of the base set onto its cell directions cannot be enclosed: "
            "cell_directions are nearly dependent, or the factor L is badly conditioned"
        )
    return factor
