"""A robot ready for the shield: system, sets, backup policy, task and theorem parameters.

`ROBOTS` is the list of robots that this repository ships; a robot of your own is one more function
that returns a `Robot`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.backup import CascadeBackup, SwitchedBackup, hover_lqr, lane_lqr
from safe_rl_systems.charts import BodyFrameChart, LaneChart
from safe_rl_systems.control_affine import ControlAffineSystem
from safe_rl_systems.robust import (
    BaseController,
    CruisePoint,
    EllipsoidAboutPoint,
    HoverPoint,
    ReservedAuthority,
    RobustDesign,
    gains,
)
from safe_rl_systems.sets import AffineSafeSet, EllipsoidBaseSet, HoverBaseSet, Row
from safe_rl_systems.sets.boxes import symmetric
from safe_rl_systems.systems import LaneUnicycle, Quadrotor, Unicycle
from safe_rl_systems.systems.quadrotor import GRAVITY
from safe_rl_systems.tasks import LaneKeeping, Powerloop, Task

SIDES = ("side_x_upper", "side_x_lower", "side_y_upper", "side_y_lower")


class NamedRows(Protocol):
    """A vector-valued function of the state whose rows have names."""

    @property
    def names(self) -> tuple[str, ...]:
        """One name per row."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., rows)."""
        ...


@dataclass(frozen=True)
class Robot:
    """Everything that a bundle is made from, except the trained policy.

    `horizon` N in periods; `delay_steps`: whole periods until an input takes effect; `class_k` and
    `base_class_k` are the alpha of the safe and base rows in 1/s; `margins` maps a safe-set row's
    name to the distance kept from it, in the row's unit;
    `stop_action` is what is sent when even the state is unknown; `input_scale` is the metric of
    the projection: it minimises the norm of (u - u_proposed) / input_scale. `robust`: what a
    certificate is derived from; None for a robot that only a nominal shield can fly.
    """

    name: str
    robot: str
    variant: str
    system: ControlAffineSystem
    safe_set: NamedRows
    base_set: NamedRows
    base_controller: Callable[[Tensor], Tensor]
    backup_policy: Callable[[Tensor], Tensor]
    task: Task
    horizon: int
    class_k: float
    base_class_k: float
    stop_action: tuple[float, ...]
    input_scale: tuple[float, ...]
    duration: float
    laps: int
    delay_steps: int = 0
    margins: dict[str, float] = field(default_factory=dict)
    variants: dict[str, str] = field(default_factory=dict)
    robust: RobustDesign | None = None

    def __post_init__(self) -> None:
        for name in ("class_k", "base_class_k"):
            share = getattr(self, name) * self.system.period
            if not 0.0 < share < 1.0:
                raise ModelError(f"{self.name}: {name} · period must lie in (0, 1), got {share}")
        unknown = set(self.margins) - set(self.safe_set.names)
        if unknown:
            raise ModelError(f"{self.name}: margins for unknown rows {sorted(unknown)}")


def quadrotor_powerloop_paper() -> Robot:
    """The published quadrotor: Euler, one ceiling row; base level 5 (8 is not invariant)."""
    system = Quadrotor(integrator="euler")
    base = hover_lqr(system)
    recovery = CascadeBackup(system, ceiling=3.0, height=2.0, body_error=False)
    return Robot(
        name="quadrotor_powerloop_paper",
        robot="quadrotor",
        variant="paper",
        system=system,
        safe_set=AffineSafeSet((Row("ceiling", 2, "upper", 3.0),)),
        base_set=EllipsoidBaseSet(base, 5.0),
        base_controller=base,
        backup_policy=SwitchedBackup(base, 5.0, recovery),
        task=Powerloop(system),
        horizon=100,
        class_k=4.0,
        base_class_k=2.0,
        stop_action=(9.81, 0.0, 0.0, 0.0),
        input_scale=(1.0, 1.0, 1.0, 1.0),
        duration=106 * system.period,
        laps=1,
    )


def quadrotor_powerloop() -> Robot:
    """The quadrotor that flies: Runge-Kutta, one period of delay, ceiling, floor, lateral box.

    The delay stands for rotor and rate-loop lag of about 30 ms. The recovery gains are lower than
    the published ones so that the backup stays stable with that lag.
    """
    system = Quadrotor(integrator="rk4")
    base = hover_lqr(system)
    recovery = CascadeBackup(
        system,
        ceiling=3.0,
        height=2.0,
        body_error=True,
        lateral_gain=4.0,
        height_gain=12.0,
        climb_gain=7.0,
        rate_gain=16.0,
    )
    return Robot(
        name="quadrotor_powerloop",
        robot="quadrotor",
        variant="model",
        system=system,
        safe_set=AffineSafeSet(
            (
                Row("ceiling", 2, "upper", 3.0),
                Row("floor", 2, "lower", 0.1),
                *symmetric("side_x", 0, 4.0),
                *symmetric("side_y", 1, 4.0),
            )
        ),
        base_set=HoverBaseSet(base, level=5.0, lateral_limit=4.0, drift_per_level=0.1),
        base_controller=base,
        backup_policy=SwitchedBackup(base, 5.0, recovery),
        task=Powerloop(system),
        horizon=100,
        class_k=4.0,
        base_class_k=2.0,
        stop_action=(9.81, 0.0, 0.0, 0.0),
        input_scale=tuple(0.5 * (c.high - c.low) for c in system.inputs),
        duration=106 * system.period,
        laps=5,
        delay_steps=1,
        margins=dict.fromkeys(("ceiling", "floor", *SIDES), 0.05),
        variants={"paper": "quadrotor_powerloop_paper"},
    )


