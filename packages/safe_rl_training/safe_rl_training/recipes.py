"""The settings of each tracker, frozen before its final evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS

from safe_rl_training.parts.actuators import Imperfection


@dataclass(frozen=True)
class Recipe:
    """All settings of one training; the symbols are those of `tracker.py`.

    `robot` is a key of ROBOTS; `state_cost` w_i per state name in 1/unit²; `cost_scale` s; `keep`
    d_j per safe-set row in the row's unit; `tested_lags` (s, per input) are evaluated by name;
    `horizon` (first, last) in steps; `learning_rate` (first, last) of a cosine.
    """

    robot: str
    imperfection: Imperfection
    state_cost: dict[str, float]
    keep: dict[str, float]
    cost_scale: float
    smoothness: float
    tested_lags: dict[str, tuple[float, ...]] = field(default_factory=dict)
    keep_weight: float = 50.0
    hidden: int = 64
    batch: int = 512
    iterations: int = 2000
    horizon: tuple[int, int] = (20, 60)
    learning_rate: tuple[float, float] = (3e-3, 2e-5)
    gradient_limit: float = 1.0

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS:
            raise ModelError(f"unknown robot {self.robot!r}; choose one of {sorted(ROBOTS)}")
        if not 0 < self.horizon[0] <= self.horizon[1]:
            raise ModelError(f"horizon must be 0 < first <= last, got {self.horizon}")
        robot = ROBOTS[self.robot]()
        unknown = set(self.keep) - set(robot.safe_set.names)
        unknown |= set(self.state_cost) - {c.name for c in robot.system.states}
        if unknown:
            raise ModelError(f"{self.robot} has no states or rows called {sorted(unknown)}")

    def horizon_at(self, iteration: int) -> int:
        """Steps per rollout: grows linearly over the first half of training."""
        share = min(1.0, 2.0 * iteration / self.iterations)
        return round(self.horizon[0] + share * (self.horizon[1] - self.horizon[0]))

    def learning_rate_at(self, iteration: int) -> float:
        """Cosine from the first to the last learning rate."""
        first, last = self.learning_rate
        cosine = 0.5 * (1.0 + math.cos(math.pi * iteration / self.iterations))
        return last + (first - last) * cosine


RECIPES: dict[str, Recipe] = {
    "quadrotor": Recipe(
        robot="quadrotor_powerloop",
        imperfection=Imperfection(
            lag=((0.015, 0.05), (0.015, 0.045), (0.015, 0.045), (0.015, 0.045)),
            gain=((0.85, 1.15), (0.95, 1.05), (0.95, 1.05), (0.95, 1.05)),
            drift={"vx": 0.3, "vy": 0.3, "vz": 0.3},
        ),
        state_cost={"px": 12.0, "py": 12.0, "pz": 12.0},
        keep={"floor": 0.2, "side_x_upper": 0.5, "side_x_lower": 0.5}
        | {"side_y_upper": 0.5, "side_y_lower": 0.5},
        cost_scale=20.0,
        smoothness=1.0,
        tested_lags={"lag 40 ms thrust, 30 ms rates": (0.04, 0.03, 0.03, 0.03)},
    ),
    "unicycle": Recipe(
        robot="unicycle_lane",
        imperfection=Imperfection(
            lag=((0.02, 0.08), (0.02, 0.08)),
            gain=((0.9, 1.1), (0.9, 1.1)),
            drift={"py": 0.05, "theta": 0.02, "v": 0.2},
        ),
        state_cost={"py": 10.0},
        keep={"heading_upper": 0.2, "heading_lower": 0.2, "speed_max": 1.0, "speed_min": 1.0},
        cost_scale=5.0,
        smoothness=0.5,
        tested_lags={"lag 50 ms": (0.05, 0.05)},
        batch=256,
        iterations=1500,
        horizon=(20, 80),
    ),
}
