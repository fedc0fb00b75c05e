"""Intervals of float64 arrays, rounded outward after every operation.

An `Interval` holds two arrays `low` <= `high` of one shape and stands for every real array
between them. Whatever is computed from it encloses the true result for every choice of reals, and
the result of the same float64 operations for every choice of floats.

Soundness rests on IEEE 754 alone: + - * / sqrt are correctly rounded to nearest, so one step
outward from the computed number passes the true one (`down`, `up`). `check_arithmetic` refuses a
process whose rounding mode or subnormal numbers were changed by some library.

Outside its domain an operation has no value: a cell that reaches outside (division by an interval
with zero, square root of one with negative numbers) gets [-inf, inf], which proves nothing; such a
cell must be split or excluded by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safe_rl_core.errors import CertificateError

Array = NDArray[np.float64]

# Rump, Zimmermann, Boldo, Melquiond: Computing predecessor and successor in rounding to nearest,
# BIT 49 (2009): fl(c - fl(PHI |c| + ETA)) <= pred(c), and the same upward. 20 times faster in
# numpy than nextafter.
_PHI = 2.0**-53 * (1.0 + 2.0**-52)
_ETA = 2.0**-1074
_ULP = 2.0**-52
_MAX = float(np.finfo(np.float64).max)


def check_arithmetic() -> None:
    """Raise unless this process rounds to nearest and keeps subnormal numbers."""
    one, tiny = np.float64(1.0), np.float64(2.0**-1022)
    half = np.float64(2.0**-53)
    nearest = one + half == one and one + 3.0 * half > one and -one - half == -one
    if not nearest or tiny * np.float64(0.5) == 0.0:
        raise CertificateError(
            "interval arithmetic needs rounding to nearest and subnormal numbers, but a library "
            "has changed the floating-point mode of this process; run it in one of its own"
        )


def down(c: Array) -> Array:
    """At most the predecessor of c; +inf (an overflow) becomes finite."""
    c = np.minimum(c, _MAX)
    step = np.abs(c)
    step *= _PHI
    step += _ETA
    return c - step


def up(c: Array) -> Array:
    """At least the successor of c; -inf (an overflow) becomes finite."""
    c = np.maximum(c, -_MAX)
    step = np.abs(c)
    step *= _PHI
    step += _ETA
    return c + step


class Interval:
    """Every real array between `low` and `high`, entry by entry; immutable by convention.

    Operators work entry by entry and broadcast; plain numbers and arrays count as exact. `@` is
    the matrix product. A point is an interval whose two arrays are the same object.
    """

    __slots__ = ("low", "high")
    __array_ufunc__ = None  # so that `array * interval` comes here

    low: Array
    high: Array

    def __init__(self, low: ArrayLike, high: ArrayLike | None = None) -> None:
        self.low = np.asarray(low, np.float64)
        self.high = self.low if high is None else np.asarray(high, np.float64)
        if self.low.shape != self.high.shape:
            self.low, self.high = (np.array(a) for a in np.broadcast_arrays(self.low, self.high))
        valid = (self.low <= self.high) & (self.low < np.inf) & (self.high > -np.inf)
        if not np.all(valid):
            raise CertificateError(
                "an interval needs numbers low <= high, low < inf and high > -inf; "
                f"{np.size(valid) - np.count_nonzero(valid)} of {np.size(valid)} entries do not"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of both arrays."""
        return self.low.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.low.ndim

    @property
    def is_point(self) -> bool:
        """True when the interval is known to be a single number per entry."""
        return self.low is self.high

    @property
    def mid(self) -> Array:
        """A number inside, near the middle; 0 for the whole line."""
        low, high = np.maximum(self.low, -_MAX), np.minimum(self.high, _MAX)
        return np.clip(0.5 * low + 0.5 * high, low, high)

    @property
    def rad(self) -> Array:
        """At least the distance from `mid` to either end."""
        mid = self.mid
        return up(np.maximum(self.high - mid, mid - self.low))

    @property
    def mag(self) -> Array:
        """The largest absolute value inside."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def mig(self) -> Array:
        """The smallest absolute value inside."""
        return np.maximum(np.maximum(self.low, -self.high), 0.0)

    @property
    def width(self) -> Array:
        """At least high - low."""
        return up(self.high - self.low)

    def contains(self, x: ArrayLike) -> NDArray[np.bool_]:
        """Whether x lies inside, entry by entry."""
        return (self.low <= x) & (x <= self.high)

    def hull(self, other: Interval | ArrayLike) -> Interval:
        """The smallest interval around both."""
        b = interval(other)
        return raw(np.minimum(self.low, b.low), np.maximum(self.high, b.high))

    def intersect(self, other: Interval | ArrayLike) -> Interval:
        """What both have in common; raises where that is nothing."""
        b = interval(other)
        return Interval(np.maximum(self.low, b.low), np.minimum(self.high, b.high))

    def __getitem__(self, key: Any) -> Interval:
        return _like(self, self.low[key], self.high[key])

    def reshape(self, *shape: int) -> Interval:
        """As numpy's reshape."""
        return _like(self, self.low.reshape(*shape), self.high.reshape(*shape))

    def broadcast_to(self, shape: tuple[int, ...]) -> Interval:
        """As numpy's broadcast_to."""
        return _like(self, np.broadcast_to(self.low, shape), np.broadcast_to(self.high, shape))

    def swapaxes(self, a: int, b: int) -> Interval:
        """As numpy's swapaxes."""
        return _like(self, self.low.swapaxes(a, b), self.high.swapaxes(a, b))

    def sum(self, axis: int = -1) -> Interval:
        """Sum over one axis."""
        parts = np.moveaxis(self.low, axis, 0), np.moveaxis(self.high, axis, 0)
        total = raw(np.zeros(parts[0].shape[1:]), np.zeros(parts[0].shape[1:]))
        for low, high in zip(*parts, strict=True):
            total = total + raw(low, high)
        return total

    def __repr__(self) -> str:
        return f"Interval({self.low!r}, {self.high!r})"

    def __neg__(self) -> Interval:
        return point(-self.low) if self.is_point else raw(-self.high, -self.low)

    def __abs__(self) -> Interval:
        return raw(self.mig, self.mag)

    def __add__(self, other: Interval | ArrayLike) -> Interval:
        b = interval(other)
        with np.errstate(over="ignore"):
            return raw(_down_sum(self.low + b.low), _up_sum(self.high + b.high))

    def __sub__(self, other: Interval | ArrayLike) -> Interval:
        b = interval(other)
        with np.errstate(over="ignore"):
            return raw(_down_sum(self.low - b.high), _up_sum(self.high - b.low))

    def __rsub__(self, other: ArrayLike) -> Interval:
        return interval(other) - self

    def __mul__(self, other: Interval | ArrayLike) -> Interval:
        b = interval(other)
        with np.errstate(all="ignore"):
            ends = [x * y for x in _ends(self) for y in _ends(b)]
            return _from_products(ends, np.minimum(self.low, b.low) >= 0.0)

    __radd__ = __add__
    __rmul__ = __mul__

    def __truediv__(self, other: Interval | ArrayLike) -> Interval:
        b = interval(other)
        zero = (b.low <= 0.0) & (b.high >= 0.0)
        with np.errstate(all="ignore"):
            ends = [x / y for x in _ends(self) for y in _ends(b)]
            quotient = _from_products(ends, np.minimum(self.low, b.low) >= 0.0)
        if not np.any(zero):
            return quotient
        return raw(np.where(zero, -np.inf, quotient.low), np.where(zero, np.inf, quotient.high))

    def __rtruediv__(self, other: ArrayLike) -> Interval:
        return interval(other) / self

    def __matmul__(self, other: Interval | ArrayLike) -> Interval:
        return matmul(self, interval(other))

    def __rmatmul__(self, other: ArrayLike) -> Interval:
        return matmul(interval(other), self)


