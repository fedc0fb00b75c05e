"""Multipliers of the S-procedure, found in floats for many cells at once; nothing here is trusted.

Bound |A y|² over the ball |y| <= 1 cut by the slabs |c_i'y - z_i| <= h_i. If l0, lam >= 0 make

    M = [ l0 I + sum lam_i c_i c_i' - A'A ,  - sum lam_i z_i c_i              ]
        [ . ,                                t - l0 - sum lam_i (h_i² - z_i²) ]

positive definite, then |A y|² <= t there: (y, 1)' M (y, 1) >= 0 says so. The smallest t is a small
semidefinite program. The iteration is Newton's on its logarithmic barrier with an exact line
search (Boyd and Vandenberghe, Convex Optimization, chapter 11). It stops for a cell as soon as t
is low enough, or (up to rounding) cannot become so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MAX_ITERATIONS = 60
_FIRST_WEIGHT, _GROWTH = 30.0, 10.0
_GAP = 1e-5
_BISECTIONS = 12


@dataclass(frozen=True)
class Slabs:
    """The cells in ball coordinates: directions (q, k), centres and half widths (N, q)."""

    directions: Array
    center: Array
    half_width: Array


def find_multipliers(matrix: Array, slabs: Slabs, target: Array) -> tuple[Array, Array]:
    """(l0, lam) (N, 1+q) and the bound t (N,) that they give, for A (N, k, k).

    Stops at t <= target (N,); where it cannot get there, t is close to the smallest.
    """
    cells = len(matrix)
    problem = _Barrier(matrix, slabs)
    theta = problem.start()
    weight = np.full(cells, _FIRST_WEIGHT)
    active = np.ones(cells, bool)
    order = problem.order
    for _ in range(_MAX_ITERATIONS):
        part = problem.part(active)
        current = theta[active]
        step, decrement = part.newton(current, weight[active])
        lost = ~np.isfinite(step).all(1)  # a cell outside the ball: t falls without end
        step[lost], decrement[lost] = 0.0, np.inf
        current = current + part.length(current, step, weight[active])[:, None] * step
        theta[active] = current
        centred = decrement < 0.7
        gap = order / weight[active]
        hopeless = centred & (current[:, 0] - 2.0 * gap > target[active])
        exact = centred & (gap < _GAP)
        weight[active] = np.where(centred, _GROWTH * weight[active], weight[active])
        done = (current[:, 0] <= target[active]) | hopeless | exact | lost
        active[np.flatnonzero(active)[done]] = False
        if not active.any():
            break
    return theta[:, 1:] * problem.scale, theta[:, 0]


class _Barrier:
    """theta = (t, l0, lam h²); M(theta) is affine in it with terms of rank one.

    Slabs are scaled to half width 1: g_i = (c_i, -z_i) / h_i, M_i = g_i g_i' - e e' for the last
    unit vector e. Without that, thin slabs spoil the conditioning.
    """

    def __init__(self, matrix: Array, slabs: Slabs) -> None:
        cells, q = slabs.center.shape
        k = slabs.directions.shape[1]
        self.square = np.swapaxes(matrix, -1, -2) @ matrix
        self.scale = np.column_stack((np.ones(cells), 1.0 / slabs.half_width**2))
        self.order = k + 2 + q
        self.columns = np.zeros((cells, k + 1, q + 1))
        self.columns[:, :k, :q] = slabs.directions.T / slabs.half_width[:, None, :]
        self.columns[:, k, :q] = -slabs.center / slabs.half_width
        self.columns[:, k, q] = 1.0

    def part(self, active: NDArray[np.bool_]) -> _Barrier:
        """The same problem for some of the cells."""
        if active.all():
            return self
        part = object.__new__(_Barrier)
        part.order, part.scale = self.order, self.scale
        part.square, part.columns = self.square[active], self.columns[active]
        return part

    def matrix(self, theta: Array, constant: float = 1.0) -> Array:
        """M (N, k+1, k+1); `constant` 0 leaves out the part without theta."""
        k, q = self.square.shape[-1], theta.shape[1] - 2
        g = self.columns[:, :, :q]
        m = (g * theta[:, None, 2:]) @ np.swapaxes(g, -1, -2)
        m[:, :k, :k] += theta[:, 1, None, None] * np.eye(k) - constant * self.square
        m[:, k, k] += theta[:, 0] - theta[:, 1] - theta[:, 2:].sum(-1)
        return m

    def start(self) -> Array:
        """A strictly feasible theta: l0 above the norm, small lam, and t large enough."""
        cells, k, q = len(self.square), self.square.shape[-1], self.columns.shape[-1] - 1
        theta = np.full((cells, 2 + q), 0.1 / q)
        theta[:, 0] = 0.0
        theta[:, 1] = np.linalg.norm(self.square, axis=(-2, -1)) + 0.1
        m = self.matrix(theta)
        side = m[:, :k, k]
        schur = (side * np.linalg.solve(m[:, :k, :k], side[..., None])[..., 0]).sum(-1)
        theta[:, 0] = schur - m[:, k, k] + 1.0
        return theta

    def newton(self, theta: Array, weight: Array) -> tuple[Array, Array]:
        """Newton step (N, 2+q) of weight t - log det M - log l0 - sum log lam, and decrement."""
        k, q = self.square.shape[-1], theta.shape[1] - 2
        inverse = _inverse(self.matrix(theta))
        moved = inverse @ self.columns
        w = np.swapaxes(self.columns, -1, -2) @ moved
        last = w[:, q, q]
        gradient = np.empty_like(theta)
        gradient[:, 0] = weight - last
        gradient[:, 1] = last - np.trace(inverse[:, :k, :k], axis1=1, axis2=2)
        gradient[:, 2:] = last[:, None] - np.einsum("nii->ni", w)[:, :q]
        gradient[:, 1:] -= 1.0 / theta[:, 1:]
        hessian = _hessian(inverse, moved, w)
        index = np.arange(1, q + 2)
        hessian[:, index, index] += 1.0 / theta[:, 1:] ** 2
        step = -(_inverse(hessian) @ gradient[..., None])[..., 0]
        return step, np.sqrt(np.maximum(-(step * gradient).sum(-1), 0.0))

    def length(self, theta: Array, step: Array, weight: Array) -> Array:
        """The best share of each step (N,): where the barrier's derivative along it is zero.

        Along theta + a step the barrier is weight a dt - sum log (1 + a r), r the eigenvalues of
        the change relative to M and the relative changes of the multipliers.
        """
        root, known = _inverse_root(self.matrix(theta))
        change = root @ self.matrix(step, constant=0.0) @ np.swapaxes(root, -1, -2)
        rates = np.column_stack((np.linalg.eigvalsh(change), step[:, 1:] / theta[:, 1:]))
        least = np.minimum(rates.min(1), -1e-12)
        low, high = np.zeros(len(theta)), np.minimum(0.99 / -least, 2.0)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            slope = weight * step[:, 0] - (rates / (1.0 + middle[:, None] * rates)).sum(1)
            low, high = np.where(slope < 0.0, middle, low), np.where(slope < 0.0, high, middle)
        return np.where(known, low, 0.0)


def _inverse_root(m: Array) -> tuple[Array, NDArray[np.bool_]]:
    """(R, True) with R M R' = I; where rounding has made M indefinite, (I, False)."""
    try:
        root = np.linalg.cholesky(m)
        known = np.ones(len(m), bool)
    except np.linalg.LinAlgError:
        known = np.linalg.eigvalsh(m)[:, 0] > 1e-14 * np.abs(m).max((-2, -1))
        root = np.linalg.cholesky(np.where(known[:, None, None], m, np.eye(m.shape[-1])))
    return np.linalg.inv(root), known


