"""Base sets: where the base controller alone keeps the robot safe for ever.

`EllipsoidBaseSet` is the published one,  h_B(x) = c - eᵀ P e.

`HoverBaseSet` adds the lateral limits, which the published set leaves out. Inside the ellipsoid
the closed loop comes to rest at about x∞ = px + aᵀ e (the invariant of the linearised loop, exact
to first order), and what the nonlinear loop adds to x∞ per step is at most a multiple of V, of
which each step consumes a share. Hence for each lateral limit L the row

    L - gap - |x∞| - drift_per_level · V >= 0

stays non-negative once it is, and `gap` covers how far px can be from x∞ on the way.
The level c and the constants are checked by sampling, not proved: see docs/theory.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.backup.lqr import LinearFeedback, hover_linearisation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EllipsoidBaseSet:
    """h_B(x) = level - V(x) for the Lyapunov function V of a base controller."""

    controller: LinearFeedback
    level: float

    names: tuple[str, ...] = ("ellipsoid",)

    def __post_init__(self) -> None:
        if not self.level > 0.0:
            raise ModelError(f"the level of a base set must be > 0, got {self.level}")

    def __call__(self, x: Tensor) -> Tensor:
        """h_B(x): (..., n) -> (..., 1)."""
        return (self.level - self.controller.level(x)).unsqueeze(-1)


@dataclass(frozen=True)
class HoverBaseSet:
    """The hover ellipsoid with the lateral limits abs(px), abs(py) <= lateral_limit."""

    controller: LinearFeedback
    level: float
    lateral_limit: float
    drift_per_level: float

    names: tuple[str, ...] = (
        "ellipsoid",
        "rest_x_upper",
        "rest_x_lower",
        "rest_y_upper",
        "rest_y_lower",
    )

    def __post_init__(self) -> None:
        if not (self.level > 0.0 and self.drift_per_level > 0.0):
            raise ModelError(
                "HoverBaseSet needs level > 0 and drift_per_level > 0, "
                f"got {self.level} and {self.drift_per_level}"
            )
        if not self.lateral_limit > self.gap:
            raise ModelError(
                f"lateral_limit must exceed the stopping gap {self.gap:.3f} m, "
                f"got {self.lateral_limit}"
            )

    @property
    def rest_weights(self) -> Array:
        """(2, 7): a_x, a_y with x∞ = px + a_xᵀ e, y∞ = py + a_yᵀ e.

        From the exact zero-order-hold map of (px, py, e) linearised at hover: a solves
        a = c + A_clᵀ a, where px⁺ = px + cᵀ e, e⁺ = A_cl e under the base controller.
        """
        a, b = hover_linearisation()
        system = np.zeros((13, 13))
        system[0, 3] = system[1, 4] = 1.0
        system[2:9, 2:9], system[2:9, 9:13] = a, b
        held = scipy.linalg.expm(self.controller.system.period * system)
        closed_loop = held[:9, 2:9] - held[:9, 9:13] @ self.controller.gain
        travel, error_map = closed_loop[:2], closed_loop[2:]
        return np.linalg.solve((np.eye(7) - error_map).T, travel.T).T

    @property
    def gap(self) -> float:
        """Largest abs(px - x∞) - drift_per_level · V over the ellipsoid, in m."""
        spread = np.linalg.inv(self.controller.value)
        reach = max(float(np.sqrt(w @ spread @ w)) for w in self.rest_weights)
        return reach * reach / (4.0 * self.drift_per_level)

    def __call__(self, x: Tensor) -> Tensor:
        """h_B(x): (..., 10) -> (..., 5)."""
        level = self.controller.level(x)
        weights = torch.as_tensor(self.rest_weights, dtype=x.dtype, device=x.device)
        rest = x[..., 0:2] + (weights * self.controller.error(x).unsqueeze(-2)).sum(-1)
        room = self.lateral_limit - self.gap - self.drift_per_level * level
        rest_x, rest_y = rest[..., 0], rest[..., 1]
        return torch.stack(
            (self.level - level, room - rest_x, room + rest_x, room - rest_y, room + rest_y), -1
        )
