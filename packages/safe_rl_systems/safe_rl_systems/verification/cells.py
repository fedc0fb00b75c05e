"""Bounding the base loop over cells: slopes of the program, multipliers, interval Cholesky.

A cell is a box of z = C e. On it f(e, K e) = f(0) + S (e, K e) with S in the interval matrix of
`slopes`; with its midpoint S_c and radius R, and y = L'e in ball coordinates,

    |f|_P <= |A y| + W,   A = L' S_c (I; K) L⁻ᵀ,   W = | |L'| (|f(0)| + R (|e|, |K e|)) |.

|A y|² <= t on the cell follows from multipliers (see `multipliers`); they are guessed in floats,
and the matrix inequality is then proved by Cholesky's method in intervals. K e keeps its own
column, so that the width of a slope is not spread over all errors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.ellipsoid import norm, positive_definite
from safe_rl_systems.verification.interval import Array, Interval, down, point, select, sqr, up
from safe_rl_systems.verification.multipliers import Slabs, find_multipliers
from safe_rl_systems.verification.slopes import Box, slopes

#: What the guessed multipliers keep from the bound, so that M is safely positive definite.
_ROOM = 2e-5


def bound_cells(
    problem: BaseProblem, low: Array, high: Array, target: float
) -> tuple[NDArray[np.bool_], Array, Array]:
    """Prove |f(e, K e)|_P <= target over cells [low, high] (N, q).

    Returns (proved (N,), about the best bound (N,), multipliers (N, 1+q)). For a proved cell the
    bound is not the best, only good enough.
    """
    matrix, remainder = _linearised(problem, low, high)
    room = down(target - remainder)
    limit = np.where(room > 0.0, down(np.maximum(room, 0.0) ** 2), -1.0)
    slabs = _slabs(problem, low, high)
    hopeful = (limit > 0.0) & np.isfinite(remainder)
    multipliers = np.zeros((len(low), 1 + low.shape[1]))
    best = np.full(len(low), np.inf)
    proved = np.zeros(len(low), bool)
    if hopeful.any():
        chosen = Slabs(slabs.directions, slabs.center[hopeful], slabs.half_width[hopeful])
        found, t = find_multipliers(matrix.mid[hopeful], chosen, limit[hopeful] - _ROOM)
        multipliers[hopeful] = np.maximum(found, 0.0)
        best[hopeful] = np.sqrt(np.maximum(t, 0.0)) + remainder[hopeful]
        part = s_procedure_holds(
            problem, matrix[hopeful], low[hopeful], high[hopeful], multipliers[hopeful],
            limit[hopeful],
        )  # fmt: skip
        proved[hopeful] = part & (t <= limit[hopeful])
    return proved, best, multipliers


def left_open(problem: BaseProblem, low: Array, high: Array) -> Array:
    """W (N,): what the width of the slopes leaves open on each cell."""
    return _linearised(problem, low, high)[1]


def s_procedure_holds(
    problem: BaseProblem, matrix: Interval, low: Array, high: Array, multipliers: Array, t: Array
) -> NDArray[np.bool_]:
    """True where the multipliers prove |A y|² <= t (N,) on the ball and the cell."""
    k = matrix.shape[-1]
    directions = problem.ellipsoid.ball_rows(problem.cell_directions)
    slabs = _slabs(problem, low, high)
    l0, lam = multipliers[:, :1], multipliers[:, 1:]
    block = point(l0[..., None] * np.eye(k)) - matrix.swapaxes(-1, -2) @ matrix
    side = point(np.zeros((len(low), k)))
    corner = point(t) - point(l0[:, 0])
    for i in range(low.shape[1]):
        weight, c = point(lam[:, i]), directions[i]
        block = block + weight[:, None, None] * (c[:, None] * c[None, :])
        side = side - (weight * point(slabs.center[:, i]))[:, None] * c[None, :]
        gap = sqr(point(slabs.half_width[:, i])) - sqr(point(slabs.center[:, i]))
        corner = corner - weight * gap
    shape = (len(low), k + 1, k + 1)
    full = Interval(np.zeros(shape), np.zeros(shape))
    full.low[:, :k, :k], full.high[:, :k, :k] = block.low, block.high
    full.low[:, :k, k], full.high[:, :k, k] = side.low, side.high
    full.low[:, k, :k], full.high[:, k, :k] = side.low, side.high
    full.low[:, k, k], full.high[:, k, k] = corner.low, corner.high
    return positive_definite(full) & np.all(multipliers >= 0.0, axis=1)


def _linearised(problem: BaseProblem, low: Array, high: Array) -> tuple[Interval, Array]:
    """A (N, k, k) and the bound W (N,) of what A leaves out; W is infinite where A is unknown."""
    e, v = problem.ranges(low, high)
    k = len(problem.factor)
    at_zero, s = _slopes_in_two_steps(problem, e, v)
    known = np.isfinite(s.low).all((-1, -2)) & np.isfinite(s.high).all((-1, -2))
    s = select(known[:, None, None], s, point(np.zeros(s.shape)))
    center = point(s.mid)
    closed = center[..., :k] + center[..., k:] @ point(problem.gain)
    matrix = problem.ellipsoid.to_ball(closed) @ problem.ellipsoid.inverse.swapaxes(0, 1)
    reach = np.concatenate((e.mag, v.mag), axis=1)
    moved = point(s.rad) @ point(reach[..., None])
    left = abs(point(problem.factor.T)) @ (moved + abs(at_zero)[..., None])
    return matrix, np.where(known, norm(left[..., 0]).high, np.inf)


def _slopes_in_two_steps(
    problem: BaseProblem, e: Interval, v: Interval
) -> tuple[Interval, Interval]:
    """f(0) and S: first the split components move from 0 alone, then the others join them.

    f(n, m) - f(0, 0) = [f(n, 0) - f(0, 0)] + [f(n, m) - f(n, 0)]. In the second bracket n is a
    parameter, known to the width of the cell, and in the first m is 0: so no slope to n is
    blurred by the full range of m, whatever sums and products the program goes through.
    """
    k = len(problem.factor)
    split = problem.split_components
    narrow_e, narrow_v = split[split < k], split[split >= k] - k
    given = {"s": problem.schedule, "w": np.zeros(k)}
    first = [_only("e", e, narrow_e), _only("v", v, narrow_v)]
    at_zero, alone = slopes(problem.program, "error_map", given, first)
    wide_e = np.setdiff1d(np.arange(k), narrow_e)
    wide_v = np.setdiff1d(np.arange(v.shape[-1]), narrow_v)
    second = [
        Box("e", e, seeds=tuple(wide_e.tolist())),
        Box("v", v, seeds=tuple(wide_v.tolist())),
    ]
    _, joined = slopes(problem.program, "error_map", given, second)
    low, high = joined.low.copy(), joined.high.copy()
    low[..., split], high[..., split] = alone.low[..., split], alone.high[..., split]
    return at_zero, Interval(low, high)


def _only(name: str, box: Interval, components: NDArray[np.int_]) -> Box:
    """The box with every other component at 0."""
    low, high = np.zeros(box.shape), np.zeros(box.shape)
    low[:, components], high[:, components] = box.low[:, components], box.high[:, components]
    return Box(name, Interval(low, high), seeds=tuple(components.tolist()))


def _slabs(problem: BaseProblem, low: Array, high: Array) -> Slabs:
    center = 0.5 * (low + high)
    half = up(np.maximum(high - center, center - low))
    return Slabs(problem.ellipsoid.ball_rows(problem.cell_directions).mid, center, half)
