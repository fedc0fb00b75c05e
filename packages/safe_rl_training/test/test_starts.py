"""Start states: on the robot's manifold, spread over the lap, near, far and cut."""

from dataclasses import dataclass

import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS
from safe_rl_training.parts.starts import rotate_by, start_states


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_starts_are_finite_and_cover_the_lap(name: str) -> None:
    robot = ROBOTS[name]()
    x, t = start_states(robot.task, 4000, torch.Generator().manual_seed(0))
    assert x.shape == (4000, len(robot.system.states)) and bool(x.isfinite().all())
    assert 0.0 <= t.min() < 0.02 * robot.task.lap and 0.98 * robot.task.lap < t.max()
    error = (x - robot.task.reference(t))[:, [c.name for c in robot.system.states].index("py")]
    assert error.abs().min() < 0.05 and error.abs().max() > 0.8
    if robot.robot == "quadrotor":
        torch.testing.assert_close(x[:, 6:10].norm(dim=-1), torch.ones(4000))


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_the_observation_repeats_every_lap(name: str) -> None:
    # The policy is trained on one lap and flown for many: it must not see which lap it is.
    robot = ROBOTS[name]()
    x, t = start_states(robot.task, 100, torch.Generator().manual_seed(0))
    x, t = x.double(), t.double()
    later = robot.task.observation(x, t + 29 * robot.task.lap)
    torch.testing.assert_close(later, robot.task.observation(x, t), rtol=0.0, atol=1e-9)


def test_a_task_that_the_tracker_does_not_know_is_refused() -> None:
    @dataclass(frozen=True)
    class Errand:
        lap: float = 4.0

    with pytest.raises(ModelError, match="not in Errand: train it by `safe-rl train ps2`"):
        start_states(Errand(), 4, torch.Generator())


def test_rotation_by_hand() -> None:
    upright = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    turned = rotate_by(torch.tensor([[0.0, torch.pi / 2.0, 0.0]]), upright)
    torch.testing.assert_close(turned, torch.tensor([[0.5**0.5, 0.0, 0.5**0.5, 0.0]]))
