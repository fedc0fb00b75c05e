"""Unicycle with speed as a state: the smallest robot that has to brake.

    ṗx = v cos θ     state  x = (px, py, theta, v)    m, m, rad, m/s
    ṗy = v sin θ     input  u = (accel, turn_rate)    m/s², rad/s
    θ̇  = turn_rate   frame  world, x along the lane; theta counter-clockwise from the x axis
    v̇  = accel

`Unicycle` is what the shield flies with: Runge-Kutta over a period of 0.05 s. `LaneUnicycle` is
the published plant without the position along the lane, x = (py, v, theta): explicit Euler at 0.05
s, then the speed clipped to [0, 12] m/s and the heading wrapped to [-pi, pi).

Source: LaValle, Planning Algorithms (2006), sec. 13.1.2, with the speed made a state;
constants of the published plant: PS2-RL, arXiv 2606.14536, and its released configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.control_affine import Channel, dynamics, euler, rk4

MAX_SPEED = 12.0


@dataclass(frozen=True)
class _Driven:
    """The parameters and the input box that both variants share."""

    max_accel: float = 5.0
    max_turn_rate: float = 1.0
    period: float = 0.05

    def __post_init__(self) -> None:
        for name in ("max_accel", "max_turn_rate", "period"):
            if not getattr(self, name) > 0.0:
                value = getattr(self, name)
                raise ModelError(f"{type(self).__name__}.{name} must be > 0, got {value}")

    @property
    def inputs(self) -> tuple[Channel, ...]:
        """(accel, turn_rate) and their box."""
        return (
            Channel("accel", "m/s^2", -self.max_accel, self.max_accel),
            Channel("turn_rate", "rad/s", -self.max_turn_rate, self.max_turn_rate),
        )


@dataclass(frozen=True)
class Unicycle(_Driven):
    """The unicycle with its position along the lane; see the module's equations."""

    @property
    def states(self) -> tuple[Channel, ...]:
        """(px, py, theta, v) with the operating box of the lane."""
        return (
            Channel("px", "m", -math.inf, math.inf),
            Channel("py", "m", -1.8, 1.8),
            Channel("theta", "rad", -math.pi / 3.0, math.pi / 3.0),
            Channel("v", "m/s", 0.0, MAX_SPEED),
        )

    def features(self, x: Tensor, bounded: frozenset[int]) -> Tensor:
        """(py, theta, v), and px first where the safe set limits it: what a network should see."""
        return x if 0 in bounded else x[..., 1:4]

    def drift(self, x: Tensor) -> Tensor:
        """f(x): the motion with zero input. (..., 4) -> (..., 4)."""
        theta, v = x[..., 2], x[..., 3]
        zero = torch.zeros_like(v)
        return torch.stack((v * torch.cos(theta), v * torch.sin(theta), zero, zero), -1)

    def input_matrix(self, x: Tensor) -> Tensor:
        """g(x): constant. (..., 4) -> (..., 4, 2)."""
        g = x.new_tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        return g.expand(*x.shape[:-1], 4, 2)

    def step(self, x: Tensor, u: Tensor) -> Tensor:
        """One period of Runge-Kutta. (..., 4), (..., 2) -> (..., 4)."""
        return rk4(lambda y, w: dynamics(self, y, w), x, u, self.period)


@dataclass(frozen=True)
class LaneUnicycle(_Driven):
    """The published plant: no position along the lane, Euler, clipped speed, wrapped heading."""

    @property
    def states(self) -> tuple[Channel, ...]:
        """(py, v, theta), the published order (Y, v, psi)."""
        return (
            Channel("py", "m", -1.8, 1.8),
            Channel("v", "m/s", 0.0, MAX_SPEED),
            Channel("theta", "rad", -math.pi / 3.0, math.pi / 3.0),
        )

    def features(self, x: Tensor, bounded: frozenset[int]) -> Tensor:
        """(py, v, theta): what a network should see, whatever the safe set limits."""
        return x

    def drift(self, x: Tensor) -> Tensor:
        """f(x). (..., 3) -> (..., 3)."""
        v, theta = x[..., 1], x[..., 2]
        zero = torch.zeros_like(v)
        return torch.stack((v * torch.sin(theta), zero, zero), -1)

    def input_matrix(self, x: Tensor) -> Tensor:
        """g(x): constant. (..., 3) -> (..., 3, 2)."""
        g = x.new_tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        return g.expand(*x.shape[:-1], 3, 2)

    def step(self, x: Tensor, u: Tensor) -> Tensor:
        """One Euler step, then the published clip and wrap. (..., 3), (..., 2) -> (..., 3)."""
        y = euler(lambda z, w: dynamics(self, z, w), x, u, self.period)
        v = torch.clamp(y[..., 1], 0.0, MAX_SPEED)
        theta = y[..., 2]
        wrapped = theta - 2.0 * math.pi * torch.floor((theta + math.pi) / (2.0 * math.pi))
        return torch.stack((y[..., 0], v, wrapped), -1)
