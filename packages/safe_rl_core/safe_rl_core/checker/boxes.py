"""Boxes, and the tool that shows or refuses a claim on a box."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from flint import arb

from safe_rl_core.ball import Array

#: "proved", "checked" or "refused", and why.
Verdict = tuple[str, str]
#: By which share of itself each of some claims is exceeded on a box; 0 where it is shown to hold.
Excess = Callable[[Array, Array], list[float]]
Group, Parts = Sequence[Array], tuple[Array, Array] | None
#: On the parts that a certificate names, a claim must hold almost as it stands: what is off by a
#: greater share is not a difference between two arithmetics.
_PATIENCE = 0.01


def over(bound: arb, claim: float) -> float:
    """By which share the bound exceeds the claim; 0 only if all of the ball is at most it."""
    if bound <= claim:
        return 0.0
    share = float(bound.upper()) / claim - 1.0 if claim > 0.0 else np.inf
    return max(share, 1e-15) if share == share else np.inf


def halves(low: Array, high: Array, i: int, cut: float) -> list[tuple[Array, Array]]:
    """Both parts of a box cut across axis i."""
    left, right = high.copy(), low.copy()
    left[i] = right[i] = cut
    return [(low, left), (right, high)]


def grid(low: Array, high: Array, splits: Array, order: Sequence[int]) -> tuple[Array, Array]:
    """A box in splits[i] equal parts along axis i: their ends, (parts, axes) each.

    Of the axes in `order` the last one changes fastest.
    """
    counts = splits.astype(int)
    axes = [i for i in order if counts[i] > 1]
    shape = [int(counts[i]) for i in axes]
    numbers = np.arange(np.prod(shape, dtype=int))
    lows, highs = np.tile(low, (len(numbers), 1)), np.tile(high, (len(numbers), 1))
    for i, place in zip(axes, np.unravel_index(numbers, shape) if axes else (), strict=True):
        edges = np.linspace(low[i], high[i], counts[i] + 1)
        lows[:, i], highs[:, i] = edges[place], edges[place + 1]
    return lows, highs


def folds(low: Array, high: Array, group: Group) -> list[int]:
    """The variables whose negative half need not be looked at; `group` holds sign vectors.

    Of a point and its images take the lexicographically largest. If g turns variable i first, then
    x_i >= -x_i there. Points with x_i = 0 are limits of others, and a bound holds in the limit.
    """
    own = [g for g in group if np.all((g > 0.0) | (low == -high))]
    return sorted({int(np.argmax(g < 0.0)) for g in own if np.any(g < 0.0)})


def prove(
    budget: int, low: Array, high: Array, excess: Excess, group: Group = (), parts: Parts = None
) -> Verdict:
    """Show a claim on a box or on `parts` of it; then halve the worst one until none is left.

    `group`: sign vectors under which the claim is alike; of mirror images one part is enough. It
    is refused when it is false in the middle of a box, or when `budget` boxes did not suffice, or
    when it does not almost hold on `parts` as they are.
    """
    half = folds(low, high, group)
    queue: list[tuple[float, int, Array, Array]] = []
    count, gain, due = 0, np.zeros(len(low)), 0
    fresh = [(low, high)] if parts is None else zip(*parts, strict=True)
    while True:
        for a, b in fresh:
            if np.any(b[half] <= 0.0):
                continue
            count, worst = count + 1, max(excess(a, b), default=0.0)
            if parts is not None and worst > _PATIENCE:
                return "refused", f"exceeded by {worst:.2%} on the parts it was derived on"
            if worst > 0.0:
                heapq.heappush(queue, (-worst, count, a, b))
        if not queue:
            return "proved", f"on {count} boxes"
        worst, _, a, b = heapq.heappop(queue)
        width = np.where(np.isfinite(b - a), b - a, 0.0)
        middle = np.where(width > 0.0, b - 0.5 * width, a)
        if count % 32 < 2 and (false := max(excess(middle, middle), default=0.0)) > 1e-9:
            return "refused", f"false: exceeded by {false:.2%} at {middle}"
        if count >= budget:
            return "refused", f"open after {count} boxes, exceeded by up to {-worst:.2%}"
        if count >= due:
            gain, due = _gain(a, b, width, excess), count + 20 * len(low)
        i = int(np.argmax(gain * width))
        fresh = halves(a, b, i, middle[i])


def _gain(low: Array, high: Array, width: Array, excess: Excess) -> Array:
    """How much the sum of the excesses shrinks per width of each variable."""
    gain, whole = np.zeros(len(low)), sum(excess(low, high))
    for i in np.flatnonzero(width):
        (_, a), (b, _) = halves(low, high, i, high[i] - 0.5 * width[i])
        less = whole - sum(excess(b, a))
        gain[i] = (less if 0.0 < less < np.inf else 1e-9) / width[i]
    return gain
