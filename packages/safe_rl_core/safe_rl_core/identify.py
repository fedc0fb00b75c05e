"""Estimates of the assumed bounds from recordings: delay, disturbance, estimate error.

Only estimates x_hat_k and commands u_k are needed. With F replayed over M periods from x_hat_k,

    r = difference(x_hat_{k+M}, zeta_M)  =  Phi_M d_k - d_{k+M} + sum_j P_j w_j   to first order

(d: estimate error, w: disturbance, Phi_M and P_j products of d error_map/de). Errors of the
estimate enter once at each end whatever M is, disturbances add up: that separates the two.

1. delay   the whole number of periods by which the commands must be shifted so that the residuals
           over one period are smallest, if it is clearly smaller than with any other
2. split   mean squares of r over M in WINDOWS, as sums of non-negative shares of white estimate
           error, of white and of lasting disturbance (non-negative least squares); upper limits by
           a block bootstrap
3. tail    extremes.py on |r| of one period: how many times its own root mean square the largest
           residual of an exposure may reach; disturbance and estimate error are given the same
4. check   every recorded residual must be explained by the proposal, else it is raised

Measured with known truth (planar robot, 24 recordings of 5 minutes, 99.9 % of an hour, 99 %
limits): the proposal covers the truth in all channels for uniform and in 96 % for normal noise,
and is about twice it.

Not seen: an error of the estimate that lasts (a bias enters both ends and cancels), a disturbance
rarer than the recording is long, whatever hides below the noise. The result is a statistical
estimate of bounds, under the conditions of the recordings. It is not a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.error_growth import BLOCK, WINDOWS, Growth, Shares, split, transitions
from safe_rl_core.errors import SafeRLError
from safe_rl_core.extremes import FEWEST, SHARE, Tail, enough, largest_of

Array = NDArray[np.float64]

#: Standard errors by which the best delay must beat any other.
CLEARLY = 4.0
#: An upper limit beyond this many times the largest residual says that there is too little data.
REACH = 5.0
#: Evenly spread instants at which the error dynamics are linearised.
INSTANTS = 1000
_FUNCTIONS = ("step", "difference", "schedule", "error_map")


class IdentifyError(SafeRLError):
    """Recordings from which nothing can be said, or a bundle that they cannot be compared with."""


@dataclass(frozen=True)
class Flight:
    """K consecutive periods without a gap.

    states (K, n) estimates, commands (K, m) computed from them; truth (K, n) where it is known.
    """

    states: Array
    commands: Array
    truth: Array | None = None


@dataclass(frozen=True)
class Settings:
    """`exposure` s: the proposal is for the largest value of that long; `probability` of staying
    below it; `confidence` of each upper limit, one-sided; delays up to `max_delay` are tried.
    """

    exposure: float = 3600.0
    probability: float = 0.999
    confidence: float = 0.99
    max_delay: int = 5


@dataclass(frozen=True)
class Delay:
    """`found` periods (None: cannot be told), `used` for everything else; sizes per candidate."""

    assumed: int
    found: int | None
    used: int
    sizes: tuple[float, ...]


@dataclass(frozen=True)
class Bounds:
    """One kind of bound, per error channel (k,).

    `rms`: estimated root mean square; `proposed`: nan where the data set no limit; `hidden`: the
    data cannot tell it from zero, so that no less than `assumed` is proposed; `true`: the largest
    value that the simulation knows of, where there was one.
    """

    assumed: Array
    rms: Array
    proposed: Array
    hidden: NDArray[np.bool_]
    true: Array | None


@dataclass(frozen=True)
class Identification:
    """What the recordings say. `tails`: of the residuals over one period, per channel;
    `ratio` (k,): largest recorded residual, over any window, as a share of what the assumed bounds
    explain to first order; `undetermined` (k,): the data set no limit to the tail.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    periods: int
    delay: Delay
    disturbance: Bounds
    estimate_error: Bounds
    ratio: Array
    tails: tuple[Tail, ...]
    undetermined: NDArray[np.bool_]


