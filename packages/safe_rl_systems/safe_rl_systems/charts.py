"""Error charts: how far one state is from another, in coordinates in which little else matters.

    difference(x, z) = e,   retract(z, e) = x        inverse to each other near e = 0

The error dynamics of a robot, e⁺ as a function of e and of what the reference does, depend on the
reference only through a few *schedule* variables s = schedule(z, u). A chart names them and gives
one reference per s, from which `safe_rl_systems.build` traces

    error_map(s, e, v, w) = difference(retract(F(retract(z, e), u + v), w), F(z, u))

for the input deviation v and the disturbance w of one period. Why no other reference of the same s
gives anything else is said at each chart. A chart may arrange the same map so that intervals stay
narrow; the certificate checker compares it with the line above at random references.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from safe_rl_systems.control_affine import ControlAffineSystem
from safe_rl_systems.quaternion import conjugate, cross, from_vector, multiply, rotate, sign
from safe_rl_systems.systems.quadrotor import half_turn, thrust_shares


class Chart(Protocol):
    """Error coordinates (k), state (n), input (m), schedule (p)."""

    @property
    def errors(self) -> tuple[tuple[str, str], ...]:
        """Name and unit of the k error channels."""
        ...

    @property
    def num_schedule(self) -> int:
        """p."""
        ...

    def difference(self, x: Tensor, z: Tensor) -> Tensor:
        """e of x relative to z. (..., n), (..., n) -> (..., k)."""
        ...

    def retract(self, z: Tensor, e: Tensor) -> Tensor:
        """The state with error e relative to z. (..., n), (..., k) -> (..., n)."""
        ...

    def schedule(self, x: Tensor, u: Tensor) -> Tensor:
        """(..., n), (..., m) -> (..., p)."""
        ...

    def reference(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """One state and input with schedule s. (..., p) -> (..., n), (..., m)."""
        ...

    def error_map(self, s: Tensor, e: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """e⁺. (..., p), (..., k), (..., m), (..., k) -> (..., k)."""
        ...


@dataclass(frozen=True)
class BodyFrameChart:
    """Quadrotor: position, velocity and attitude error in the reference's body frame.

        e = (R(q_z)ᵀ (p - p_z), R(q_z)ᵀ (v - v_z), 2 sign(w) vec(q_z⁻¹ ∘ q))

    The exact flow commutes with a common rotation and translation of x and z up to the fall of
    gravity and the travel v Δt, which both share; so e⁺ depends on the inputs alone, s = u.
    """

    period: float

    @property
    def errors(self) -> tuple[tuple[str, str], ...]:
        """Body-frame position (m), velocity (m/s) and attitude (rad, to second order)."""
        axes = ("x", "y", "z")
        return (
            *((f"p_{a}", "m") for a in axes),
            *((f"v_{a}", "m/s") for a in axes),
            *((f"tilt_{a}", "rad") for a in axes),
        )

    @property
    def num_schedule(self) -> int:
        """Thrust and the three rates."""
        return 4

    def difference(self, x: Tensor, z: Tensor) -> Tensor:
        """(..., 10), (..., 10) -> (..., 9)."""
        back = conjugate(z[..., 6:10])
        turn = multiply(back, x[..., 6:10])
        return torch.cat(
            (
                rotate(back, x[..., 0:3] - z[..., 0:3]),
                rotate(back, x[..., 3:6] - z[..., 3:6]),
                2.0 * sign(turn[..., 0:1]) * turn[..., 1:4],
            ),
            -1,
        )

    def retract(self, z: Tensor, e: Tensor) -> Tensor:
        """(..., 10), (..., 9) -> (..., 10)."""
        q = z[..., 6:10]
        return torch.cat(
            (
                z[..., 0:3] + rotate(q, e[..., 0:3]),
                z[..., 3:6] + rotate(q, e[..., 3:6]),
                multiply(q, from_vector(0.5 * e[..., 6:9])),
            ),
            -1,
        )

    def schedule(self, x: Tensor, u: Tensor) -> Tensor:
        """The input. (..., 10), (..., 4) -> (..., 4)."""
        return 1.0 * u

    def reference(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """At rest in the origin, level. (..., 4) -> (..., 10), (..., 4)."""
        zero, one = torch.zeros_like(s[..., 0]), torch.ones_like(s[..., 0])
        return torch.stack((*(zero,) * 6, one, zero, zero, zero), -1), s

    def error_map(self, s: Tensor, e: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """e⁺ in the frame in which the reference starts level in the origin and turns by a.

        With q_1 = exp(½ a), q_2 = exp(½ (a + b)) and the attitude error d the new one is
        q_1⁻¹ ∘ d ∘ q_2 = (q_1⁻¹ ∘ d ∘ q_1) ∘ (q_1⁻¹ ∘ q_2): a rotation of d, then a factor that is
        near 1 because b is small. Written as one product, intervals would lose both facts.
        """
        dt = self.period
        a, b = dt * s[..., 1:4], dt * v[..., 1:4]
        (c1, s1), (c2, s2) = half_turn(a), half_turn(a + b)
        back = torch.cat((c1, -s1 * a), -1)
        before, after = thrust_shares(a), thrust_shares(a + b)
        tilt = from_vector(0.5 * e[..., 6:9])
        thrust, push = s[..., 0:1], s[..., 0:1] + v[..., 0:1]
        moved = [push * rotate(tilt, y) - thrust * x for x, y in zip(before, after, strict=True)]
        speed = rotate(back, e[..., 3:6] + dt * moved[0])
        place = rotate(back, e[..., 0:3] + dt * (e[..., 3:6] + dt * moved[1]))
        apart = torch.cat(
            (
                c1 * c2 + s1 * s2 * (a * (a + b)).sum(-1, keepdim=True),
                c1 * s2 * b + (c1 * s2 - c2 * s1) * a - s1 * s2 * cross(a, b),
            ),
            -1,
        )
        turned = torch.cat((tilt[..., 0:1], rotate(back, tilt[..., 1:4])), -1)
        attitude = multiply(turned, apart)
        final = multiply(attitude, from_vector(0.5 * w[..., 6:9]))
        return torch.cat(
            (
                place + rotate(attitude, w[..., 0:3]),
                speed + rotate(attitude, w[..., 3:6]),
                2.0 * sign(final[..., 0:1]) * final[..., 1:4],
            ),
            -1,
        )


@dataclass(frozen=True)
class LaneChart:
    """Unicycle: the plain differences of (py, theta, v).

    px moves nothing and bounds nothing, so it has no error; py enters its own motion only by
    itself, so e⁺ depends on s = (theta, v, accel, turn_rate).
    """

    system: ControlAffineSystem

    @property
    def errors(self) -> tuple[tuple[str, str], ...]:
        """Lateral position, heading, speed."""
        return (("py", "m"), ("theta", "rad"), ("v", "m/s"))

    @property
    def num_schedule(self) -> int:
        """Heading, speed and the two inputs."""
        return 4

    def difference(self, x: Tensor, z: Tensor) -> Tensor:
        """(..., 4), (..., 4) -> (..., 3)."""
        return x[..., 1:4] - z[..., 1:4]

    def retract(self, z: Tensor, e: Tensor) -> Tensor:
        """(..., 4), (..., 3) -> (..., 4)."""
        return torch.cat((z[..., 0:1], z[..., 1:4] + e), -1)

    def schedule(self, x: Tensor, u: Tensor) -> Tensor:
        """(theta, v, accel, turn_rate). (..., 4), (..., 2) -> (..., 4)."""
        return torch.cat((x[..., 2:4], u), -1)

    def reference(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """In the origin. (..., 4) -> (..., 4), (..., 2)."""
        zero = torch.zeros_like(s[..., 0])
        return torch.stack((zero, zero, s[..., 0], s[..., 1]), -1), s[..., 2:4]

    def error_map(self, s: Tensor, e: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """As the module says it."""
        z, u = self.reference(s)
        moved = self.system.step(self.retract(z, e), u + v)
        return self.difference(self.retract(moved, w), self.system.step(z, u))