def raw(low: Array, high: Array) -> Interval:
    """An interval of two arrays that are known to be right; nothing is checked."""
    made = object.__new__(Interval)
    made.low, made.high = low, high
    return made


def point(x: ArrayLike) -> Interval:
    """The interval that holds x alone."""
    return Interval(x)


def interval(x: Interval | ArrayLike) -> Interval:
    """x as it is, or numbers as a point."""
    return x if isinstance(x, Interval) else Interval(x)


def whole(shape: tuple[int, ...] = ()) -> Interval:
    """[-inf, inf]: nothing is known."""
    return raw(np.full(shape, -np.inf), np.full(shape, np.inf))


def ball(center: ArrayLike, radius: ArrayLike) -> Interval:
    """[center - radius, center + radius], rounded outward."""
    c, r = np.asarray(center, np.float64), np.asarray(radius, np.float64)
    return Interval(down(c - r), up(c + r))


def stack(parts: Sequence[Interval | ArrayLike], axis: int = -1) -> Interval:
    """As numpy's stack, after broadcasting the parts to one shape."""
    intervals = [interval(p) for p in parts]
    shape = np.broadcast_shapes(*(p.shape for p in intervals))
    return raw(
        np.stack([np.broadcast_to(p.low, shape) for p in intervals], axis),
        np.stack([np.broadcast_to(p.high, shape) for p in intervals], axis),
    )


