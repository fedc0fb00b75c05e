"""Where a closed-loop run begins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safe_rl_core import RobustShield
from safe_rl_core.assumed import AssumedPlant
from safe_rl_core.loop import recoverable_state
from safe_rl_core.shield import Reason


def with_plan(
    shield: RobustShield, plant: AssumedPlant, seed: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A state (n,) from whose estimate the shield finds a plan at once (A5); resets both."""
    while True:
        start = recoverable_state(shield.bundle, rng)
        shield.reset()
        if shield.step(plant.reset(seed, start), None).reason is not Reason.NO_PLAN_YET:
            shield.reset()
            return start
