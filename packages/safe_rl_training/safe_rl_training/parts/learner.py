"""What the run loop of phase II knows about a learner, whichever algorithm it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BACKUP, PASSED
from safe_rl_systems.robot import Robot

from safe_rl_training.envs import ShieldedEnv, Transition
from safe_rl_training.parts.networks import PolicyNetwork


class Learner(Protocol):
    """An algorithm in the middle of its run. `policy` is what is evaluated and exported."""

    robot: Robot
    policy: PolicyNetwork
    iteration: int

    @property
    def env_steps(self) -> int:
        """Periods flown so far, of all robots together."""
        ...

    @property
    def violations(self) -> int:
        """Visited states outside the safe set so far."""
        ...

    def iterate(self) -> dict[str, float]:
        """Collect and update, a second or so; scalars to log. ModelError if one is not finite."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        ...

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, in a learner made with the same arguments."""
        ...


class OneEnv:
    """A learner that flies all its robots in one environment."""

    env: ShieldedEnv

    @property
    def env_steps(self) -> int:
        """Periods flown so far, of all robots together."""
        return self.env.steps

    @property
    def violations(self) -> int:
        """Visited states outside the safe set so far."""
        return self.env.violations


def check_finite(scalars: dict[str, float], iteration: int, remedies: dict[str, str]) -> None:
    """ModelError naming the first scalar in `remedies` that is not finite, and what to lower."""
    for name, remedy in remedies.items():
        if not math.isfinite(scalars.get(name, 0.0)):
            raise ModelError(f"{name} is {scalars[name]} at iteration {iteration}; {remedy}")


def flown_scalars(transitions: Sequence[Transition]) -> dict[str, float]:
    """What the robots did in some periods; "return": of ended episodes that began at the start
    of the task, absent where there is none.
    """
    verdicts = np.stack([t.verdict for t in transitions])
    scalars = {
        "reward": float(np.mean([t.reward for t in transitions])),
        "intervention": float((verdicts != PASSED).mean()),
        "backup": float((verdicts == BACKUP).mean()),
    }
    finished = np.concatenate([t.returns[t.ended] for t in transitions])
    finished = finished[np.isfinite(finished)]
    return scalars | ({"return": float(finished.mean())} if len(finished) else {})


class ReturnScale:
    """Running standard deviation of the discounted return: what rewards are divided by.

    Robots without a number for it would each need their own learning rates and entropy weights.
    What lies more than about `window` env steps back is forgotten: at first everything is bad.
    """

    def __init__(self, count: int, discount: float, window: int = 50_000) -> None:
        self.discount, self.window = discount, window
        self._return = np.zeros(count)
        self._count = self._mean = self._variance = 0.0

    @property
    def value(self) -> float:
        """1 as long as nothing was seen."""
        return max(1e-6, math.sqrt(self._variance)) if self._count else 1.0

    def update(self, reward: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        """One period of all robots: rewards and ends of episodes (B,)."""
        self._return = self.discount * self._return + reward
        self._count = min(self._count + len(reward), self.window)
        share = min(1.0, len(reward) / self._count)
        change = float(self._return.mean()) - self._mean
        inside = float(self._return.var())
        self._mean += share * change
        self._variance += share * (inside - self._variance + (1.0 - share) * change**2)
        self._return[ended] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        own = {"count": self._count, "mean": self._mean, "variance": self._variance}
        return {**own, "return": torch.from_numpy(self._return.copy())}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self._count, self._mean = stored["count"], stored["mean"]
        self._variance = stored["variance"]
        self._return = stored["return"].numpy().copy()
