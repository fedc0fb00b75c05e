"""Obstacle course: a unicycle in a walled yard, told to drive right through round obstacles.

A robot of your own in one file: system, sets, base controller, backup policy, task. Everything
else (program, kernel, shield, training) follows from `obstacle_course()`.

    ṗx = v cos θ    state  x = (px, py, theta, v)    m, m, rad, m/s; v from -0.5 (reverse) to 3
    ṗy = v sin θ    input  u = (accel, turn_rate)    m/s², rad/s
    θ̇  = turn_rate  frame  world, the origin in the middle of the yard; theta counter-clockwise
    v̇  = accel      period Δt = 0.05 s, exact but for Runge-Kutta's error in px and py

Safe set, one row each:   |p - c_i| - r_i      the distance to obstacle i
                          6 -+ px, 4 -+ py     the distance to each wall
                          3 - v, v + 0.5

Base controller: brake as hard as needed, straight on:  accel = clip(-v/Δt, -a, a), turn_rate = 0.
Base set: what can be braked so. For every distance row h_i and both speed rows, with a margin m,

    h_i(p) - m - D(v) >= 0      D(v) = v²/(2a) + |v| Δt/2

It is invariant, by hand. Full braking takes |v| to |v| - a Δt and travels at most |v| Δt, which is
what D loses; the last period takes |v| <= a Δt to 0 and travels |v| Δt/2 <= D(v). Distances change
by no more than what is travelled, and at v = 0 the robot stays where it is.

Backup policy: the same braking, but outside the base set it steers away from what is near, which
saves states from which braking alone would hit.

Task: a figure of eight, px = 4.5 sin φ, py = 2.6 sin 2φ with φ = 2π t / 20 s, which runs through
four of the obstacles, while the others narrow the ways round them. The observation holds the
errors in the robot's own frame, the state and the phase: the yard never changes.

    reward = -[ex² + ey² + 0.2 (1 - cos eθ) + 0.1 ev² + 0.02 (accel/a)² + 0.02 (turn_rate/r)²]

with the errors after the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from safe_rl_systems.control_affine import Channel, from_unit
from safe_rl_systems.robot import Robot
from safe_rl_systems.systems import Unicycle
from torch import Tensor

LENGTH, WIDTH = 6.0, 4.0
FASTEST, SLOWEST = 3.0, -0.5
MARGIN = 0.05
#: (px, py, radius) in m.
OBSTACLES = (
    (1.7, 1.9, 0.6),
    (4.65, -0.6, 0.5),
    (-2.6, 2.4, 0.55),
    (-3.2, -2.85, 0.5),
    (0.1, -2.2, 0.8),
    (2.3, -0.6, 0.45),
    (-2.3, 0.2, 0.6),
)


@dataclass(frozen=True)
class YardUnicycle(Unicycle):
    """The unicycle with the yard as its operating box."""

    max_accel: float = 3.0
    max_turn_rate: float = 2.0

    @property
    def states(self) -> tuple[Channel, ...]:
        """(px, py, theta, v)."""
        return (
            Channel("px", "m", -LENGTH, LENGTH),
            Channel("py", "m", -WIDTH, WIDTH),
            Channel("theta", "rad", -math.pi, math.pi),
            Channel("v", "m/s", SLOWEST, FASTEST),
        )

    def features(self, x: Tensor, bounded: frozenset[int]) -> Tensor:
        """(px, py, sin theta, cos theta, v): the same after a full turn. -> (..., 5)."""
        theta = x[..., 2:3]
        return torch.cat((x[..., 0:2], torch.sin(theta), torch.cos(theta), x[..., 3:4]), -1)


@dataclass(frozen=True)
class Yard:
    """The safe set: distances to obstacles and walls, then the room of the speed."""

    obstacles: tuple[tuple[float, float, float], ...] = OBSTACLES

    @property
    def names(self) -> tuple[str, ...]:
        """One name per row."""
        obstacles = tuple(f"obstacle_{i + 1}" for i in range(len(self.obstacles)))
        walls = ("wall_east", "wall_west", "wall_north", "wall_south")
        return (*obstacles, *walls, "speed_max", "speed_min")

    def distances(self, x: Tensor) -> Tensor:
        """To obstacles and walls, in m: (..., 4) -> (..., obstacles + 4)."""
        px, py = x[..., 0], x[..., 1]
        rows = [
            torch.sqrt((px - a) ** 2 + (py - b) ** 2 + 1e-12) - r for a, b, r in self.obstacles
        ]
        return torch.stack((*rows, LENGTH - px, LENGTH + px, WIDTH - py, WIDTH + py), -1)

    def away(self, x: Tensor) -> Tensor:
        """The gradient of each distance in px and py: (..., 4) -> (..., obstacles + 4, 2)."""
        px, py, zero = x[..., 0], x[..., 1], torch.zeros_like(x[..., 0])
        arrows = []
        for a, b, _ in self.obstacles:
            length = torch.sqrt((px - a) ** 2 + (py - b) ** 2 + 1e-12)
            arrows.append(torch.stack(((px - a) / length, (py - b) / length), -1))
        for east, north in ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)):
            arrows.append(torch.stack((zero + east, zero + north), -1))
        return torch.stack(arrows, -2)

    def __call__(self, x: Tensor) -> Tensor:
        """h(x): (..., 4) -> (..., rows)."""
        v = x[..., 3:4]
        return torch.cat((self.distances(x), FASTEST - v, v - SLOWEST), -1)


@dataclass(frozen=True)
class Brake:
    """The base controller: to a standstill as fast as the box allows, straight on."""

    system: Unicycle

    def __call__(self, x: Tensor) -> Tensor:
        """(..., 4) -> (..., 2)."""
        limit, v = self.system.max_accel, x[..., 3]
        accel = torch.clamp(-v / self.system.period, -limit, limit)
        return torch.stack((accel, torch.zeros_like(accel)), -1)

    def distance(self, x: Tensor) -> Tensor:
        """D(v), never less than what is travelled until the standstill: (..., 4) -> (..., 1)."""
        v = x[..., 3:4]
        return v * v / (2.0 * self.system.max_accel) + 0.5 * self.system.period * torch.abs(v)


@dataclass(frozen=True)
class Brakeable:
    """The base set: where `Brake` stops in time, straight on."""

    yard: Yard
    brake: Brake

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the safe set."""
        return self.yard.names

    def __call__(self, x: Tensor) -> Tensor:
        """h_B(x): (..., 4) -> (..., rows)."""
        v = x[..., 3:4]
        clear = self.yard.distances(x) - self.brake.distance(x)
        return torch.cat((clear, FASTEST - v, v - SLOWEST), -1) - MARGIN


