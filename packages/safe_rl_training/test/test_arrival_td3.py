"""The temporal-difference learner of phase I: operators, exact ends, target by hand, resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup.learned import recovery_with, with_backup
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_training.arrival_td3 import ReachAvoid, SafeArrival, TdArrival, TdSettings
from safe_rl_training.parts.arrival import Profile, safe_states
from torch import Tensor

SMALL = TdSettings(
    value="reach_avoid", envs=16, collect=4, updates=3, batch=32, replay=256, warmup=64,
    settle=2, hidden=16, actor_hidden=8, iterations=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def robot() -> Robot:
    return ROBOTS["unicycle_lane_paper"]()


def test_full_says_what_is_known_and_leaves_the_rest_to_the_critic() -> None:
    h = torch.tensor([-0.1, 0.3, 0.3, 0.3, 0.0])
    l = torch.tensor([0.5, 0.2, -0.6, -0.6, 0.0])  # noqa: E741
    q = torch.tensor([0.9, 0.9, 0.4, -0.8, 0.4])
    arrival, reach = SafeArrival(), ReachAvoid()
    # outside C 0, on B 1 (its edge included), else the critic's
    assert arrival.full(h, l, q).tolist() == pytest.approx([0.0, 1.0, 0.4, -0.8, 1.0])
    # no more than h and no less than l
    assert reach.full(h, l, q).tolist() == pytest.approx([-0.1, 0.3, 0.3, -0.6, 0.0])
    assert reach.full(h, l, reach.nothing(h))[2:4].tolist() == pytest.approx([-0.6, -0.6])


@pytest.mark.parametrize("discount", [0.6, 0.99])
def test_sign_exact_and_published_values_of_a_chain(discount: float) -> None:
    """States 0..5 in a row, moved by one to the left or not; 0 is B, 4 and 5 are unsafe."""
    h = torch.tensor([0.5, 0.5, 0.5, 0.5, -0.5, -0.5])
    l = torch.tensor([0.2, -0.2, -0.4, -0.6, -0.8, -1.0])  # noqa: E741
    left = torch.tensor([0, 0, 1, 2, 3, 4])

    def value(operator: SafeArrival | ReachAvoid, steps: int) -> Tensor:
        v = operator.full(h, l, operator.nothing(h))
        for _ in range(steps):
            v = operator.full(h, l, discount * torch.maximum(v[left], v))
        return v

    assert (value(ReachAvoid(), 2) >= 0.0).tolist() == [True, True, True, False, False, False]
    assert (value(ReachAvoid(), 3) >= 0.0).tolist() == [True] * 4 + [False] * 2
    published = value(SafeArrival(), 2)
    assert published.tolist() == pytest.approx([1.0, discount, discount**2, 0.0, 0.0, 0.0])


def test_target_by_hand(robot: Robot) -> None:
    learner = TdArrival(robot, replace(SMALL, target_noise=0.0), seed=0)
    rest, outside, far = [0.0, 5.0, 0.0], [1.9, 5.0, 0.0], [1.0, 5.0, 0.3]
    x = torch.tensor([rest, outside, far])
    last = learner._target(x, torch.tensor([0, 3, 0]))
    h, l = learner.normalised_margins(x, torch.tensor([0, 3, 0]))  # noqa: E741
    assert bool(h[1] < 0.0) and bool(l[0] > 0.0) and bool(l[2] < 0.0 < h[2])
    by_hand = 0.99 * torch.stack((torch.minimum(h[0], l[0]), torch.minimum(h[1], l[1]), l[2]))
    # outside the safe set the value is at most h; with nothing to go only arrival counts
    assert float(last[1]) <= 0.99 * float(h[1]) + 1e-6
    assert last[[0, 2]].tolist() == pytest.approx(by_hand[[0, 2]].tolist(), abs=1e-6)


def test_target_of_the_published_value_by_hand(robot: Robot) -> None:
    settings = replace(SMALL, value=TdSettings().value, target_noise=0.0)
    learner = TdArrival(robot, settings, seed=0)
    x = torch.tensor([[0.0, 5.0, 0.0], [1.9, 5.0, 0.0], [1.0, 5.0, 0.3]])
    # on B, outside the safe set, and on the way with no step left
    assert learner._target(x, torch.zeros(3).long()).tolist() == pytest.approx([0.99, 0.0, 0.0])
    # on the way with steps left: what the critics hope for, between never and at once
    assert 0.0 < float(learner._target(x, torch.full((3,), 9))[2]) < 0.99


def test_margins_of_a_profile_tighten_step_by_step(robot: Robot) -> None:
    nominal = Profile.nominal(robot)
    rows = nominal.rows.copy()
    rows[-1] += 0.2  # the last step keeps 0.2 m more
    learner = TdArrival(robot, SMALL, seed=0)
    learner.set_profile(Profile(rows, nominal.base))
    x = torch.tensor([[1.7, 5.0, 0.0]]).expand(2, 3)
    h, _ = learner.normalised_margins(x, torch.tensor([learner.steps - 1, 0]))
    assert bool(h[0] > 0.0 > h[1])


def test_it_begins_as_the_analytic_backup(robot: Robot) -> None:
    learner = TdArrival(robot, SMALL, seed=0)
    x = safe_states(robot, 64, torch.Generator().manual_seed(3)).double()
    assert torch.equal(with_backup(robot, learner.layers).backup_policy(x), robot.backup_policy(x))


def test_layers_are_the_actor(robot: Robot) -> None:
    learner = TdArrival(robot, SMALL, seed=1)
    with torch.no_grad():
        for tensor in learner.actor:
            tensor.normal_(0.0, 0.3)
    x = safe_states(robot, 64, torch.Generator().manual_seed(3))
    exported = recovery_with(robot, learner.layers)(x.double())
    assert exported.numpy() == pytest.approx(learner.policy(x, learner.actor).detach(), abs=1e-4)


@pytest.mark.parametrize("value", ["safe_arrival", "reach_avoid"])
def test_resume_is_bit_exact(robot: Robot, value: str) -> None:
    settings = replace(SMALL, value=value)
    whole = TdArrival(robot, settings, seed=5)
    first = TdArrival(robot, settings, seed=5)
    tighter = Profile(Profile.nominal(robot).rows + 0.01, 0.02)
    for learner in (whole, first):
        learner.set_profile(tighter)
    for _ in range(3):
        whole.iterate()
    first.iterate()
    stored = first.state_dict()
    first.iterate()  # what is stored must not change with the learner
    second = TdArrival(robot, settings, seed=5)
    second.load_state_dict(stored)
    scalars = [second.iterate() for _ in range(2)][-1]
    assert second.env_steps == whole.env_steps and scalars["loss/critic"] > 0.0
    for one, other in zip(whole.layers, second.layers, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_the_critics_learn_the_ends_of_a_short_horizon(robot: Robot) -> None:
    """With N = 1 the value of going on is that of the next state: no bootstrap, so regression."""
    short = replace(robot, horizon=3)
    settings = replace(SMALL, envs=64, batch=128, replay=4096, updates=60, settle=10**6, warmup=64)
    learner = TdArrival(short, settings, seed=0)
    losses = [learner.iterate()["loss/critic"] for _ in range(6)]
    assert losses[-1] < 0.2 * losses[0]


def test_what_is_wrong_is_said(robot: Robot) -> None:
    with pytest.raises(ModelError, match="value must be one of"):
        TdSettings(value="arrival")
    with pytest.raises(ModelError, match="replay must hold an iteration"):
        TdSettings(replay=100)
    with pytest.raises(ModelError, match="discount"):
        TdSettings(discount=0.0)
    with pytest.raises(ModelError, match="not for 'boat'"):
        TdSettings.published(replace(robot, robot="boat"))
    learner = TdArrival(robot, SMALL, seed=0)
    with torch.no_grad():
        learner.critic[0][0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match="lower TdSettings.critic_rate"):
        for _ in range(3):
            learner.iterate()


def test_published_settings_run(robot: Robot) -> None:
    published = TdSettings.published(robot)
    assert (published.discount, published.noise, published.horizon_aware) == (0.92, 0.08, False)
    assert published.envs * published.collect == 8 * published.updates
    learner = TdArrival(robot, replace(published, replay=8192, warmup=32, updates=2), seed=0)
    assert learner.iterate()["loss/critic"] > 0.0