def _inverse(m: Array) -> Array:
    """Inverses; NaN for those of a batch that has an exactly singular matrix and is one itself."""
    try:
        return np.linalg.inv(m)
    except np.linalg.LinAlgError:
        out = np.full_like(m, np.nan)
        regular = np.linalg.cond(m) < 1e16
        out[regular] = np.linalg.inv(m[regular])
        return out


def _hessian(inverse: Array, moved: Array, w: Array) -> Array:
    """tr(M⁻¹ M_i M⁻¹ M_j) for M_t = ee', M_0 = I - 2ee', M_i = g_i g_i' - ee'."""
    q = w.shape[-1] - 1
    last, cross = w[:, q, q], w[:, :q, q]
    long = (moved**2).sum(1)  # |M⁻¹ u|² of every column u
    h = np.empty((len(w), q + 2, q + 2))
    h[:, 0, 0] = last**2
    h[:, 0, 1] = h[:, 1, 0] = long[:, q] - 2.0 * last**2
    h[:, 0, 2:] = h[:, 2:, 0] = cross**2 - last[:, None] ** 2
    h[:, 1, 1] = (inverse**2).sum((-2, -1)) - 4.0 * long[:, q] + 4.0 * last**2
    h[:, 1, 2:] = h[:, 2:, 1] = long[:, :q] - 2.0 * cross**2 - h[:, 0, 1, None]
    h[:, 2:, 2:] = (
        w[:, :q, :q] ** 2
        - cross[:, :, None] ** 2
        - cross[:, None, :] ** 2
        + last[:, None, None] ** 2
    )
    return h
