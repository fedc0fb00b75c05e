"""PPO: its formulas by hand, that it learns, that it goes on bit for bit, that it fails early."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS
from safe_rl_training.envs import ShieldedEnv
from safe_rl_training.ppo import (
    Batch,
    Critic,
    Ppo,
    PpoSettings,
    advantages,
    divergence,
    log_density,
    make,
)

SMALL = PpoSettings(iterations=5, count=64, steps=64, minibatch=512, hidden=32)


def learner(seed: int = 0, settings: PpoSettings = SMALL, device: str = "cpu") -> Ppo:
    return make(ROBOTS["unicycle_lane_paper"](), settings, seed, 1, device)


@cache
def untrained() -> Ppo:
    """Shared by tests that do not change it."""
    return learner()


def flown_return(ppo: Ppo, count: int = 16) -> float:
    """Mean return of the policy's own actions from starts of the task."""
    env = ShieldedEnv(ppo.robot, count, seed=1000, kernel=ppo.env.kernel)
    total = np.zeros(count)
    for _ in range(env.episode_steps):
        with torch.no_grad():
            total += env.step(ppo.policy(torch.from_numpy(env.observation)).numpy()).reward
    assert env.violations == 0
    return float(total.mean())


def test_advantages_by_hand() -> None:
    """γ = 0.5, λ = 0.5; the first robot's episode ends at its second step."""
    reward = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    value = torch.tensor([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    following = torch.tensor([[3.0, 3.0], [8.0, 5.0], [6.0, 6.0]])
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    got = advantages(reward, value, following, ended, 0.5, 0.5)
    # δ = (1.5, 3.0 | 1.5, 2.0): the end is bootstrapped with 8, only the sum stops there.
    expected = [[1.5 + 0.25 * 3.0, 1.5 + 0.25 * 2.0], [3.0, 1.5 + 0.25 * 2.0], [2.0, 2.0]]
    expected[0][1] = 1.5 + 0.25 * expected[1][1]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_density_and_divergence_are_those_of_the_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, other, a = (torch.randn(5, 3, generator=generator) for _ in range(3))
    log_spread, log_other = (torch.randn(3, generator=generator) for _ in range(2))
    old = torch.distributions.Normal(mean, log_spread.exp())
    new = torch.distributions.Normal(other, log_other.exp())
    change = log_density(a, other, log_other) - log_density(a, mean, log_spread)
    torch.testing.assert_close(change, (new.log_prob(a) - old.log_prob(a)).sum(-1))
    kl = torch.distributions.kl_divergence(old, new).sum(-1)
    torch.testing.assert_close(divergence(mean, log_spread, other, log_other), kl)


def test_rescaling_the_critic_does_not_change_the_value() -> None:
    torch.manual_seed(0)
    critic, o = Critic(4, 8).double(), torch.randn(6, 4).double()
    critic.rescale(torch.tensor(-7.0), torch.tensor(5.0))
    before = critic(o)
    critic.rescale(torch.tensor(-800.0), torch.tensor(90.0))
    torch.testing.assert_close(critic(o), before)
    assert not torch.allclose(critic.body(o), before[:, None])


def part_with_row(ppo: Ppo, offset: float) -> tuple[torch.Tensor, Batch]:
    """μ = (0.2, 0.1) and the row v_0 >= offset; accel is v_0, its half-range 5 m/s²."""
    normals, offsets = torch.zeros(1, 2, 2), torch.full((1, 2), -99.0)
    normals[0, :, 0], offsets[0, 0] = 1.0, offset
    mean = torch.tensor([[0.2, 0.1]], requires_grad=True)
    empty = torch.zeros(1)
    return mean, Batch(empty, empty, mean.detach(), normals, offsets, empty, empty)


def test_the_distance_pulls_along_the_blocked_direction_only() -> None:
    ppo = untrained()
    mean, part = part_with_row(ppo, 2.0)
    distance = ppo._distance(mean, part)
    assert distance.item() == pytest.approx(0.2**2)
    (pull,) = torch.autograd.grad(distance, mean)
    torch.testing.assert_close(pull, torch.tensor([[-0.4, 0.0]]))
    mean, part = part_with_row(ppo, 0.9)
    distance = ppo._distance(mean, part)
    (pull,) = torch.autograd.grad(distance, mean)
    assert distance.item() == 0.0 and not pull.any()


def test_the_likelihood_is_that_of_the_proposal_before_clipping() -> None:
    """σ = 2: most proposals lie outside of the unit box, and none of them is stored clipped."""
    ppo = learner(settings=replace(SMALL, spread=2.0, steps=8))
    batch, _ = ppo._collect()
    assert (batch.a.abs() > 1.0).float().mean() > 0.4
    with torch.no_grad():
        again = ppo._mean(batch.observation)
    torch.testing.assert_close(again, batch.mean)
    noise = (batch.a - batch.mean) / 2.0
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)
    assert batch.advantage.mean().item() == pytest.approx(0.0, abs=1e-5)


def test_it_learns_and_never_leaves_the_safe_set() -> None:
    ppo = learner()
    before = flown_return(ppo)
    first = ppo.iterate()
    for _ in range(4):
        last = ppo.iterate()
    assert flown_return(ppo) > 0.7 * before, "returns are negative"
    assert ppo.violations == 0 and ppo.env_steps == 5 * 64 * 64 and ppo.iteration == 5
    assert first["intervention"] > 0.0 and last["loss/value"] < first["loss/value"]


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    through = learner()
    through.iterate()
    torch.save(through.state_dict(), tmp_path / "checkpoint.pt")
    expected = through.iterate()
    resumed = learner(seed=7)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert resumed.iterate() == expected
    ours, theirs = dict(resumed.policy.named_parameters()), through.policy.named_parameters()
    assert all(torch.equal(ours[name], value) for name, value in theirs)
    assert np.array_equal(resumed.env.x, through.env.x)
    assert resumed.env_steps == through.env_steps and resumed.iteration == 2


def test_the_seed_decides() -> None:
    one, two, other = learner(5), learner(5), learner(6)
    assert torch.equal(one.policy.body[0].weight, two.policy.body[0].weight)
    assert not torch.equal(one.policy.body[0].weight, other.policy.body[0].weight)


def test_what_is_not_a_number_stops_the_run_and_says_what_to_lower() -> None:
    ppo = learner()
    with torch.no_grad():
        ppo.policy.body[0].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"loss/policy is nan at iteration 0; lower learning_rat"):
        ppo.iterate()


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match=r"8192 must be a multiple of minibatch = 1000"):
        PpoSettings(minibatch=1000)
    with pytest.raises(ModelError, match=r"discount must lie in \[0, 1\), got 1.0"):
        PpoSettings(discount=1.0)
    with pytest.raises(ModelError, match="spread, kl"):
        PpoSettings(kl=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_runs_on_a_gpu() -> None:
    ppo = learner(device="cuda")
    ppo.iterate()
    assert ppo.policy.mean.is_cuda and ppo.violations == 0
