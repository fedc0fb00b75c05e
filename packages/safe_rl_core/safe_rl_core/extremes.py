"""How large the largest value of a long exposure may be, judged from a shorter recording.

Peaks over threshold: beyond a high threshold u an excess is taken to follow a generalised Pareto
law, P(excess > y) = (1 + shape y / scale)^(-1/shape). With a share `rate` of values above u, the
level that the largest of T values stays below with probability p is about

    z = u + scale / shape (m^shape - 1),      m = T rate / (1 - p).

Its upper limit is the end of the one-sided profile likelihood interval of z. Values that come in
clusters say less than as many separate ones: the log likelihood is scaled by the share of
clusters. T itself is not reduced, which errs on the safe side.

Measured on 60 draws of 6000 values each (99.9 % of the largest of 72 000, 95 % limit): the limit
covers the truth in 95 % of the draws for a sum of uniforms, in 85 to 87 % for normal and
exponential values, whose tails reach the Pareto law only slowly.

Source: Coles, An Introduction to Statistical Modeling of Extreme Values (2001), ch. 4 and 5.
This is an extrapolation under a model of the tail. It is no bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]

#: Excesses below which no tail is fitted, and above which the threshold is raised.
FEWEST, MOST = 50, 200
#: Share of the values beyond the threshold.
SHARE = 0.05
#: Shapes that are considered. Below -0.5 the likelihood is not regular; a shorter tail is
#: described by -0.5, which overstates it.
SHAPES = np.linspace(-0.5, 1.0, 151)
_STEPS = 60


@dataclass(frozen=True)
class Tail:
    """`level`: best estimate of z; `upper`: its upper limit, infinite if the data set none."""

    level: float
    upper: float
    shape: float
    threshold: float
    excesses: int
    largest: float


def enough(count: int) -> bool:
    """Whether so many values can carry a tail."""
    return count * SHARE >= FEWEST


def largest_of(values: Array, exposure: float, probability: float, confidence: float) -> Tail:
    """The level that the largest of `exposure` values like these stays below, see above.

    `values` (N,) >= 0, in the order of time, with `enough(N)`; `probability` < 1 of staying below;
    `confidence` of `upper`, one-sided.
    """
    count = min(MOST, int(SHARE * len(values)))
    ordered = np.sort(values)
    threshold = float(ordered[-count - 1])
    above = np.flatnonzero(values > threshold)
    largest = float(ordered[-1])
    if largest - threshold <= 1e-12 * max(largest, 1e-300):  # all alike: there is no tail
        return Tail(largest, largest, 0.0, threshold, len(above), largest)
    excess = values[above] - threshold
    clusters = (1 + np.count_nonzero(np.diff(above) > 1)) / len(above)
    ratio = max(exposure * len(above) / len(values) / (1.0 - probability), 1.0 + 1e-9)
    unit = float(excess.mean())
    profile = _Profile(excess / unit, math.log(ratio))
    best, likelihood, shape = profile.maximum()
    lowest = likelihood - 0.5 * norm.ppf(confidence) ** 2 / clusters
    upper = profile.crossing(best, lowest)
    return Tail(
        level=max(threshold + unit * best, largest),
        upper=max(threshold + unit * upper, largest),
        shape=shape,
        threshold=threshold,
        excesses=len(above),
        largest=largest,
    )


class _Profile:
    """Log likelihood of the excesses as a function of z - u, maximised over the shape."""

    def __init__(self, excess: Array, log_ratio: float) -> None:
        self._excess = excess
        nearly = np.where(np.abs(SHAPES) < 1e-9, 1.0, SHAPES)
        growth = np.where(np.abs(SHAPES) < 1e-9, log_ratio, np.expm1(SHAPES * log_ratio) / nearly)
        self._growth = growth  # z - u = scale * growth

    def __call__(self, level: float) -> tuple[float, float]:
        """(log likelihood, shape) at z - u = level."""
        scale = level / self._growth
        total = _likelihood(self._excess, scale)
        i = int(np.argmax(total))
        return float(total[i]), float(SHAPES[i])

    def maximum(self) -> tuple[float, float, float]:
        """(z - u, log likelihood, shape) at the maximum, over a grid of scales."""
        scales = np.geomspace(0.2, 5.0, 121)
        totals = np.array([_likelihood(self._excess, np.full_like(SHAPES, s)) for s in scales])
        i, j = np.unravel_index(int(np.argmax(totals)), totals.shape)
        return float(scales[i] * self._growth[j]), float(totals[i, j]), float(SHAPES[j])

    def crossing(self, start: float, lowest: float) -> float:
        """The largest z - u with a log likelihood of `lowest`; infinite if none is in reach."""
        low, high = start, 2.0 * start
        while self(high)[0] > lowest:
            low, high = high, 2.0 * high
            if high > 1e6 * start:
                return math.inf
        for _ in range(_STEPS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self(middle)[0] > lowest else (low, middle)
        return high


def _likelihood(excess: Array, scale: Array) -> Array:
    """Log likelihood for every shape of SHAPES with its scale: (shapes,)."""
    shape = SHAPES[:, np.newaxis]
    scaled = excess / scale[:, np.newaxis]
    inside = 1.0 + shape * scaled
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(
            np.abs(shape) < 1e-9, scaled, np.log(np.maximum(inside, 0.0)) * (1.0 + 1.0 / shape)
        )
    total = -len(excess) * np.log(scale) - each.sum(axis=1)
    return np.where((inside > 0.0).all(axis=1), total, -np.inf)