@dataclass(frozen=True)
class BrakeAndSteer:
    """The backup policy: `Brake`; outside the base set it turns away from what is near as well."""

    yard: Yard
    brake: Brake
    base_set: Brakeable
    reach: float = 0.6
    gain: float = 8.0

    tunable = ("reach", "gain")

    def __call__(self, x: Tensor) -> Tensor:
        """(..., 4) -> (..., 2)."""
        straight = self.brake(x)
        near = torch.exp(-self.yard.distances(x) / self.reach).unsqueeze(-1)
        push = (near * self.yard.away(x)).sum(-2)
        theta = x[..., 2]
        left = push[..., 1] * torch.cos(theta) - push[..., 0] * torch.sin(theta)
        limit = self.brake.system.max_turn_rate
        turn = torch.clamp(self.gain * left, -limit, limit)
        inside = torch.ones_like(turn) > 0.0
        for row in self.base_set(x).unbind(-1):
            inside = inside & (row >= 0.0)
        return torch.stack(
            (straight[..., 0], torch.where(inside, torch.zeros_like(turn), turn)), -1
        )


@dataclass(frozen=True)
class FigureOfEight:
    """The task of the module docstring."""

    system: YardUnicycle
    length: float = 4.5
    width: float = 2.6
    lap: float = 20.0

    name = "figure_of_eight"
    start_dimension = 4
    operating_dimension = 4
    tracked = ("px", "py")

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names and units of the observation, in order."""
        errors = (
            "ahead_error [m]",
            "left_error [m]",
            "sin_theta_error [1]",
            "cos_theta_error [1]",
        )
        state = ("px [m]", "py [m]", "sin_theta [1]", "cos_theta [1]", "v [m/s]")
        phases = tuple(f"{f}_{k}_phase [1]" for k in (1, 2) for f in ("sin", "cos"))
        return (*errors, "v_error [m/s]", *state, *phases)

    def phase(self, t: Tensor) -> Tensor:
        """φ: (..., 1) -> (...)."""
        return 2.0 * math.pi / self.lap * t[..., 0]

    def reference(self, t: Tensor) -> Tensor:
        """The reference state at task time t: (..., 1) -> (..., 4)."""
        phi, rate = self.phase(t), 2.0 * math.pi / self.lap
        east = rate * self.length * torch.cos(phi)
        north = 2.0 * rate * self.width * torch.cos(2.0 * phi)
        return torch.stack(
            (
                self.length * torch.sin(phi),
                self.width * torch.sin(2.0 * phi),
                torch.atan2(north, east),
                torch.sqrt(east**2 + north**2),
            ),
            -1,
        )

    def observation(self, x: Tensor, t: Tensor) -> Tensor:
        """What the policy sees, SI: (..., 4), (..., 1) -> (..., 14)."""
        error, phi = x - self.reference(t), self.phase(t)
        sin, cos = torch.sin(x[..., 2]), torch.cos(x[..., 2])
        parts = (
            cos * error[..., 0] + sin * error[..., 1],
            cos * error[..., 1] - sin * error[..., 0],
            torch.sin(error[..., 2]),
            torch.cos(error[..., 2]),
            error[..., 3],
            x[..., 0],
            x[..., 1],
            sin,
            cos,
            x[..., 3],
            *(f(k * phi) for k in (1.0, 2.0) for f in (torch.sin, torch.cos)),
        )
        return torch.stack(parts, -1)

    def reward(self, x_next: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """Reward of the step that ended in x_next at time t. -> (..., 1)."""
        e = x_next - self.reference(t)
        effort = (u[..., 0] / self.system.max_accel) ** 2
        effort = effort + (u[..., 1] / self.system.max_turn_rate) ** 2
        cost = e[..., 0] ** 2 + e[..., 1] ** 2 + 0.2 * (1.0 - torch.cos(e[..., 2]))
        return -(cost + 0.1 * e[..., 3] ** 2 + 0.02 * effort).unsqueeze(-1)

    def initial_state(self, w: Tensor) -> Tensor:
        """The task's starts: the reference's ± (0.3 m, 0.3 m, 0.3 rad, 0.2 m/s). -> (..., 4)."""
        spread = w.new_tensor([0.3, 0.3, 0.3, 0.2])
        return self.reference(torch.zeros_like(w[..., 0:1])) + spread * w

    def operating_state(self, w: Tensor) -> Tensor:
        """A state of the operating box from w in [-1, 1]⁴. -> (..., 4)."""
        box = self.system.states
        return torch.stack([from_unit(c.low, c.high, w[..., i]) for i, c in enumerate(box)], -1)


def obstacle_course() -> Robot:
    """The unicycle of this file behind its shield."""
    system, yard = YardUnicycle(), Yard()
    brake = Brake(system)
    base_set = Brakeable(yard, brake)
    return Robot(
        name="obstacle_course",
        robot="unicycle",
        variant="model",
        system=system,
        safe_set=yard,
        base_set=base_set,
        base_controller=brake,
        backup_policy=BrakeAndSteer(yard, brake, base_set),
        task=FigureOfEight(system),
        horizon=30,
        class_k=10.0,
        base_class_k=10.0,
        # Asked for only after the committed plan, at whose end the robot stands.
        stop_action=(0.0, 0.0),
        input_scale=(system.max_accel, system.max_turn_rate),
        duration=20.0,
        laps=3,
        delay_steps=1,
        margins=dict.fromkeys(yard.names, MARGIN),
    )
