"""Interval enclosures of sin, cos, exp, log, atan, atan2, asin and tanh.

No libm result is used. Each function reduces its argument by identities in outward-rounded
intervals, sums a Taylor series and adds bounds of its rounding and of the omitted tail; pi and
log 2 come from integer arithmetic. At the end four units in the last place are added, so that the
enclosure also holds what any decent libm (error below 4 ulp) computes in the kernel or in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from safe_rl_systems.verification.arithmetic import (
    Array,
    Interval,
    ball,
    interval,
    point,
    raw,
    select,
    sqr,
    sqrt,
    up,
    whole,
)

_MAX = float(np.finfo(np.float64).max)
_LIBM = 4.0 * 2.0**-52  # relative widening at the end of every function


def rational(value: Fraction) -> Interval:
    """The interval around a fraction between neighbouring floats."""
    near = value.numerator / value.denominator  # correctly rounded by Python
    if Fraction(near) == value:
        return point(near)
    return Interval(math.nextafter(near, -math.inf), math.nextafter(near, math.inf))


def _arctangent_series(x: Fraction, alternating: bool) -> tuple[Fraction, Fraction]:
    """(lower, upper) of atan x, or of atanh x, for 0 < x <= 1/3 by its Taylor series."""
    total, power, n, bits = Fraction(0), x, 1, Fraction(1, 2**200)
    while power > bits:
        total += (-1 if alternating and n % 4 == 3 else 1) * power / n
        power, n = power * x * x, n + 2
    return total - 2 * power, total + 2 * power  # tail <= power / (1 - x²) < 2 power


def _combine(*terms: tuple[int, tuple[Fraction, Fraction]]) -> tuple[Fraction, Fraction]:
    low = sum((k * (s[0] if k > 0 else s[1]) for k, s in terms), Fraction(0))
    high = sum((k * (s[1] if k > 0 else s[0]) for k, s in terms), Fraction(0))
    return low, high


_PI = _combine(  # Machin
    (16, _arctangent_series(Fraction(1, 5), True)),
    (-4, _arctangent_series(Fraction(1, 239), True)),
)
_LN2 = _combine((2, _arctangent_series(Fraction(1, 3), False)))


def _enclose(bounds: tuple[Fraction, Fraction]) -> Interval:
    return rational(bounds[0]).hull(rational(bounds[1]))


def _split(bounds: tuple[Fraction, Fraction], bits: int) -> tuple[float, Interval]:
    """A head of few bits, so that small integers times it are exact, and an interval tail."""
    head = Fraction(round(bounds[0] * 2**bits), 2**bits)
    return float(head), _enclose((bounds[0] - head, bounds[1] - head))


PI = _enclose(_PI)
HALF_PI = _enclose((_PI[0] / 2, _PI[1] / 2))
_QUARTER_PI = _enclose((_PI[0] / 4, _PI[1] / 4))
_HALF_PI_HEAD, _HALF_PI_TAIL = _split((_PI[0] / 2, _PI[1] / 2), 30)
_LN2_HEAD, _LN2_TAIL = _split(_LN2, 40)
_MOST_TURNS = 2.0**20  # quarter turns up to which k * _HALF_PI_HEAD is exact


class _Series:
    """sum c_n s**n at thin intervals within |s| <= reach, with a bound `tail` of what is left out.

    In Horner's rule on floats the term c_n s**n passes through n products and n + 1 sums, each off
    by a factor 1 + u at most, u = 2**-53 (Higham, section 5.1); c_n itself is rounded once. The
    width of s counts by a bound of the derivative. The factor 1.01 covers terms in u².
    """

    def __init__(self, coefficients: list[Fraction], reach: Fraction, tail: Fraction) -> None:
        rounded = sum((2 * i + 3) * abs(c) * reach**i for i, c in enumerate(coefficients))
        slope = sum(i * abs(c) * reach ** (i - 1) for i, c in enumerate(coefficients) if i)
        self.numbers = [float(c) for c in coefficients]
        self.error = float((rounded * Fraction(1, 2**53) + tail) * Fraction(101, 100))
        self.slope = float(slope * Fraction(101, 100))

    def __call__(self, s: Interval) -> Interval:
        middle = s.mid
        total = np.full(s.shape, self.numbers[-1])
        for c in reversed(self.numbers[:-1]):
            total *= middle
            total += c
        return ball(total, up(self.error + up(self.slope * s.rad)))


def _widened(x: Interval, least: float = -np.inf, most: float = np.inf) -> Interval:
    slack = raw(np.abs(x.low) * -_LIBM, np.abs(x.high) * _LIBM)
    y = x + slack
    return raw(np.clip(y.low, least, most), np.clip(y.high, least, most))


def _ends(function: Callable[[Interval], Interval], x: Interval) -> Interval:
    """An increasing function: its value at both ends (infinite ones at the last floats)."""
    low = np.clip(x.low, -_MAX, _MAX)
    if x.is_point:
        return function(point(low))
    both = function(point(np.stack((low, np.clip(x.high, -_MAX, _MAX)))))
    return raw(both.low[0], both.high[1])


def _reciprocals(first: int, step: int, count: int, sign: int) -> list[Fraction]:
    """sign**n / (first + step n)!, n < count."""
    return [Fraction(sign**n, math.factorial(first + step * n)) for n in range(count)]


# Tails: alternating series with decreasing terms are off by less than the first term left out,
# the others by less than 1.1 (log) or e**0.36 < 2 (exp) times it.
_S64, _EXP_REACH = Fraction(64, 100), Fraction(36, 100)
_SIN = _Series(_reciprocals(1, 2, 10, -1), _S64, _S64**10 / math.factorial(21))
_COS = _Series(_reciprocals(0, 2, 10, -1), _S64, _S64**10 / math.factorial(20))
_EXP = _Series(_reciprocals(0, 1, 17, 1), _EXP_REACH, 2 * _EXP_REACH**17 / math.factorial(17))
#: (exp r - 1) / r
_EXPM1 = _Series(_reciprocals(1, 1, 16, 1), _EXP_REACH, 2 * _EXP_REACH**16 / math.factorial(17))
#: atanh(s) / s and atan(s) / s as series in s², |s| < 0.1717 and |s| < 0.4185
_LOG_REACH, _ATAN_REACH = Fraction(295, 10_000), Fraction(4185, 10_000) ** 2
_LOG = _Series([Fraction(1, 2 * n + 1) for n in range(12)], _LOG_REACH, _LOG_REACH**12 * 11 / 250)
_ATAN = _Series(
    [Fraction((-1) ** n, 2 * n + 1) for n in range(22)], _ATAN_REACH, _ATAN_REACH**22 / 45
)


def _sin_cos_points(x: Array) -> tuple[Interval, Interval]:
    """(sin, cos) at finite numbers of at most _MOST_TURNS quarter turns."""
    k = np.rint(x * (2.0 / math.pi))
    r = (point(x) - point(k * _HALF_PI_HEAD)) - point(k) * _HALF_PI_TAIL
    r = raw(np.clip(r.low, -0.8, 0.8), np.clip(r.high, -0.8, 0.8))  # |r| <= pi/4 + tiny
    square = sqr(r)
    sine, cosine = r * _SIN(square), _COS(square)
    quarter = np.mod(k, 4.0)
    odd, back = quarter % 2.0 == 1.0, quarter >= 2.0
    flip = (quarter == 1.0) | (quarter == 2.0)
    first, second = select(odd, cosine, sine), select(odd, sine, cosine)
    return select(back, -first, first), select(flip, -second, second)


def _has_integer(x: Interval) -> NDArray[np.bool_]:
    """Whether an integer may lie inside."""
    return np.floor(x.high) >= np.ceil(x.low)


def sin_cos(x: Interval) -> tuple[Interval, Interval]:
    """Sine and cosine; [-1, 1] beyond a million quarter turns."""
    far = (x.mag > _MOST_TURNS) | ~np.isfinite(x.mag)
    low, high = np.where(far, 0.0, x.low), np.where(far, 0.0, x.high)
    ends = _sin_cos_points(np.stack((low, high)))
    turns = raw(low, high) / (2.0 * PI)
    waves = []
    for end, crest in zip(ends, (0.25, 0.0), strict=True):  # of a turn
        top, bottom = far | _has_integer(turns - crest), far | _has_integer(turns - (crest + 0.5))
        y = _widened(end[0].hull(end[1]), -1.0, 1.0)
        waves.append(raw(np.where(bottom, -1.0, y.low), np.where(top, 1.0, y.high)))
    return waves[0], waves[1]


def sin(x: Interval) -> Interval:
    """Sine; [-1, 1] beyond a million quarter turns."""
    return sin_cos(x)[0]


def cos(x: Interval) -> Interval:
    """Cosine; [-1, 1] beyond a million quarter turns."""
    return sin_cos(x)[1]


def _reduced_exp(x: Array) -> tuple[Interval, Array]:
    """(r, k) with x = r + k log 2 and |r| <= 0.36, for |x| <= 800."""
    k = np.rint(x * (1.0 / math.log(2.0)))
    r = (point(x) - point(k * _LN2_HEAD)) - point(k) * _LN2_TAIL
    return raw(np.clip(r.low, -0.36, 0.36), np.clip(r.high, -0.36, 0.36)), k.astype(np.int64)


def _exp_points(x: Interval) -> Interval:
    r, k = _reduced_exp(np.clip(x.low, -800.0, 800.0))
    y = _widened(_EXP(r))
    with np.errstate(over="ignore", under="ignore"):
        low, high = np.ldexp(y.low, k), np.ldexp(y.high, k)
    # ldexp is exact but for subnormal results, where one more step outward is needed.
    low = np.maximum(np.minimum(np.nextafter(low, 0.0), _MAX), 0.0)
    return raw(low, np.where(np.isneginf(x.high), 0.0, np.nextafter(high, np.inf)))


def exp(x: Interval) -> Interval:
    """Exponential function, never negative."""
    y = _ends(_exp_points, x)
    return raw(np.where(x.low < -800.0, 0.0, y.low), np.where(x.high > 800.0, np.inf, y.high))


def _log_points(x: Interval) -> Interval:
    """log at positive finite numbers: log(m 2^k) = 2 atanh((m - 1)/(m + 1)) + k log 2."""
    m, k = np.frexp(x.low)
    small = m < math.sqrt(0.5)
    m, k = np.where(small, 2.0 * m, m), np.where(small, k - 1, k).astype(np.float64)
    s = (point(m) - 1.0) / (point(m) + 1.0)
    mantissa = 2.0 * (s * _LOG(sqr(s)))  # |s| < 0.1716
    return _widened(point(k * _LN2_HEAD) + (point(k) * _LN2_TAIL + mantissa))


def log(x: Interval) -> Interval:
    """Natural logarithm; -inf at 0, [-inf, inf] where x reaches below 0."""
    inside = np.clip(x.low, 2.0**-1074, _MAX)
    y = _ends(_log_points, raw(inside, np.clip(x.high, 2.0**-1074, _MAX)))
    low = np.where(x.low <= 0.0, -np.inf, y.low)
    return raw(low, np.where((x.low < 0.0) | np.isposinf(x.high), np.inf, y.high))


def _atan_points(x: Interval) -> Interval:
    """atan at numbers: |x| > 1 by pi/2 - atan 1/x, then above 0.41 by pi/4 + atan (t-1)/(t+1)."""
    size = np.abs(x.low)
    steep = size > 1.0
    safe = np.where(steep, size, 1.0)
    t = select(steep, 1.0 / point(safe), point(size))
    large = t.high > 0.41
    s = select(large, (t - 1.0) / (t + 1.0), t)
    series = s * _ATAN(sqr(s))  # |s| < 0.4185
    angle = select(large, _QUARTER_PI + series, series)
    angle = _widened(select(steep, HALF_PI - angle, angle), 0.0, float(HALF_PI.high))
    return select(x.low < 0.0, -angle, angle)


def atan(x: Interval) -> Interval:
    """Arc tangent."""
    return _ends(_atan_points, x)


def _asin_points(x: Interval) -> Interval:
    """asin x = atan(x / sqrt(1 - x²)) at |x| <= 1."""
    end = np.abs(x.low) >= 1.0
    inner = point(np.where(end, 0.0, x.low))
    y = _widened(atan(inner / sqrt((1.0 - inner) * (1.0 + inner))))
    corner = select(x.low > 0.0, interval(HALF_PI), -HALF_PI)
    return select(end, corner, y)


def asin(x: Interval) -> Interval:
    """Arc sine; [-inf, inf] where x reaches outside [-1, 1]."""
    y = _ends(_asin_points, raw(np.clip(x.low, -1.0, 1.0), np.clip(x.high, -1.0, 1.0)))
    outside = x.mag > 1.0
    return select(outside, whole(x.shape), y) if np.any(outside) else y


def _tanh_points(x: Interval) -> Interval:
    """tanh x = m / (m + 2) with m = exp 2|x| - 1, by its own series near 0."""
    size = np.abs(x.low)
    near = size < 0.18
    r = point(2.0 * np.where(near, size, 0.0))
    small = r * _EXPM1(r)
    m = select(near, small, exp(point(np.where(near, 1.0, 2.0 * np.minimum(size, 40.0)))) - 1.0)
    y = _widened(m / (m + 2.0), 0.0, 1.0)
    y = raw(y.low, np.where(size > 40.0, 1.0, y.high))
    return select(x.low < 0.0, -y, y)


def tanh(x: Interval) -> Interval:
    """Hyperbolic tangent."""
    return _ends(_tanh_points, x)


def _atan2_points(y: Array, x: Array) -> Interval:
    """The angle of the point (x, y) != 0 that is not on the negative x axis."""
    steep = np.abs(y) > np.abs(x)
    along, across = np.where(steep, y, x), np.where(steep, x, y)
    slope = atan(point(across) / point(np.where(along == 0.0, 1.0, along)))
    flat = select(x < 0.0, slope + select(y < 0.0, -PI, interval(PI)), slope)
    upright = select(y < 0.0, -HALF_PI, interval(HALF_PI)) - slope
    return select(steep, upright, flat)


def atan2(y: Interval, x: Interval) -> Interval:
    """Angle of (x, y); [-pi, pi] where the box touches the origin or the negative x axis.

    Elsewhere the angle takes its extremes over the (convex) box at corners.
    """
    shape = np.broadcast_shapes(y.shape, x.shape)
    y, x = y.broadcast_to(shape), x.broadcast_to(shape)
    cut = (x.low <= 0.0) & (y.low <= 0.0) & (y.high >= 0.0)
    unbounded = ~np.isfinite(x.mag) | ~np.isfinite(y.mag)
    cut = cut | unbounded
    corners = [
        _atan2_points(np.where(cut, 0.0, b), np.where(cut, 1.0, a))
        for a in (x.low, x.high)
        for b in (y.low, y.high)
    ]
    y = corners[0]
    for corner in corners[1:]:
        y = y.hull(corner)
    limit = float(PI.high)
    y = _widened(y, -limit, limit)
    return raw(np.where(cut, -limit, y.low), np.where(cut, limit, y.high))
