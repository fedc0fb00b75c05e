"""The base set as an ellipsoid {e : |L'e| <= 1}: reaches of linear functions, norms, positivity.

Everything is enclosed with outward rounding. Ball coordinates are y = L'e, so e = L⁻ᵀ y.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.interval import Array, Interval, interval, point, sqr, sqrt

#: Up to so many channels the corners of a box are tried one by one.
_MAX_CORNERS = 12


class Ellipsoid:
    """{e : |L'e| <= 1} for a lower triangular L (k, k) with a positive diagonal."""

    def __init__(self, factor: Array) -> None:
        size = len(factor)
        if (
            factor.shape != (size, size)
            or np.any(np.triu(factor, 1))
            or np.any(np.diag(factor) <= 0.0)
        ):
            raise CertificateError(
                "the factor L of a base set must be lower triangular with a positive diagonal; "
                "use the Cholesky factor of P"
            )
        self.factor = factor
        self.inverse = _inverse(factor)

    def ball_rows(self, rows: Array | Interval) -> Interval:
        """R L⁻ᵀ for rows R (r, k): R e = (R L⁻ᵀ) y."""
        return interval(rows) @ self.inverse.swapaxes(0, 1)

    def reach(self, rows: Array) -> Array:
        """At least the largest |r'e| over the set, for each row r: (r, k) -> (r,)."""
        return norm(self.ball_rows(rows)).high

    def to_ball(self, rows: Interval | Array) -> Interval:
        """L' R for columns R (..., k, r)."""
        return point(self.factor.T) @ interval(rows)


def _inverse(factor: Array) -> Interval:
    """Enclosure of L⁻¹ by forward substitution."""
    size = len(factor)
    low, high = np.zeros((size, size)), np.zeros((size, size))
    for i in range(size):
        row = point(np.eye(size)[i])
        for j in range(i):
            row = row - point(factor[i, j]) * Interval(low[j], high[j])
        row = row / point(factor[i, i])
        low[i], high[i] = row.low, row.high
    return Interval(low, high)


def norm(x: Interval) -> Interval:
    """Euclidean norm over the last axis."""
    return sqrt(sqr(x).sum(-1))


def positive_definite(m: Interval) -> NDArray[np.bool_]:
    """True where every symmetric matrix in m (..., n, n) is certainly positive definite.

    Cholesky in intervals: the pivots of each matrix inside are enclosed by those computed here.
    """
    ok = np.ones(m.shape[:-2], bool)
    rest = m
    for _ in range(m.shape[-1]):
        pivot = rest[..., 0, 0]
        good = pivot.low > 0.0
        ok &= good
        if rest.shape[-1] == 1:
            break
        pivot = Interval(np.where(good, pivot.low, 1.0), np.where(good, pivot.high, 1.0))
        column = rest[..., 1:, 0]
        scaled = column / pivot[..., None]
        rest = rest[..., 1:, 1:] - column[..., :, None] * scaled[..., None, :]
    return ok


def worst_over_box(columns: Interval, box: Array) -> Array:
    """At least the largest |M b| over |b_i| <= box_i, for M (..., k, r); the norm is Euclidean.

    A convex function is largest in a corner, and opposite corners are equal.
    """
    size = len(box)
    if size > _MAX_CORNERS:
        return norm(point(np.ones(1)) * (abs(columns) @ point(box))).high
    signs = np.array([(1.0, *rest) for rest in itertools.product((-1.0, 1.0), repeat=size - 1)])
    moved = columns @ point((signs * box).T)
    return norm(moved.swapaxes(-1, -2)).high.max(-1)
