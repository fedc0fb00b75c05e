"""The nouns that a robot definition is made of: channels, control-affine systems, integrators.

    control-affine system   ẋ = f(x) + g(x) u        x in R^n, u in a box of R^m

Every function is batched over leading dimensions, differentiable, and works in the dtype of its
input, so that the same code is trained with, traced, certified and flown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from safe_rl_core.bundle import Channel
from torch import Tensor

Dynamics = Callable[[Tensor, Tensor], Tensor]


class ControlAffineSystem(Protocol):
    """A robot: its channels, its vector field and its map over one control period."""

    @property
    def states(self) -> tuple[Channel, ...]:
        """The n state components in order."""
        ...

    @property
    def inputs(self) -> tuple[Channel, ...]:
        """The m input components in order; their bounds are the input box."""
        ...

    @property
    def period(self) -> float:
        """Control period in s; the input is held constant over it."""
        ...

    def drift(self, x: Tensor) -> Tensor:
        """f(x): (..., n) -> (..., n)."""
        ...

    def input_matrix(self, x: Tensor) -> Tensor:
        """g(x): (..., n) -> (..., n, m)."""
        ...

    def step(self, x: Tensor, u: Tensor) -> Tensor:
        """The state after one period with u held: (..., n), (..., m) -> (..., n)."""
        ...


def dynamics(system: ControlAffineSystem, x: Tensor, u: Tensor) -> Tensor:
    """ẋ = f(x) + g(x) u: (..., n), (..., m) -> (..., n)."""
    return system.drift(x) + (system.input_matrix(x) * u.unsqueeze(-2)).sum(-1)


def euler(field: Dynamics, x: Tensor, u: Tensor, dt: float) -> Tensor:
    """One explicit Euler step of `dt` seconds."""
    return x + dt * field(x, u)


def rk4(field: Dynamics, x: Tensor, u: Tensor, dt: float) -> Tensor:
    """One classical Runge-Kutta step of `dt` seconds with u held."""
    k1 = field(x, u)
    k2 = field(x + 0.5 * dt * k1, u)
    k3 = field(x + 0.5 * dt * k2, u)
    k4 = field(x + dt * k3, u)
    return x + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


def input_box(system: ControlAffineSystem, like: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper input bounds (m,) in the dtype and on the device of `like`."""
    low = torch.tensor([c.low for c in system.inputs], dtype=like.dtype, device=like.device)
    high = torch.tensor([c.high for c in system.inputs], dtype=like.dtype, device=like.device)
    return low, high


def clip_to_box(system: ControlAffineSystem, u: Tensor) -> Tensor:
    """The input moved into the box: (..., m) -> (..., m)."""
    low, high = input_box(system, u)
    return torch.minimum(torch.maximum(u, low), high)


def from_unit(low: float, high: float, w: Tensor) -> Tensor:
    """Map w in [-1, 1] linearly onto [low, high]."""
    return 0.5 * (low + high) + 0.5 * (high - low) * w
