"""The book of one simulated run: true states, worst margin per lap, and the verdict at the end.

ROS-free. A lap is the task's own lap; a task without laps counts its whole duration as one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import PlantError

COMPLETED, VIOLATED, INCOMPLETE = 0, 1, 3


class Flight:
    """Counts periods, and judges every true state by the bundle's own safe set."""

    def __init__(self, bundle: Bundle, laps: int) -> None:
        self._bundle = bundle
        if laps < 0:
            raise PlantError(f"laps must be >= 0 (0: as many as the task has), got {laps}")
        self.laps = laps or bundle.task.laps_default
        lap = (bundle.task.lap_s or bundle.task.duration_s) / bundle.period
        # A lap need not be a whole number of periods; it counts when it is complete.
        self._lap_ends = [math.ceil(k * lap - 1e-6) for k in range(1, self.laps + 1)]
        self.steps = self._lap_ends[-1]
        self._states: list[NDArray[np.float64]] = []
        self.step = -1
        self.violations = 0
        self.worst = float("inf")
        self.worst_row = "-"

    @property
    def done(self) -> bool:
        """All laps have been driven or flown."""
        return self.step >= self.steps

    def add(self, x_true: NDArray[np.float64]) -> str | None:
        """Enter the true state (n,) at the end of a period (the first one: at the start).

        Returns a line to print when a lap is complete.
        """
        self.step += 1
        self._states.append(np.array(x_true))
        if self.step not in self._lap_ends:
            return None
        self.judge()
        return (
            f"lap {self._lap_ends.index(self.step) + 1}/{self.laps}  "
            f"t {self.step * self._bundle.period:6.2f} s  "
            f"worst margin {self.worst:+.3f} ({self.worst_row})  violations {self.violations}"
        )

    def judge(self) -> None:
        """Evaluate the safe set on the states since the last call, all at once."""
        if not self._states:
            return
        rows = self._bundle.program("safe_set", np.array(self._states))
        self._states.clear()
        # A NaN row is a violation too: only a number >= 0 is safe.
        self.violations += int(np.count_nonzero(~(rows >= 0.0).all(axis=1)))
        k, row = np.unravel_index(np.argmin(rows), rows.shape)
        if not rows[k, row] >= self.worst:
            self.worst, self.worst_row = float(rows[k, row]), self._bundle.safe_set_names[row]

    def exit_code(self) -> int:
        """0: completed without violation; 1: violated; 3: not completed."""
        self.judge()
        if self.violations:
            return VIOLATED
        return COMPLETED if self.done else INCOMPLETE