def identify(
    bundle: Bundle, flights: Sequence[Flight], settings: Settings | None = None
) -> Identification:
    """Estimate the bounds; IdentifyError if the bundle has no chart or the data do not suffice."""
    settings = settings or Settings()
    names, units, *assumed = assumptions(bundle)
    _check_shapes(bundle, flights)
    flights = [f for f in flights if len(f.states) > settings.max_delay + 2 * WINDOWS[-1]]
    _check_size(bundle, flights, settings)
    delay = _find_delay(bundle, flights, settings)
    residuals = _residuals(bundle, flights, delay.used, WINDOWS)
    growth = _growth(bundle, flights, delay.used, residuals)
    tails, factor = _tails(bundle, residuals[0], settings)
    shares = split(growth, residuals, settings.confidence)
    floors = [
        np.where(_hidden(share), bound, 0.0) for share, bound in zip(shares, assumed, strict=True)
    ]
    proposed = growth.raised(
        *(np.maximum(factor * share.upper, low) for share, low in zip(shares, floors, strict=True))
    )
    truth = _truth(bundle, flights, delay.used)
    disturbance, estimate_error = (
        Bounds(assumed[i], shares[i].likely, proposed[i], _hidden(shares[i]), truth[i])
        for i in range(2)
    )
    return Identification(
        names=names,
        units=units,
        periods=residuals.shape[1],
        delay=delay,
        disturbance=disturbance,
        estimate_error=estimate_error,
        ratio=growth.ratios(*assumed).max(axis=(0, 1)),
        tails=tails,
        undetermined=np.isnan(factor),
    )


def _hidden(share: Shares) -> NDArray[np.bool_]:
    return share.lower <= 0.0


def _tails(bundle: Bundle, residual: Array, settings: Settings) -> tuple[tuple[Tail, ...], Array]:
    """Tail of each channel (N, k), and its limit in root mean squares; nan if undetermined."""
    size, exposure = np.abs(residual), settings.exposure / bundle.period
    tails = tuple(
        largest_of(column, exposure, settings.probability, settings.confidence)
        for column in size.T
    )
    rms = np.sqrt(np.mean(size**2, axis=0))
    upper, largest = np.array([(tail.upper, tail.largest) for tail in tails]).T
    factor = np.divide(upper, rms, out=np.zeros_like(rms), where=rms > 0.0)
    return tails, np.where(upper > REACH * largest, np.nan, factor)


def assumptions(bundle: Bundle) -> tuple[tuple[str, ...], tuple[str, ...], Array, Array]:
    """Names, units, assumed disturbance and estimate error per channel of the bundle's chart."""
    missing = [name for name in _FUNCTIONS if name not in bundle.program.functions]
    if missing or not bundle.assumptions:
        raise IdentifyError(
            f"{bundle.name} is nominal: it has no error chart (program.txt lacks "
            f"{', '.join(missing) or 'nothing'}, bundle.yaml "
            f"{'states' if bundle.assumptions else 'has no'} assumptions), so there are no "
            "channels to estimate; name the robust bundle of this robot, or give the robot a "
            "RobustDesign in safe_rl_systems/robot.py and build its bundle again"
        )
    errors = bundle.assumptions["errors"]
    return (
        tuple(str(e["name"]) for e in errors),
        tuple(str(e["unit"]) for e in errors),
        np.array([e["disturbance"] for e in errors], np.float64),
        np.array([e["estimate_error"] for e in errors], np.float64),
    )


def _check_shapes(bundle: Bundle, flights: Sequence[Flight]) -> None:
    n, m = len(bundle.states), len(bundle.inputs)
    for flight in flights:
        got = (flight.states.shape, flight.commands.shape)
        if got != ((len(flight.states), n), (len(flight.states), m)):
            raise IdentifyError(
                f"a recording has states {got[0]} and commands {got[1]}, expected (K, {n}) and "
                f"(K, {m}) as in {bundle.name}; name the bundle of the robot that flew"
            )


