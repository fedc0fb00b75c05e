"""Where the safe set ends, read off the bundle's own functions instead of a second constant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import BundleError


@dataclass(frozen=True)
class Boundary:
    """A value of one state channel at which one row of the safe set is zero.

    `forbidden_above`: the row is negative on the side of larger values.
    """

    row: str
    value: float
    forbidden_above: bool


def channel_index(bundle: Bundle, name: str) -> int:
    """Position of a state channel. Raises `BundleError` when the robot has none of that name."""
    names = [channel.name for channel in bundle.states]
    if name not in names:
        raise BundleError(
            f"{bundle.name} has no state {name!r}, it has {', '.join(names)}; this view needs a "
            f"bundle of the 'model' variant"
        )
    return names.index(name)


def boundaries(
    bundle: Bundle, channel: str, low: float, high: float, at: NDArray[np.float64]
) -> list[Boundary]:
    """Zero crossings of the safe-set rows along one channel in [low, high], the rest at `at` (n,).

    Found by a scan and bisection, so that it holds for any row that is continuous in the channel.
    """
    column = channel_index(bundle, channel)
    grid = np.linspace(low, high, 401)
    states = np.repeat(np.asarray(at, dtype=float)[None, :], grid.size, axis=0)
    states[:, column] = grid
    rows = bundle.program("safe_set", states)
    found = []
    for index, name in enumerate(bundle.safe_set_names):
        signs = rows[:, index] < 0.0
        for step in np.flatnonzero(signs[1:] != signs[:-1]):
            value = _bisect(bundle, index, column, at, grid[step], grid[step + 1])
            found.append(Boundary(name, value, bool(signs[step + 1])))
    return found


def _bisect(
    bundle: Bundle, row: int, column: int, at: NDArray[np.float64], low: float, high: float
) -> float:
    """The zero of one safe-set row between two values of one channel with opposite signs."""
    state = np.array(at, dtype=float)

    def negative(value: float) -> bool:
        state[column] = value
        return bool(bundle.program("safe_set", state)[row] < 0.0)

    low_negative = negative(low)
    for _ in range(60):
        middle = 0.5 * (low + high)
        if negative(middle) == low_negative:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def reference_path(bundle: Bundle, duration: float) -> NDArray[np.float64]:
    """The task's reference states (K, n) from task time 0 to `duration` s, one per period.

    A course that closes after a lap is given once: laps over one another would hide its dashes.
    """
    lap = bundle.task.lap_s
    if lap is not None and lap < duration:
        ends = bundle.program("reference", np.array([[0.0], [lap]]))
        # Position alone: a quaternion comes back from a loop with the other sign.
        place = [i for i, c in enumerate(bundle.states) if c.name in ("px", "py", "pz")]
        if np.allclose(ends[0, place], ends[1, place], atol=1e-6):
            duration = lap
    times = np.arange(0.0, duration + bundle.period, bundle.period)
    return bundle.program("reference", times[:, None])


def true_margins(bundle: Bundle, states: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Smallest safe-set row of each state (K, n): its value (K,) and its index (K,)."""
    rows = bundle.program("safe_set", np.asarray(states, dtype=float))
    worst = np.argmin(rows, axis=-1)
    return rows[np.arange(len(rows)), worst], worst