def select(condition: NDArray[np.bool_], yes: Interval, no: Interval) -> Interval:
    """As numpy's where, for a condition that is known."""
    return raw(np.where(condition, yes.low, no.low), np.where(condition, yes.high, no.high))


def sqr(x: Interval) -> Interval:
    """x², never negative."""
    with np.errstate(over="ignore", under="ignore"):
        small, large = x.mig * x.mig, x.mag * x.mag
        return raw(np.maximum(down(small), 0.0), up(large))


def sqrt(x: Interval) -> Interval:
    """Square root; [-inf, inf] where x reaches below 0."""
    outside = x.low < 0.0
    with np.errstate(invalid="ignore"):
        low, high = np.maximum(down(np.sqrt(x.low)), 0.0), up(np.sqrt(x.high))
    if not np.any(outside):
        return raw(low, high)
    return raw(np.where(outside, -np.inf, low), np.where(outside, np.inf, high))


def minimum(a: Interval, b: Interval) -> Interval:
    """The smaller of the two."""
    return raw(np.minimum(a.low, b.low), np.minimum(a.high, b.high))


def maximum(a: Interval, b: Interval) -> Interval:
    """The larger of the two."""
    return raw(np.maximum(a.low, b.low), np.maximum(a.high, b.high))


def sign(x: Interval) -> Interval:
    """-1, 0 or 1 at both ends."""
    return raw(np.sign(x.low), np.sign(x.high))


def floor(x: Interval) -> Interval:
    """The next integer below."""
    return raw(np.floor(x.low), np.floor(x.high))


def matmul(a: Interval, b: Interval) -> Interval:
    """Matrix product, one column of `a` after the other. (..., i, j), (..., j, k) or (j,)."""
    if b.ndim == 1:
        return matmul(a, b.reshape(-1, 1))[..., 0]
    if a.shape[-1] != b.shape[-2]:
        raise CertificateError(f"cannot multiply intervals of shapes {a.shape} and {b.shape}")
    total = a[..., :, 0, None] * b[..., None, 0, :]
    for j in range(1, a.shape[-1]):
        total = total + a[..., :, j, None] * b[..., None, j, :]
    return total


def affine(weight: Array, x: Interval, bias: Array) -> Interval:
    """weight @ x + bias for exact (rows, n) numbers: (..., n) -> (..., rows), one BLAS call.

    A float sum of n products errs by at most n u / (1 - n u) times the sum of their absolute
    values, whatever its order, u = 2**-53 (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1). Four times that covers the rounding of centre and radius here and of any float
    evaluation of the layer.
    """
    size = weight.shape[1]
    share = 4.0 * (size + 2) * 2.0**-53
    center, radius = x.mid, x.rad
    spread = radius @ np.abs(weight).T
    slack = share * (x.mag @ np.abs(weight).T + spread + np.abs(bias)) + size * 2.0**-1022
    return ball(center @ weight.T, up(up(spread) + up(slack))) + point(bias)


def _like(x: Interval, low: Array, high: Array) -> Interval:
    return raw(low, low) if x.is_point else raw(low, high)


def _ends(x: Interval) -> tuple[Array, ...]:
    return (x.low,) if x.is_point else (x.low, x.high)


def _down_sum(c: Array) -> Array:
    """As `down`, for sums: they are exact below 2**-1021, so 2**-52 |c| >= ulp(c) is enough.

    A sum of two numbers that are not negative keeps a lower end that is not negative.
    """
    c = np.minimum(c, _MAX)
    step = np.abs(c)
    step *= _ULP
    return c - step


def _up_sum(c: Array) -> Array:
    c = np.maximum(c, -_MAX)
    step = np.abs(c)
    step *= _ULP
    return c + step


def _from_products(ends: list[Array], positive: NDArray[np.bool_]) -> Interval:
    """The interval around products (or quotients) of ends; `positive`: no factor is negative."""
    low = high = ends[0]
    for end in ends[1:]:
        low, high = np.minimum(low, end), np.maximum(high, end)
    if np.any(np.isnan(low)):  # 0 · inf is 0 here: the interval is a set of numbers
        finite = [np.where(np.isnan(end), 0.0, end) for end in ends]
        return _from_products(finite, positive)
    lower = down(low)
    return raw(np.where(positive, np.maximum(lower, 0.0), lower), up(high))
