"""Quadrotor with collective thrust and body rates as inputs, ten states.

    ṗ = v                        state  x = (px, py, pz, vx, vy, vz, qw, qx, qy, qz)
    v̇ = thrust · R(q) e3 - g e3         m, m/s; q unit quaternion, body to world
    q̇ = ½ q ∘ (0, rate)          input  u = (thrust, rate_x, rate_y, rate_z)
                                        m/s² (mass-normalised), rad/s in the body frame
                                 frame  world ENU (z up), body FLU

Body rates are inputs: no rotational inertia, no motor lag, no drag. `integrator` "rk4" is what the
shield flies with, "euler" is the published plant; both normalise the quaternion after the step.

Source: PS2-RL, arXiv 2606.14536, and its released configuration (thrust up to 4 g, rates up to
18 rad/s, 0.02 s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.control_affine import Channel, dynamics, euler, rk4
from safe_rl_systems.quaternion import body_z, normalised

GRAVITY = 9.81
_INTEGRATORS = {"rk4": rk4, "euler": euler}


@dataclass(frozen=True)
class Quadrotor:
    """The ten-state quadrotor; see the module's equations."""

    max_thrust: float = 4.0 * GRAVITY
    max_rate: float = 18.0
    period: float = 0.02
    integrator: str = "rk4"

    def __post_init__(self) -> None:
        for name in ("max_thrust", "max_rate", "period"):
            if not getattr(self, name) > 0.0:
                raise ModelError(f"Quadrotor.{name} must be > 0, got {getattr(self, name)}")
        if self.integrator not in _INTEGRATORS:
            raise ModelError(
                f"Quadrotor.integrator must be one of {list(_INTEGRATORS)}, "
                f"got {self.integrator!r}"
            )

    @property
    def states(self) -> tuple[Channel, ...]:
        """Position, velocity, quaternion; the operating box of the powerloop."""
        return (
            Channel("px", "m", -4.0, 4.0),
            Channel("py", "m", -4.0, 4.0),
            Channel("pz", "m", 0.2, 3.0),
            *(Channel(name, "m/s", -6.0, 6.0) for name in ("vx", "vy", "vz")),
            *(Channel(name, "1", -1.0, 1.0) for name in ("qw", "qx", "qy", "qz")),
        )

    @property
    def inputs(self) -> tuple[Channel, ...]:
        """(thrust, rate_x, rate_y, rate_z) and their box."""
        return (
            Channel("thrust", "m/s^2", 0.0, self.max_thrust),
            *(
                Channel(f"rate_{axis}", "rad/s", -self.max_rate, self.max_rate)
                for axis in ("x", "y", "z")
            ),
        )

    def drift(self, x: Tensor) -> Tensor:
        """f(x): free fall with frozen attitude. (..., 10) -> (..., 10)."""
        gravity = x.new_tensor([0.0, 0.0, -GRAVITY]).expand_as(x[..., 0:3])
        return torch.cat((x[..., 3:6], gravity, torch.zeros_like(x[..., 6:10])), -1)

    def input_matrix(self, x: Tensor) -> Tensor:
        """g(x): thrust along the body z axis, rates through ½ Ξ(q). (..., 10) -> (..., 10, 4)."""
        qw, qx, qy, qz = x[..., 6:10].unbind(-1)
        up = body_z(x[..., 6:10])
        thrust = torch.cat((torch.zeros_like(up), up, torch.zeros_like(x[..., 6:10])), -1)
        still = torch.zeros_like(x[..., 0:6])
        rates = (
            torch.stack((-qx, qw, qz, -qy), -1),
            torch.stack((-qy, -qz, qw, qx), -1),
            torch.stack((-qz, qy, -qx, qw), -1),
        )
        columns = [thrust, *(torch.cat((still, 0.5 * column), -1) for column in rates)]
        return torch.stack(columns, -1)

    def step(self, x: Tensor, u: Tensor) -> Tensor:
        """One period, then the quaternion normalised. (..., 10), (..., 4) -> (..., 10)."""
        y = _INTEGRATORS[self.integrator](lambda z, w: dynamics(self, z, w), x, u, self.period)
        return torch.cat((y[..., 0:6], normalised(y[..., 6:10])), -1)
