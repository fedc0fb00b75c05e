"""Error charts, the exact flow and the arranged error map against the plain way to write them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from safe_rl_systems.build import robot_program
from safe_rl_systems.quaternion import heading
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_systems.systems import Quadrotor
from torch import Tensor

ROBUST = [name for name, make in ROBOTS.items() if make().robust is not None]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw(robot: Robot, count: int = 200) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """States, inputs in the box, errors, input deviations and disturbances in the domains."""
    design, system = robot.robust, robot.system
    x = robot.task.operating_state(2.0 * torch.rand(count, robot.task.operating_dimension) - 1.0)
    low, high = (torch.tensor([getattr(c, s) for c in system.inputs]) for s in ("low", "high"))
    u = low + (high - low) * torch.rand(count, len(low))
    sizes = (design.error_domain, design.input_domain, design.disturbance)
    return (x, u, *((2.0 * torch.rand(count, len(s)) - 1.0) * torch.tensor(s) for s in sizes))


@pytest.mark.parametrize("name", ROBUST)
def test_retract_and_difference_are_inverse(name: str) -> None:
    robot = ROBOTS[name]()
    chart = robot.robust.chart
    x, _, e, _, _ = draw(robot)
    torch.testing.assert_close(chart.difference(chart.retract(x, e), x), e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ROBUST)
def test_the_error_map_is_the_composition_at_any_reference(name: str) -> None:
    robot = ROBOTS[name]()
    chart, step = robot.robust.chart, robot.system.step
    x, u, e, v, w = draw(robot)
    moved = step(chart.retract(x, e), u + v)
    plain = chart.difference(chart.retract(moved, w), step(x, u))
    mapped = chart.error_map(chart.schedule(x, u), e, v, w)
    torch.testing.assert_close(mapped, plain, rtol=0, atol=1e-11)


def test_the_exact_flow_is_what_small_steps_come_to() -> None:
    fine, exact = Quadrotor(period=2e-4), Quadrotor(integrator="exact")
    x, u, *_ = draw(ROBOTS["quadrotor_robust"]())
    y = x
    for _ in range(100):
        y = fine.step(y, u)
    torch.testing.assert_close(exact.step(x, u), y, rtol=0, atol=1e-10)


def test_base_points_are_at_rest_and_keep_the_heading() -> None:
    robot = ROBOTS["quadrotor_robust"]()
    design = robot.robust
    x, *_ = draw(robot)
    rest = design.base.point(x)
    hover = torch.tensor(design.base.input).expand(len(x), -1)
    torch.testing.assert_close(robot.system.step(rest, hover), rest, rtol=0, atol=1e-12)
    torch.testing.assert_close(rest[:, 6:10], heading(x[:, 6:10]))
    torch.testing.assert_close(design.base.point(rest), rest, rtol=0, atol=1e-12)


def test_the_heading_of_a_vehicle_upside_down_is_defined() -> None:
    assert heading(torch.tensor([0.0, 1.0, 0.0, 0.0])).tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ROBUST)
def test_disturbances_enter_one_to_one(name: str) -> None:
    """error_map(s, 0, 0, w) = w: what the tube takes for granted."""
    robot = ROBOTS[name]()
    design = robot.robust
    x, u, e, v, w = draw(robot)
    zero = torch.zeros_like
    out = design.chart.error_map(design.chart.schedule(x, u), zero(e), zero(v), w)
    torch.testing.assert_close(out, w, rtol=0, atol=1e-12)


def test_only_robust_robots_carry_the_error_functions() -> None:
    assert "error_map" not in robot_program(ROBOTS["unicycle_lane"]()).functions
    assert "error_map" in robot_program(ROBOTS["unicycle_robust"]()).functions
