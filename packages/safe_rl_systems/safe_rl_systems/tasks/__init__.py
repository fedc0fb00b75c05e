"""Tasks: reference, observation, reward and starts, written once and traced into the bundle."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from safe_rl_systems.tasks.lane_keeping import LaneKeeping
from safe_rl_systems.tasks.powerloop import Powerloop

__all__ = ["LaneKeeping", "Powerloop", "Task"]


class Task(Protocol):
    """What a policy is trained for and scored by; x (..., n), u (..., m), task time t (..., 1)."""

    @property
    def name(self) -> str:
        """For the bundle."""
        ...

    @property
    def lap(self) -> float:
        """Seconds after which the reference repeats itself, but for a shift."""
        ...

    @property
    def start_dimension(self) -> int:
        """Length of w in `initial_state`."""
        ...

    @property
    def operating_dimension(self) -> int:
        """Length of w in `operating_state`."""
        ...

    @property
    def tracked(self) -> tuple[str, ...]:
        """Names of the states that the RMSE is given for."""
        ...

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names and units of the observation, in order."""
        ...

    def reference(self, t: Tensor) -> Tensor:
        """The reference state: (..., 1) -> (..., n)."""
        ...

    def observation(self, x: Tensor, t: Tensor) -> Tensor:
        """What the policy sees, in SI units: (..., n), (..., 1) -> (..., k)."""
        ...

    def reward(self, x_next: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """Reward of the step with input u that ended in x_next at time t. -> (..., 1)."""
        ...

    def initial_state(self, w: Tensor) -> Tensor:
        """A start of the task from w uniform in [-1, 1]: (..., start_dimension) -> (..., n)."""
        ...

    def operating_state(self, w: Tensor) -> Tensor:
        """A state of the operating box: (..., operating_dimension) -> (..., n)."""
        ...
