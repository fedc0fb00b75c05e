"""Tasks against the published reference, its derivatives and its return."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safe_rl_systems.robot import ROBOTS
from safe_rl_systems.systems.quadrotor import GRAVITY

DOUBLE = torch.float64


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE).unsqueeze(-1)


def test_powerloop_starts_at_the_bottom_and_closes() -> None:
    task = ROBOTS["quadrotor_powerloop"]().task
    start, end = task.reference(times(0.0, task.lap)).numpy()
    assert task.lap == pytest.approx(2.0944, abs=1e-4)
    assert np.allclose(start[:6], [0, 0, 0.5, -4.5, 0, 0])
    assert np.allclose(start[:6], end[:6], atol=1e-9)
    top = task.reference(times(task.lap / 2))[0].numpy()
    assert np.allclose(top[:3], [0, 0, 3.5], atol=1e-9)


def test_powerloop_reference_obeys_the_dynamics() -> None:
    """Velocity is the derivative of position, and thrust along the attitude gives acceleration."""
    task, step = ROBOTS["quadrotor_powerloop"]().task, 1e-5
    t = torch.linspace(0.0, task.lap, 201, dtype=DOUBLE).unsqueeze(-1)
    ahead, behind = task.reference(t + step), task.reference(t - step)
    now = task.reference(t)
    assert torch.allclose((ahead - behind)[:, :3] / (2 * step), now[:, 3:6], atol=1e-6)
    pull = (ahead - behind)[:, 3:6] / (2 * step) + torch.tensor([0, 0, GRAVITY], dtype=DOUBLE)
    thrust = pull.norm(dim=-1, keepdim=True)
    up = task.system.input_matrix(now)[:, 3:6, 0]
    assert torch.allclose(pull / thrust, up, atol=1e-6)
    assert float(thrust.max()) == pytest.approx(23.31, abs=0.05)
    assert float(thrust.min()) == pytest.approx(3.70, abs=0.05)


def test_perfect_tracking_of_the_powerloop_returns_the_published_bound() -> None:
    task = ROBOTS["quadrotor_powerloop"]().task
    t = 0.02 * torch.arange(1, 107, dtype=DOUBLE).unsqueeze(-1)
    step = 1e-5
    pull = (task.reference(t + step) - task.reference(t - step))[:, 3:6] / (2 * step)
    thrust = (pull + torch.tensor([0, 0, GRAVITY], dtype=DOUBLE)).norm(dim=-1, keepdim=True)
    u = torch.cat((thrust, task.average_rate(t)), -1)
    assert float(task.average_rate(t)[:, 1].max()) == pytest.approx(10.9, abs=0.1)
    assert float(task.reward(task.reference(t), u, t).sum()) == pytest.approx(-313.0, abs=1.5)


def test_observations_do_not_see_the_sign_of_the_quaternion() -> None:
    task = ROBOTS["quadrotor_powerloop"]().task
    torch.manual_seed(0)
    x = task.operating_state(2 * torch.rand(200, 9, dtype=DOUBLE) - 1)
    flipped = torch.cat((x[:, :6], -x[:, 6:]), -1)
    t = torch.rand(200, 1, dtype=DOUBLE) * 10
    assert torch.allclose(task.observation(x, t), task.observation(flipped, t), atol=1e-12)
    assert torch.allclose(
        task.reward(x, x[:, :4], t), task.reward(flipped, x[:, :4], t), atol=1e-9
    )


def test_the_observation_is_periodic_in_time() -> None:
    for name in ("quadrotor_powerloop", "unicycle_lane"):
        robot = ROBOTS[name]()
        n = len(robot.system.states)
        x = torch.linspace(0.1, 0.9, n, dtype=DOUBLE)
        t = torch.tensor([0.7], dtype=DOUBLE)
        later = t + 30 * robot.task.lap
        now, then = robot.task.observation(x, t), robot.task.observation(x, later)
        assert torch.allclose(now, then, atol=1e-8)
        assert len(robot.task.observation_names) == len(now)


def test_lane_reference_leaves_the_lane_and_keeps_its_speed() -> None:
    task, step = ROBOTS["unicycle_lane"]().task, 1e-5
    t = torch.linspace(0.0, 10.0, 101, dtype=DOUBLE).unsqueeze(-1)
    ref = task.reference(t)
    assert float(ref[:, 1].max()) == pytest.approx(2.5, abs=1e-3)
    side = (task.reference(t + step) - task.reference(t - step))[:, 1] / (2 * step)
    assert torch.allclose(side, ref[:, 3] * torch.sin(ref[:, 2]), atol=1e-6)
    forward = torch.cos(ref[:, 2]) * ref[:, 3]
    assert float(forward[:-1].mean()) == pytest.approx(float(ref[-1, 0] / 10.0), abs=1e-3)


def test_lane_reward_by_hand() -> None:
    task = ROBOTS["unicycle_lane"]().task
    t = times(2.5)
    x = task.reference(t) + torch.tensor([[7.0, 0.18, 0.1, -0.5]], dtype=DOUBLE)
    u = torch.tensor([[2.5, 0.5]], dtype=DOUBLE)
    expected = -(20 * 0.1**2 + 50 * 0.1**2 + 10 * (0.1 * 3 / math.pi) ** 2 + 0.05 * (0.25 + 0.25))
    assert float(task.reward(x, u, t)) == pytest.approx(expected)


def test_both_variants_of_a_robot_see_the_same() -> None:
    full, lane = ROBOTS["unicycle_lane"]().task, ROBOTS["unicycle_lane_paper"]().task
    t = torch.tensor([1.3], dtype=DOUBLE)
    a = full.observation(torch.tensor([9.0, 0.4, 0.2, 5.5], dtype=DOUBLE), t)
    b = lane.observation(torch.tensor([0.4, 5.5, 0.2], dtype=DOUBLE), t)
    assert torch.equal(a, b)
    assert full.observation_names == lane.observation_names


def test_starts_and_operating_states_fill_their_boxes() -> None:
    for make in ROBOTS.values():
        robot = make()
        torch.manual_seed(1)
        w = 2 * torch.rand(20_000, robot.task.operating_dimension, dtype=DOUBLE) - 1
        x = robot.task.operating_state(w)
        for i, channel in enumerate(robot.system.states):
            if math.isfinite(channel.low):
                assert (
                    channel.low - 1e-9
                    <= float(x[:, i].min())
                    <= channel.low + 0.05 * (channel.high - channel.low)
                )
                assert (
                    channel.high + 1e-9
                    >= float(x[:, i].max())
                    >= channel.high - 0.05 * (channel.high - channel.low)
                )
