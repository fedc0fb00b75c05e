"""Quadrotor recovery: brake, level out and climb or sink to the hover height.

A virtual acceleration nu is chosen, the body z axis is turned towards it by the shortest rotation
(the heading is left free), and the thrust is its length:

    near = clip((m - (z_max - z)) / m, 0, 1)             how deep in the margin m below the ceiling
    nu_x = -k_xy (1 + 1.5 near) vx,  nu_y likewise
    nu_z = max(0, g - k_z (z - z*) - k_vz vz - 32 near - 18 near max(vz, 0))
    rate = (k, k, 0.35 k) ∘ vector part of the attitude error

The floor 0 on nu_z means that it never pushes downward on purpose. The published law has k_xy =
14, k_z = 36, k_vz = 24, k = 45 and takes the attitude error in the world frame
(`body_error=False`), which is right only for a heading along x; in the body frame it is right for
every heading. Those gains need rotors without lag: with 30 ms of it the vehicle tumbles
(benchmarks/README.md).

Source: PS2-RL's released configuration (analytic backup policy).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safe_rl_systems.control_affine import ControlAffineSystem, clip_to_box
from safe_rl_systems.quaternion import conjugate, multiply, shortest_from_z, sign
from safe_rl_systems.systems.quadrotor import GRAVITY


@dataclass(frozen=True)
class CascadeBackup:
    """The cascaded recovery law; gains in 1/s and 1/s²."""

    system: ControlAffineSystem
    ceiling: float
    height: float
    body_error: bool
    margin: float = 0.6
    lateral_gain: float = 14.0
    height_gain: float = 36.0
    climb_gain: float = 24.0
    rate_gain: float = 45.0

    def __call__(self, x: Tensor) -> Tensor:
        """(..., 10) -> (..., 4)."""
        nu = self.virtual_acceleration(x)
        length = torch.sqrt((nu * nu).sum(-1, keepdim=True))
        up = torch.zeros_like(nu) + nu.new_tensor([0.0, 0.0, 1.0])
        still = length < 1e-9
        direction = torch.where(
            still, up, nu / torch.where(still, torch.ones_like(length), length)
        )
        desired, actual = shortest_from_z(direction), x[..., 6:10]
        if self.body_error:
            error = multiply(conjugate(actual), desired)
        else:
            error = multiply(desired, conjugate(actual))
        gains = x.new_tensor([1.0, 1.0, 0.35]) * self.rate_gain
        rates = gains * sign(error[..., 0:1]) * error[..., 1:4]
        return clip_to_box(self.system, torch.cat((length, rates), -1))

    def virtual_acceleration(self, x: Tensor) -> Tensor:
        """nu in the world frame, m/s². (..., 10) -> (..., 3)."""
        z, v = x[..., 2], x[..., 3:6]
        near = torch.clamp((self.margin - (self.ceiling - z)) / self.margin, 0.0, 1.0)
        gain = self.lateral_gain * (1.0 + 1.5 * near)
        climb = v[..., 2]
        nu_z = (
            GRAVITY
            - self.height_gain * (z - self.height)
            - self.climb_gain * climb
            - 32.0 * near
            - 18.0 * near * torch.clamp(climb, min=0.0)
        )
        return torch.stack((-gain * v[..., 0], -gain * v[..., 1], torch.clamp(nu_z, min=0.0)), -1)
