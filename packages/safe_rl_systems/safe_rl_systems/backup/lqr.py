"""Base controllers: discrete linear-quadratic regulators of an error e(x).

    u = u* - K e(x),   V(x) = eᵀ P e,   K and P from the discrete algebraic Riccati equation of the
    forward-Euler linearisation e⁺ = (I + Δt A) e + Δt B (u - u*).

Unicycle: e = (py, v - v*, theta).  Quadrotor: e = (pz - z*, vx, vy, vz, tilt), where
tilt = -2 sign(qw) (qx, qy, qz); hence ṫilt = -rate to first order, v̇x = -g tilt_y, v̇y = g tilt_x.

Source of the weights and of the error coordinates: PS2-RL's released configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from safe_rl_systems.control_affine import ControlAffineSystem, clip_to_box
from safe_rl_systems.quaternion import sign
from safe_rl_systems.systems.quadrotor import GRAVITY

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LinearFeedback:
    """u = u* - K e(x), clipped to the input box, with its Lyapunov function V = eᵀ P e.

    `gain` (m, k), `value` (k, k), `equilibrium_input` (m,); `error` maps (..., n) -> (..., k).
    """

    system: ControlAffineSystem
    error: Callable[[Tensor], Tensor]
    gain: Array
    value: Array
    equilibrium_input: Array

    def __call__(self, x: Tensor) -> Tensor:
        """The clipped feedback: (..., n) -> (..., m)."""
        gain = torch.as_tensor(self.gain, dtype=x.dtype, device=x.device)
        rest = torch.as_tensor(self.equilibrium_input, dtype=x.dtype, device=x.device)
        u = rest - (gain * self.error(x).unsqueeze(-2)).sum(-1)
        return clip_to_box(self.system, u)

    def level(self, x: Tensor) -> Tensor:
        """V(x) = eᵀ P e: (..., n) -> (...)."""
        value = torch.as_tensor(self.value, dtype=x.dtype, device=x.device)
        e = self.error(x)
        return ((value * e.unsqueeze(-2)).sum(-1) * e).sum(-1)


def dlqr(a: Array, b: Array, q: Array, r: Array, dt: float) -> tuple[Array, Array]:
    """Gain K and cost-to-go P of the forward-Euler discretisation of ė = A e + B u."""
    a_d, b_d = np.eye(len(a)) + dt * a, dt * b
    p = scipy.linalg.solve_discrete_are(a_d, b_d, q, r)
    k = np.linalg.solve(r + b_d.T @ p @ b_d, b_d.T @ p @ a_d)
    return _without_dust(k), _without_dust(p)


def _without_dust(matrix: Array) -> Array:
    """Entries that are zero but for rounding become zero, so that the traced program is short."""
    return np.where(np.abs(matrix) < 1e-12 * np.abs(matrix).max(), 0.0, matrix)


@dataclass(frozen=True)
class LaneError:
    """e = (py, v - cruise_speed, theta), read off the named states."""

    py: int
    v: int
    theta: int
    cruise_speed: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., 3)."""
        return torch.stack(
            (x[..., self.py], x[..., self.v] - self.cruise_speed, x[..., self.theta]), -1
        )


def lane_lqr(system: ControlAffineSystem, cruise_speed: float = 5.0) -> LinearFeedback:
    """Hold the lane centre at `cruise_speed` m/s: Q = I, R = diag(0.01, 0.5)."""
    names = [channel.name for channel in system.states]
    error = LaneError(names.index("py"), names.index("v"), names.index("theta"), cruise_speed)
    a = np.zeros((3, 3))
    a[0, 2] = cruise_speed
    b = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    k, p = dlqr(a, b, np.eye(3), np.diag([0.01, 0.5]), system.period)
    return LinearFeedback(system, error, k, p, np.zeros(2))


@dataclass(frozen=True)
class HoverError:
    """e = (pz - height, vx, vy, vz, tilt_x, tilt_y, tilt_z); px and py are free."""

    height: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., 10) -> (..., 7)."""
        tilt = -2.0 * sign(x[..., 6:7]) * x[..., 7:10]
        return torch.cat((x[..., 2:3] - self.height, x[..., 3:6], tilt), -1)


def hover_lqr(system: ControlAffineSystem, height: float = 2.0) -> LinearFeedback:
    """Hold `height` m at rest, level, heading along the world x axis; drift in px, py is free."""
    a, b = hover_linearisation()
    q = np.diag([1.0, 0.16, 0.16, 0.4, 0.8, 0.8, 0.16])
    r = np.diag([0.02, 0.012, 0.012, 0.004])
    k, p = dlqr(a, b, q, r, system.period)
    return LinearFeedback(system, HoverError(height), k, p, np.array([GRAVITY, 0.0, 0.0, 0.0]))


def hover_linearisation() -> tuple[Array, Array]:
    """A (7, 7) and B (7, 4) of the hover error around hover."""
    a, b = np.zeros((7, 7)), np.zeros((7, 4))
    a[0, 3] = 1.0
    a[1, 5], a[2, 4] = -GRAVITY, GRAVITY
    b[3, 0] = 1.0
    b[4, 1] = b[5, 2] = b[6, 3] = -1.0
    return a, b