def unicycle_lane_paper() -> Robot:
    """The published unicycle: three states, Euler, lane and heading rows, N = 20."""
    system = LaneUnicycle()
    base = lane_lqr(system)
    return Robot(
        name="unicycle_lane_paper",
        robot="unicycle",
        variant="paper",
        system=system,
        safe_set=AffineSafeSet(
            (*symmetric("lane", 0, 1.8), *symmetric("heading", 2, math.pi / 3.0))
        ),
        base_set=EllipsoidBaseSet(base, 0.3),
        base_controller=base,
        backup_policy=base,
        task=LaneKeeping(system),
        horizon=20,
        class_k=4.0,
        base_class_k=2.0,
        stop_action=(0.0, 0.0),
        input_scale=(1.0, 1.0),
        duration=20.0,
        laps=2,
    )


def unicycle_lane() -> Robot:
    """The unicycle that drives: px, Runge-Kutta, one period of delay, speed limits."""
    system = Unicycle()
    base = lane_lqr(system)
    return Robot(
        name="unicycle_lane",
        robot="unicycle",
        variant="model",
        system=system,
        safe_set=AffineSafeSet(
            (
                *symmetric("lane", 1, 1.8),
                *symmetric("heading", 2, math.pi / 3.0),
                Row("speed_max", 3, "upper", 12.0),
                Row("speed_min", 3, "lower", 0.0),
            )
        ),
        base_set=EllipsoidBaseSet(base, 0.3),
        base_controller=base,
        backup_policy=base,
        task=LaneKeeping(system),
        horizon=50,
        class_k=6.0,
        base_class_k=6.0,
        stop_action=(-5.0, 0.0),
        input_scale=tuple(0.5 * (c.high - c.low) for c in system.inputs),
        duration=20.0,
        laps=5,
        delay_steps=1,
        margins={
            "lane_upper": 0.05,
            "lane_lower": 0.05,
            "heading_upper": 0.01,
            "heading_lower": 0.01,
            "speed_max": 0.05,
            "speed_min": 0.05,
        },
        variants={"paper": "unicycle_lane_paper"},
    )


def quadrotor_robust() -> Robot:
    """The quadrotor of the theorem: exact flow, assumed disturbance, estimate error and delay.

    Disturbance: an acceleration of at most 0.2 m/s² and a rate error of at most 0.02 rad/s along
    any axis. Over one period Δt with thrust at most T they move the error by

        tilt: r Δt    velocity: a Δt + T r Δt²/2    position: a Δt²/2 + T r Δt³/6

    A thrust that switches 0.02 ms late, full range, takes a fifth of the velocity's share.
    """
    system = Quadrotor(integrator="exact", max_rate=8.0)
    chart = BodyFrameChart(system.period)
    accel, rate, dt, thrust = 0.2, 0.02, system.period, system.max_thrust
    found = gains("quadrotor")
    point = HoverPoint(low=(-2.95, -2.95, 1.08), high=(2.95, 2.95, 2.02), lead=0.3)
    hover = (GRAVITY, 0.0, 0.0, 0.0)
    base = BaseController(system, chart, point, np.array(hover), found["base_gain"])
    recovery = CascadeBackup(
        system,
        ceiling=3.0,
        height=1.6,
        body_error=True,
        lateral_gain=4.0,
        height_gain=12.0,
        climb_gain=7.0,
        rate_gain=16.0,
    )
    low = tuple(c.low for c in system.inputs)
    high = tuple(c.high for c in system.inputs)
    base_set = EllipsoidAboutPoint(chart, point, found["base_factor"])
    return Robot(
        name="quadrotor_robust",
        robot="quadrotor",
        variant="robust",
        system=system,
        safe_set=AffineSafeSet(
            (
                Row("ceiling", 2, "upper", 3.0),
                Row("floor", 2, "lower", 0.1),
                *symmetric("side_x", 0, 4.0),
                *symmetric("side_y", 1, 4.0),
            )
        ),
        base_set=base_set,
        base_controller=base,
        backup_policy=ReservedAuthority(recovery, (2.0, -5.8, -5.8, -5.8), (35.0, 5.8, 5.8, 5.8)),
        task=Powerloop(system),
        horizon=100,
        class_k=4.0,
        base_class_k=2.0,
        stop_action=hover,
        input_scale=tuple(0.5 * (c.high - c.low) for c in system.inputs),
        duration=106 * system.period,
        laps=5,
        delay_steps=1,
        margins=dict.fromkeys(("ceiling", "floor", *SIDES), 0.15),
        robust=RobustDesign(
            chart=chart,
            disturbance=(
                *(0.5 * accel * dt**2 + thrust * rate * dt**3 / 6.0,) * 3,
                *(accel * dt + 0.5 * thrust * rate * dt**2,) * 3,
                *(rate * dt,) * 3,
            ),
            estimate_error=(*(0.002,) * 3, *(0.005,) * 3, *(0.001,) * 3),
            jitter=2e-5,
            tracking_gain=found["tracking_gain"],
            base=base,
            base_set=base_set,
            base_schedule=hover,
            error_domain=(*(0.6,) * 3, *(0.6,) * 3, *(0.15,) * 3),
            input_domain=(5.0, 2.5, 2.5, 1.5),
            state_low=(*(-4.0,) * 2, 0.1, *(-12.0,) * 3, *(-1.0,) * 4),
            state_high=(*(4.0,) * 2, 3.0, *(12.0,) * 3, *(1.0,) * 4),
            schedule_low=low,
            schedule_high=high,
            schedule_cells=(16, 1, 1, 1),
            cell_directions=np.vstack((np.eye(9)[6:9], found["base_gain"][0:1])),
            symmetries=(
                (-1, 1, 1, -1, 1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1),
                (1, -1, 1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1),
            ),
        ),
    )


