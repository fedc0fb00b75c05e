"""The default learner of phase II: first the slope of the return, then returns alone.

    gradient   back-propagation through robot, task and shield      (gradient.py)
    ppo        PPO behind the shield, from that policy              (ppo.py)

Alone, PPO knows nothing at first, and behind the shield it settles for something else than the
task: hovering below the ceiling instead of flying the loop. The gradient finds the task within
minutes, but where the shield acts its slope leaves out how the rows move with the state, so it
stops short, or turns back. PPO needs no slope and goes on from the policy with the best return
that the gradient collected. Both parts are shielded from the first period to the last: nothing is
learned by leaving the safe set.

With a policy to begin with (`--warm-start`; tracker.py makes one that knows no shield) there is no
first part: `learners.py` then takes PPO alone, with the settings that it has here.

Source: PS2-RL (arXiv 2606.14536) starts its quadrotor from a tracker that was trained by SAC
without a shield, for 5 million steps; here that is a choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.robot import Robot
from torch import Tensor

from safe_rl_training.gradient import GradientLearner, GradientSettings
from safe_rl_training.parts.networks import PolicyNetwork
from safe_rl_training.ppo import Ppo, PpoSettings


@dataclass(frozen=True)
class StagedSettings(PpoSettings):
    """Those of PPO, for a policy that is good already; `iterations` counts both parts."""

    iterations: int = 700
    gradient_iterations: int = 300
    spread: float = 0.1
    distance_weight: float = 0.1
    learning_rate: float = 3e-4
    starts: Literal["task", "mixed"] = "task"
    critic_first: int = 15
    compiled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gradient_iterations < self.iterations:
            raise ModelError(
                "gradient_iterations must be > 0 and less than iterations, got "
                f"{self.gradient_iterations} and {self.iterations}"
            )

    def first(self) -> GradientSettings:
        """Of the gradient."""
        return GradientSettings(
            iterations=self.gradient_iterations, hidden=self.hidden, compiled=self.compiled
        )

    def then(self) -> PpoSettings:
        """Of PPO."""
        own = {field.name: getattr(self, field.name) for field in fields(PpoSettings)}
        return PpoSettings(**{**own, "iterations": self.iterations - self.gradient_iterations})


class Staged:
    """A `Learner` made of two; see the module."""

    def __init__(
        self,
        robot: Robot,
        settings: StagedSettings,
        seed: int,
        threads: int,
        device: str,
        kernel: BatchKernel | None = None,
    ) -> None:
        self.robot, self.settings = robot, settings
        self._then = Ppo(robot, settings.then(), seed, threads, device, kernel)
        kernel = self._then.env.kernel
        self._first = GradientLearner(robot, settings.first(), seed, threads, kernel)
        self._best = _copy(self._first.policy.state_dict())
        self._best_return = -math.inf

    @property
    def policy(self) -> PolicyNetwork:
        """Of the part that is at work."""
        return self._first.policy if self._learns_by_slope else self._then.policy

    @property
    def iteration(self) -> int:
        """Of both parts together."""
        return self._first.iteration + self._then.iteration

    @property
    def env_steps(self) -> int:
        """Periods flown so far, of all robots of both parts."""
        return self._first.env_steps + self._then.env_steps

    @property
    def violations(self) -> int:
        """Visited states outside the safe set so far."""
        return self._first.violations + self._then.violations

    def iterate(self) -> dict[str, float]:
        """One of the part that is at work."""
        if not self._learns_by_slope:
            return self._then.iterate()
        flown = _copy(self._first.policy.state_dict())
        scalars = self._first.iterate()
        if scalars.get("return", -math.inf) > self._best_return:
            self._best, self._best_return = flown, scalars["return"]
        if not self._learns_by_slope:
            self._then.policy.load_state_dict(self._best)
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        return {
            "first": self._first.state_dict(),
            "then": self._then.state_dict(),
            "best": self._best,
            "best_return": self._best_return,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self._first.load_state_dict(stored["first"])
        self._then.load_state_dict(stored["then"])
        self._best, self._best_return = stored["best"], stored["best_return"]

    @property
    def _learns_by_slope(self) -> bool:
        return self._first.iteration < self.settings.gradient_iterations


def make(
    robot: Robot,
    settings: StagedSettings,
    seed: int,
    threads: int,
    device: str,
    kernel: BatchKernel | None = None,
) -> Staged:
    """A fresh learner; the gradient runs on the CPU, PPO on `device`."""
    return Staged(robot, settings, seed, threads, device, kernel)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}
