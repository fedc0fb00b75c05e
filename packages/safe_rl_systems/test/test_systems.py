"""Robots against closed-form motion and published constants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup import hover_lqr, lane_lqr
from safe_rl_systems.control_affine import dynamics, rk4
from safe_rl_systems.systems import LaneUnicycle, Quadrotor, Unicycle

DOUBLE = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def unicycle_exact(x: np.ndarray, u: np.ndarray, dt: float) -> np.ndarray:
    """The exact zero-order-hold flow of the unicycle for turn_rate != 0."""
    px, py, theta, v = x
    a, w = u
    end, fast = theta + w * dt, v + a * dt
    return np.array(
        [
            px
            + (fast * math.sin(end) - v * math.sin(theta)) / w
            + a * (math.cos(end) - math.cos(theta)) / w**2,
            py
            - (fast * math.cos(end) - v * math.cos(theta)) / w
            + a * (math.sin(end) - math.sin(theta)) / w**2,
            end,
            fast,
        ]
    )


def test_unicycle_step_is_the_exact_flow_to_rk4_accuracy() -> None:
    robot, rng = Unicycle(), np.random.default_rng(0)
    for _ in range(50):
        x = rng.uniform([-1, -1.8, -1, 0], [1, 1.8, 1, 12])
        u = rng.uniform([-5, 0.1], [5, 1.0])
        got = robot.step(torch.from_numpy(x), torch.from_numpy(u)).numpy()
        assert np.allclose(got, unicycle_exact(x, u, 0.05), atol=2e-8)


def test_lane_unicycle_is_the_published_euler_step() -> None:
    robot = LaneUnicycle()
    x = robot.step(tensor(0.5, 4.0, 0.3), tensor(2.0, -1.0))
    expected = [0.5 + 0.05 * 4.0 * math.sin(0.3), 4.0 + 0.05 * 2.0, 0.3 - 0.05]
    assert np.allclose(x.numpy(), expected, atol=1e-15)


def test_lane_unicycle_clips_speed_and_wraps_heading() -> None:
    robot = LaneUnicycle()
    fast = robot.step(tensor(0.0, 11.99, math.pi - 0.01), tensor(5.0, 1.0))
    assert fast[1].item() == 12.0
    assert fast[2].item() == pytest.approx(math.pi - 0.01 + 0.05 - 2 * math.pi)
    assert robot.step(tensor(0.0, 0.1, 0.0), tensor(-5.0, 0.0))[1].item() == 0.0


@pytest.mark.parametrize("integrator", ["rk4", "euler"])
def test_quadrotor_hovers(integrator: str) -> None:
    robot = Quadrotor(integrator=integrator)
    hover = tensor(0.3, -0.2, 2.0, 0, 0, 0, 1, 0, 0, 0)
    assert torch.allclose(robot.step(hover, tensor(9.81, 0, 0, 0)), hover, atol=1e-15)


def test_quadrotor_falls_and_climbs() -> None:
    robot = Quadrotor()
    x = robot.step(tensor(0, 0, 2, 0, 0, 0, 1, 0, 0, 0), tensor(0, 0, 0, 0))
    assert x[2].item() == pytest.approx(2.0 - 0.5 * 9.81 * 0.02**2)
    assert x[5].item() == pytest.approx(-9.81 * 0.02)
    x = robot.step(tensor(0, 0, 2, 0, 0, 0, 1, 0, 0, 0), tensor(19.62, 0, 0, 0))
    assert x[5].item() == pytest.approx(9.81 * 0.02)


def test_quadrotor_turns_about_its_own_axes() -> None:
    """A quarter turn about body y after one about world z: pitch about the turned axis."""
    robot = Quadrotor()
    s = math.sqrt(0.5)
    x = tensor(0, 0, 2, 0, 0, 0, s, 0, 0, s)
    for _ in range(50):
        x = robot.step(x, tensor(0, 0, math.pi / 2, 0))
    expected = np.array([0.5, -0.5, 0.5, 0.5])
    assert np.allclose(x[6:].numpy(), expected, atol=1e-6)
    thrust = robot.input_matrix(x)[3:6, 0].numpy()
    assert np.allclose(thrust, [0.0, 1.0, 0.0], atol=1e-6)


def test_quadrotor_rk4_converges_with_fourth_order() -> None:
    robot = Quadrotor()
    x, u = tensor(0, 0, 2, 1, 0, 1, 1, 0, 0, 0), tensor(20, 3, -5, 2)

    def integrate(pieces: int) -> torch.Tensor:
        y = x
        for _ in range(pieces):
            y = rk4(lambda a, b: dynamics(robot, a, b), y, u, 0.2 / pieces)
        return y

    reference = integrate(256)
    coarse, fine = (float((integrate(k) - reference).abs().max()) for k in (8, 16))
    assert 12.0 < coarse / fine < 20.0


@pytest.mark.parametrize("robot", [Unicycle(), LaneUnicycle(), Quadrotor()])
def test_control_affine_batched_and_in_both_precisions(robot: Unicycle) -> None:
    n, m = len(robot.states), len(robot.inputs)
    torch.manual_seed(0)
    x, u = torch.rand(3, 5, n, dtype=DOUBLE) + 0.1, torch.rand(3, 5, m, dtype=DOUBLE)
    assert robot.drift(x).shape == (3, 5, n)
    assert robot.input_matrix(x).shape == (3, 5, n, m)
    one = robot.step(x[1, 2], u[1, 2])
    assert torch.allclose(robot.step(x, u)[1, 2], one, atol=1e-15)
    single = robot.step(x.float(), u.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), robot.step(x, u), atol=1e-5)
    middle = dynamics(robot, x, 0.5 * u)
    ends = 0.5 * (dynamics(robot, x, u) + dynamics(robot, x, 0 * u))
    assert torch.allclose(middle, ends, atol=1e-12)


def test_published_gains_are_reproduced() -> None:
    lane = lane_lqr(LaneUnicycle())
    assert np.allclose(lane.gain, [[0, 7.8078, 0], [1.2790, 0, 3.9614]], atol=1e-4)
    assert np.allclose(
        lane.value, [[12.389, 0, 15.637], [0, 2.5616, 0], [15.637, 0, 44.523]], atol=1e-3
    )
    hover = hover_lqr(Quadrotor(integrator="euler"))
    assert np.allclose(hover.gain[0], [6.670, 0, 0, 5.647, 0, 0, 0], atol=1e-3)
    assert np.allclose(hover.gain[1], [0, 0, -3.247, 0, -11.112, 0, 0], atol=1e-3)
    assert np.allclose(
        np.diag(hover.value), [42.332, 2.791, 2.791, 6.197, 7.951, 7.951, 1.3474], atol=1e-3
    )


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ModelError, match="Unicycle.max_accel must be > 0, got -1"):
        Unicycle(max_accel=-1.0)
    with pytest.raises(ModelError, match="Quadrotor.period must be > 0"):
        Quadrotor(period=0.0)
    with pytest.raises(ModelError, match="must be one of"):
        Quadrotor(integrator="magic")