def unicycle_robust() -> Robot:
    """The unicycle of the theorem: assumed slip, heading drift, acceleration error, delay.

    Disturbance: a lateral velocity of at most 0.05 m/s, a heading rate of at most 0.02 rad/s and
    an acceleration of at most 0.2 m/s²; over one period Δt at speed at most V they move the error
    by 0.02 Δt (theta), 0.2 Δt (v) and (0.05 + V 0.02 Δt/2 + 0.2 Δt/2) Δt (py). An acceleration
    that switches 0.2 ms late, full range, takes a fifth of the share of v.
    """
    system = Unicycle()
    chart = LaneChart(system)
    dt, top = system.period, 12.0
    slip, drift, accel = 0.05, 0.02, 0.2
    found = gains("unicycle")
    point = CruisePoint(5.0)
    base = BaseController(system, chart, point, np.zeros(2), found["base_gain"])
    base_set = EllipsoidAboutPoint(chart, point, found["base_factor"])
    heading_limit = math.pi / 3.0
    low = tuple(c.low for c in system.inputs)
    high = tuple(c.high for c in system.inputs)
    return Robot(
        name="unicycle_robust",
        robot="unicycle",
        variant="robust",
        system=system,
        safe_set=AffineSafeSet(
            (
                *symmetric("lane", 1, 1.8),
                *symmetric("heading", 2, heading_limit),
                Row("speed_max", 3, "upper", top),
                Row("speed_min", 3, "lower", 0.0),
            )
        ),
        base_set=base_set,
        base_controller=base,
        backup_policy=ReservedAuthority(lane_lqr(system), (-4.4, -0.6), (4.4, 0.6)),
        task=LaneKeeping(system),
        horizon=50,
        class_k=4.0,
        base_class_k=2.0,
        stop_action=(-5.0, 0.0),
        input_scale=tuple(0.5 * (c.high - c.low) for c in system.inputs),
        duration=20.0,
        laps=5,
        delay_steps=1,
        margins={
            "lane_upper": 0.1,
            "lane_lower": 0.1,
            "heading_upper": 0.05,
            "heading_lower": 0.05,
            "speed_max": 0.1,
            "speed_min": 0.1,
        },
        robust=RobustDesign(
            chart=chart,
            disturbance=(
                (slip + 0.5 * top * drift * dt + 0.5 * accel * dt) * dt,
                drift * dt,
                accel * dt,
            ),
            estimate_error=(0.01, 0.01, 0.03),
            jitter=2e-4,
            tracking_gain=found["tracking_gain"],
            base=base,
            base_set=base_set,
            base_schedule=(0.0, 5.0, 0.0, 0.0),
            error_domain=(1.0, 0.3, 1.5),
            input_domain=(4.0, 1.0),
            state_low=(-math.inf, -1.8, -heading_limit, 0.0),
            state_high=(math.inf, 1.8, heading_limit, top),
            schedule_low=(-heading_limit, 0.0, *low),
            schedule_high=(heading_limit, top, *high),
            schedule_cells=(1, 6, 1, 1),
            cell_directions=np.eye(3)[1:],
            symmetries=((-1, -1, 1, 1, -1, -1, 1, 1, -1),),
        ),
    )


ROBOTS: dict[str, Callable[[], Robot]] = {
    robot.__name__: robot
    for robot in (
        quadrotor_powerloop,
        quadrotor_powerloop_paper,
        unicycle_lane,
        unicycle_lane_paper,
        quadrotor_robust,
        unicycle_robust,
    )
}
