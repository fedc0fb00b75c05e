"""Quadrotor with collective thrust and body rates as inputs, ten states.

    ṗ = v                        state  x = (px, py, pz, vx, vy, vz, qw, qx, qy, qz)
    v̇ = thrust · R(q) e3 - g e3         m, m/s; q unit quaternion, body to world
    q̇ = ½ q ∘ (0, rate)          input  u = (thrust, rate_x, rate_y, rate_z)
                                        m/s² (mass-normalised), rad/s in the body frame
                                 frame  world ENU (z up), body FLU

Body rates are inputs: no rotational inertia, no motor lag, no drag. `integrator` "rk4" is what the
nominal shield flies with, "euler" is the published plant, "exact" the closed-form flow under held
inputs, with a = rate Δt and z = |a|:

    v⁺ = v - g Δt e3    + thrust Δt  R(q) (  e3 + g1 a×e3 + g2 a×(a×e3))    g1 = (1 - cos z)/z²
    p⁺ = p + v Δt - ½ g Δt² e3
                        + thrust Δt² R(q) (½ e3 + g2 a×e3 + g3 a×(a×e3))    g2 = (z - sin z)/z³
    q⁺ = q ∘ exp(½ a)                                            g3 = (z²/2 - 1 + cos z)/z⁴

The entire functions of z² are taken as Taylor polynomials whose next term is below 1e-16 for every
rate in the box. All three normalise the quaternion after the step.

Source: PS2-RL, arXiv 2606.14536, and its released configuration (thrust up to 4 g, rates up to
18 rad/s, 0.02 s).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.control_affine import Channel, dynamics, euler, rk4
from safe_rl_systems.quaternion import body_x, body_z, cross, multiply, normalised, rotate

GRAVITY = 9.81
_INTEGRATORS = {"rk4": rk4, "euler": euler}
_EXACT = "exact"
_TERMS = 8


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
        if self.integrator not in (*_INTEGRATORS, _EXACT):
            raise ModelError(
                f"Quadrotor.integrator must be one of {[*_INTEGRATORS, _EXACT]}, "
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

    def features(self, x: Tensor, bounded: frozenset[int]) -> Tensor:
        """(px, py, pz, v, body x axis, body z axis); px, py only where the safe set limits them.

        The two axes say the attitude once: q and -q give the same.
        """
        q = x[..., 6:10]
        place = x[..., 0:3] if {0, 1} & bounded else x[..., 2:3]
        return torch.cat((place, x[..., 3:6], body_x(q), body_z(q)), -1)

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
        if self.integrator == _EXACT:
            return self._flow(x, u)
        y = _INTEGRATORS[self.integrator](lambda z, w: dynamics(self, z, w), x, u, self.period)
        return torch.cat((y[..., 0:6], normalised(y[..., 6:10])), -1)

    def _flow(self, x: Tensor, u: Tensor) -> Tensor:
        dt, q, a = self.period, x[..., 6:10], self.period * u[..., 1:4]
        velocity, position = thrust_shares(a)
        c, half = half_turn(a)
        push = dt * u[..., 0:1]
        up = torch.zeros_like(a) + a.new_tensor([0.0, 0.0, 1.0])
        p, v, fall = x[..., 0:3], x[..., 3:6], GRAVITY * dt * up
        return torch.cat(
            (
                p + dt * (v - 0.5 * fall) + dt * push * rotate(q, position),
                v - fall + push * rotate(q, velocity),
                normalised(multiply(q, torch.cat((c, half * a), -1))),
            ),
            -1,
        )


def thrust_shares(a: Tensor) -> tuple[Tensor, Tensor]:
    """What unit thrust adds to v/Δt and p/Δt² in the body frame, turning by a. -> 2 × (..., 3)."""
    square = (a * a).sum(-1, keepdim=True)
    up = torch.zeros_like(a) + a.new_tensor([0.0, 0.0, 1.0])
    side = cross(a, up)
    back = cross(a, side)
    g1, g2, g3 = (_series(square, order) for order in (2, 3, 4))
    return up + g1 * side + g2 * back, 0.5 * up + g2 * side + g3 * back


def half_turn(a: Tensor) -> tuple[Tensor, Tensor]:
    """exp(½ a) = (c, s a): c and s, (..., 1) each."""
    quarter = 0.25 * (a * a).sum(-1, keepdim=True)
    return _series(quarter, 0), 0.5 * _series(quarter, 1)


def _series(square: Tensor, order: int) -> Tensor:
    """Sum over i of (-square)^i / (2 i + order)!: cos, sinc, g1, g2, g3 for order 0 to 4."""
    total = torch.zeros_like(square)
    for i in reversed(range(_TERMS)):
        total = 1.0 / math.factorial(2 * i + order) - square * total
    return total
