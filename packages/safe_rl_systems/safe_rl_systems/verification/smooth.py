"""Value, first and second derivative of the smooth functions of one number, on intervals."""

from __future__ import annotations

from collections.abc import Callable

from safe_rl_systems.verification import interval as iv
from safe_rl_systems.verification.interval import Interval

Taylor = tuple[Interval, Interval, Interval]


def _tanh(x: Interval) -> Taylor:
    y = iv.tanh(x)
    slope = 1.0 - iv.sqr(y)
    return y, slope, -2.0 * (y * slope)


def _sqrt(x: Interval) -> Taylor:
    y = iv.sqrt(x)
    return y, 0.5 / y, -0.25 / (x * y)


def _asin(x: Interval) -> Taylor:
    rest = (1.0 - x) * (1.0 + x)
    root = iv.sqrt(rest)
    return iv.asin(x), 1.0 / root, x / (rest * root)


def _atan(x: Interval) -> Taylor:
    slope = 1.0 / (1.0 + iv.sqr(x))
    return iv.atan(x), slope, -2.0 * (x * iv.sqr(slope))


def _sin(x: Interval) -> Taylor:
    y, slope = iv.sin_cos(x)
    return y, slope, -y


def _cos(x: Interval) -> Taylor:
    rise, y = iv.sin_cos(x)
    return y, -rise, -y


def _exp(x: Interval) -> Taylor:
    y = iv.exp(x)
    return y, y, y


def _log(x: Interval) -> Taylor:
    return iv.log(x), 1.0 / x, -1.0 / iv.sqr(x)


#: Value, first and second derivative.
SMOOTH: dict[str, Callable[[Interval], Taylor]] = {
    "sqrt": _sqrt,
    "exp": _exp,
    "log": _log,
    "sin": _sin,
    "cos": _cos,
    "asin": _asin,
    "atan": _atan,
    "tanh": _tanh,
}