def _check_size(bundle: Bundle, flights: Sequence[Flight], settings: Settings) -> None:
    count = sum(len(f.states) - settings.max_delay - 1 for f in flights)
    if enough(count):
        return
    needed = int(np.ceil(FEWEST / SHARE))
    raise IdentifyError(
        f"too little data: {count} usable periods ({count * bundle.period:.0f} s) without a gap, "
        f"expected at least {needed} ({needed * bundle.period:.0f} s); record longer or more "
        "flights and name them all"
    )


# ------------------------------------------------------------------------------------ residuals


def _starts(flight: Flight, delay: int, longest: int) -> NDArray[np.intp]:
    return np.arange(delay, len(flight.states) - longest)


def _replayed(
    bundle: Bundle, flight: Flight, starts: NDArray[np.intp], delay: int, windows: Sequence[int]
) -> Iterator[Array]:
    """Yields the residuals (starts, k) of each window in turn."""
    zeta = flight.states[starts]
    for done in range(1, windows[-1] + 1):
        zeta = bundle.program("step", zeta, flight.commands[starts + done - 1 - delay])
        if done in windows:
            yield bundle.program("difference", flight.states[starts + done], zeta)


def _residuals(
    bundle: Bundle, flights: Sequence[Flight], delay: int, windows: Sequence[int]
) -> Array:
    """(W, N, k): residuals of every window from the same instants, all flights in turn."""
    parts = [
        np.stack(list(_replayed(bundle, f, _starts(f, delay, windows[-1]), delay, windows)))
        for f in flights
    ]
    return np.concatenate(parts, axis=1)


def _find_delay(bundle: Bundle, flights: Sequence[Flight], settings: Settings) -> Delay:
    """Compare residuals over one period for every candidate, from the same instants."""
    latest = settings.max_delay
    candidates = range(latest + 1)
    size = np.concatenate(
        [
            np.stack(
                [next(_replayed(bundle, f, _starts(f, latest, 1), d, (1,))) for d in candidates]
            )
            for f in flights
        ],
        axis=1,
    )
    square = size**2
    floor = np.median(square.min(axis=0), axis=0) + 1e-18
    score = np.log1p(square / floor).sum(axis=2)
    means = score.mean(axis=1)
    best = int(np.argmin(means))
    blocks = score.shape[1] // BLOCK
    worse = (score - score[best])[:, : blocks * BLOCK].reshape(latest + 1, blocks, BLOCK)
    worse = worse.mean(axis=2)
    errors = worse.std(axis=1, ddof=1) / np.sqrt(blocks)
    clear = all(worse[d].mean() > CLEARLY * errors[d] for d in candidates if d != best)
    return Delay(
        assumed=bundle.delay_steps,
        found=best if clear else None,
        used=best if clear else min(bundle.delay_steps, latest),
        sizes=tuple(float(v) for v in means),
    )


def _truth(
    bundle: Bundle, flights: Sequence[Flight], delay: int
) -> tuple[Array, Array] | tuple[None, None]:
    """Largest disturbance and estimate error where the simulation told the true state."""
    if any(f.truth is None for f in flights):
        return None, None
    known = [Flight(f.truth, f.commands) for f in flights]
    moved = np.abs(_residuals(bundle, known, delay, (1,))[0]).max(axis=0)
    apart = [np.abs(bundle.program("difference", f.truth, f.states)).max(axis=0) for f in flights]
    return moved, np.max(apart, axis=0)


def _growth(bundle: Bundle, flights: Sequence[Flight], delay: int, residuals: Array) -> Growth:
    """At instants spread evenly and where some residual is largest."""
    longest, count = WINDOWS[-1], residuals.shape[1]
    even = np.linspace(0, count - 1, min(INSTANTS, count)).astype(int)
    chosen = np.unique(np.concatenate((even, np.abs(residuals).argmax(axis=1).ravel())))
    first, parts = 0, []
    for flight in flights:
        starts = _starts(flight, delay, longest)
        own = starts[chosen[(chosen >= first) & (chosen < first + len(starts))] - first]
        first += len(starts)
        if len(own):
            inputs = np.stack([flight.commands[own + j - delay] for j in range(longest)])
            parts.append(transitions(bundle.program, flight.states[own], inputs))
    return Growth.of(np.concatenate(parts, axis=1), residuals[:, chosen])
