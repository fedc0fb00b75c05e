"""A robot ready for the shield: system, sets, backup policy, task and theorem parameters.

`ROBOTS` is the list of robots that this repository ships; a robot of your own is one more function
that returns a `Robot`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.backup import CascadeBackup, SwitchedBackup, hover_lqr, lane_lqr
from safe_rl_systems.control_affine import ControlAffineSystem
from safe_rl_systems.sets import AffineSafeSet, EllipsoidBaseSet, HoverBaseSet, Row
from safe_rl_systems.sets.boxes import symmetric
from safe_rl_systems.systems import LaneUnicycle, Quadrotor, Unicycle
from safe_rl_systems.tasks import LaneKeeping, Powerloop

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
    the projection: it minimises the norm of (u - u_proposed) / input_scale.
    """

    name: str
    robot: str
    variant: str
    system: ControlAffineSystem
    safe_set: NamedRows
    base_set: NamedRows
    base_controller: Callable[[Tensor], Tensor]
    backup_policy: Callable[[Tensor], Tensor]
    task: LaneKeeping | Powerloop
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
        class_k=4.0,
        base_class_k=2.0,
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


ROBOTS: dict[str, Callable[[], Robot]] = {
    robot.__name__: robot
    for robot in (
        quadrotor_powerloop,
        quadrotor_powerloop_paper,
        unicycle_lane,
        unicycle_lane_paper,
    )
}
