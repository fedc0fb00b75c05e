"""Powerloop: fly a vertical circle whose top lies above the ceiling.

Circle in the x-z plane, radius 1.5 m, centre (0, 0, 2) m, 4.5 m/s, started at the bottom with the
velocity along -x; one loop lasts 2.0944 s and is repeated. With phi = 3 rad/s · t:

    p = (-R sin phi, 0, 2 - R cos phi)
    thrust direction d ~ p̈ + g e3, attitude = pitch by atan2(d_x, d_z)

so the attitude is a pure pitch that turns by 360 degrees per loop. The observation does not change
when the quaternion changes its sign, which it does once per loop.

    reward = -[2.5 (ex² + ey²) + 2 ez² + 4 |ev|² + 16 |vec(q_err)|²
               + (0.1, 0.2, 0.05) · (rate - rate_ref)² + 0.01 thrust² + 0.01 |rate|²]

with the errors after the step and the reference rate averaged over it.
Source: PS2-RL's released configuration (reference, reward, start states). The observation is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_rl_systems.control_affine import from_unit
from safe_rl_systems.quaternion import body_x, body_z, uniform, vector_error
from safe_rl_systems.systems.quadrotor import GRAVITY, Quadrotor


@dataclass(frozen=True)
class Powerloop:
    """The task of the module docstring for a quadrotor."""

    system: Quadrotor
    radius: float = 1.5
    height: float = 2.0
    speed: float = 4.5
    start_spread: float = 0.1

    name = "powerloop"
    start_dimension = 3
    operating_dimension = 9
    tracked = ("px", "py", "pz", "vx", "vy", "vz")

    @property
    def rate(self) -> float:
        """Angular speed along the circle in rad/s."""
        return self.speed / self.radius

    @property
    def lap(self) -> float:
        """Duration of one loop in s."""
        return 2.0 * math.pi / self.rate

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names and units of the observation, in order."""
        axes = ("x", "y", "z")
        return (
            *(f"position_error_{a} [m]" for a in axes),
            *(f"velocity_error_{a} [m/s]" for a in axes),
            *(f"attitude_error_{a} [1]" for a in axes),
            *(f"velocity_{a} [m/s]" for a in axes),
            *(f"body_x_{a} [1]" for a in axes),
            *(f"body_z_{a} [1]" for a in axes),
            "height [m]",
            *(f"{f}_{k}_phase [1]" for k in (1, 2) for f in ("sin", "cos")),
        )

    def phase(self, t: Tensor) -> Tensor:
        """Angle along the circle, 0 at the bottom. (..., 1) -> (...)."""
        return self.rate * t[..., 0]

    def reference(self, t: Tensor) -> Tensor:
        """The reference state at task time t: (..., 1) -> (..., 10)."""
        phi = self.phase(t)
        sin, cos, zero = torch.sin(phi), torch.cos(phi), torch.zeros_like(phi)
        half = 0.5 * self.pitch(phi)
        return torch.stack(
            (
                -self.radius * sin,
                zero,
                self.height - self.radius * cos,
                -self.speed * cos,
                zero,
                self.speed * sin,
                torch.cos(half),
                zero,
                torch.sin(half),
                zero,
            ),
            -1,
        )

    def pitch(self, phi: Tensor) -> Tensor:
        """Pitch of the thrust direction, in (-pi, pi]. (...) -> (...)."""
        pull = self.rate * self.speed
        return torch.atan2(pull * torch.sin(phi), pull * torch.cos(phi) + GRAVITY)

    def observation(self, x: Tensor, t: Tensor) -> Tensor:
        """What the policy sees, in SI units: (..., 10), (..., 1) -> (..., 23)."""
        ref = self.reference(t)
        phi = self.phase(t)
        q = x[..., 6:10]
        harmonics = (torch.sin(phi), torch.cos(phi), torch.sin(2.0 * phi), torch.cos(2.0 * phi))
        return torch.cat(
            (
                x[..., 0:6] - ref[..., 0:6],
                vector_error(ref[..., 6:10], q),
                x[..., 3:6],
                body_x(q),
                body_z(q),
                x[..., 2:3],
                torch.stack(harmonics, -1),
            ),
            -1,
        )

    def reward(self, x_next: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """Reward of the step that ended in x_next at time t. -> (..., 1)."""
        ref = self.reference(t)
        e = x_next[..., 0:6] - ref[..., 0:6]
        tilt = vector_error(ref[..., 6:10], x_next[..., 6:10])
        rate_error = u[..., 1:4] - self.average_rate(t)
        weights = u.new_tensor([0.1, 0.2, 0.05])
        cost = (
            2.5 * (e[..., 0] ** 2 + e[..., 1] ** 2)
            + 2.0 * e[..., 2] ** 2
            + 4.0 * (e[..., 3:6] ** 2).sum(-1)
            + 16.0 * (tilt**2).sum(-1)
            + (weights * rate_error**2).sum(-1)
            + 0.01 * (u**2).sum(-1)
        )
        return -cost.unsqueeze(-1)

    def average_rate(self, t: Tensor) -> Tensor:
        """Reference body rate averaged over the period that ends at t: (..., 1) -> (..., 3)."""
        phi = self.phase(t)
        turn = self.pitch(phi) - self.pitch(phi - self.rate * self.system.period)
        turn = torch.atan2(torch.sin(turn), torch.cos(turn))
        zero = torch.zeros_like(turn)
        return torch.stack((zero, turn / self.system.period, zero), -1)

    def initial_state(self, w: Tensor) -> Tensor:
        """The task's starts: reference start, position spread by w in [-1, 1]^3. -> (..., 10)."""
        start = self.reference(torch.zeros_like(w[..., 0:1]))
        return torch.cat((start[..., 0:3] + self.start_spread * w, start[..., 3:10]), -1)

    def operating_state(self, w: Tensor) -> Tensor:
        """A state of the operating box from w in [-1, 1]^9, attitude uniform. -> (..., 10)."""
        box = self.system.states[0:6]
        parts = [from_unit(c.low, c.high, w[..., i]) for i, c in enumerate(box)]
        return torch.cat((torch.stack(parts, -1), uniform(w[..., 6:9])), -1)
