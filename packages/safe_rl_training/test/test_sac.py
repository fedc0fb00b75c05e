"""SAC through the layer: probabilities, units, learning, no violation, resume, clear failure."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.build import batch_kernel
from safe_rl_systems.robot import ROBOTS
from safe_rl_training import learners
from safe_rl_training.envs import ShieldedEnv
from safe_rl_training.export import export_policy
from safe_rl_training.parts.learner import ReturnScale
from safe_rl_training.parts.networks import network_for
from safe_rl_training.parts.stochastic import HALF_SPAN, LOWEST, Actor
from safe_rl_training.sac import Sac, SacSettings, make

TINY = SacSettings(
    robots=16, periods=8, batch=32, hidden=16, random_steps=128, update_after=128, replay=2000
)
PAPER = ("unicycle_lane_paper", "quadrotor_powerloop_paper")


KERNELS: dict[str, BatchKernel] = {}


def learner(name: str, settings: SacSettings = TINY, seed: int = 0) -> Sac:
    robot = ROBOTS[name]()
    if name not in KERNELS:
        KERNELS[name] = batch_kernel(robot)
    return make(robot, settings, seed, kernel=KERNELS[name])


def mean_return(policy: torch.nn.Module, kernel: BatchKernel, seed: int = 99) -> float:
    env = ShieldedEnv(ROBOTS["unicycle_lane_paper"](), 16, seed=seed, kernel=kernel)
    with torch.no_grad():
        for _ in range(env.episode_steps):
            returns = env.step(policy(torch.from_numpy(env.observation)).numpy()).returns
    return float(returns.mean())


def test_learns_without_a_violation() -> None:
    settings = replace(TINY, robots=32, batch=128, hidden=64, updates=2, random_steps=1024)
    made = learner("unicycle_lane_paper", settings)
    before = mean_return(made.policy, made.env.kernel)
    while made.env_steps < 8192:
        scalars = made.iterate()
    after = mean_return(made.policy, made.env.kernel)
    assert after > 0.7 * before, (before, after)
    assert made.violations == 0
    assert scalars["infeasible"] == 0.0 and 0.0 < scalars["projected"] < 1.0


@pytest.mark.parametrize("name", PAPER)
def test_resumed_run_equals_an_unbroken_one(name: str, tmp_path: Path) -> None:
    unbroken, first = learner(name), learner(name)
    expected = [unbroken.iterate() for _ in range(6)]
    got = [first.iterate() for _ in range(3)]
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = learner(name)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    got += [second.iterate() for _ in range(3)]
    assert got == expected and "loss/actor" in got[-1]
    assert (second.env_steps, second.violations, second.iteration) == (6 * 8 * 16, 0, 6)
    for a, b in zip(unbroken.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_with_other_settings_is_refused() -> None:
    stored = learner("unicycle_lane_paper").state_dict()
    longer = learner("unicycle_lane_paper", replace(TINY, iterations=10_000))
    longer.load_state_dict(stored)
    with pytest.raises(ModelError, match="resume with the same robot and settings"):
        learner("unicycle_lane_paper", replace(TINY, batch=8)).load_state_dict(stored)


def test_what_is_not_finite_is_named_with_a_remedy() -> None:
    made = learner("unicycle_lane_paper", replace(TINY, critic_rate=1e30))
    with pytest.raises(ModelError, match=r"loss/\w+ is (nan|inf) .* lower critic_rate"):
        for _ in range(4):
            made.iterate()


def test_probability_is_that_of_the_squashed_normal() -> None:
    robot = ROBOTS["quadrotor_powerloop_paper"]()
    torch.manual_seed(0)
    policy = network_for(robot.system, 23, 8)
    actor = Actor(policy, 8)
    actor.log_std.weight.data.normal_()
    observation, noise = torch.randn(50, 23), torch.randn(50, 4)
    unit, log_p = actor(observation, noise)
    features = policy.body[:-1](observation)
    log_std = LOWEST + HALF_SPAN * (torch.tanh(actor.log_std(features)) + 1.0)
    normal = torch.distributions.Normal(policy.body[-1](features), log_std.exp())
    squashed = torch.distributions.TransformedDistribution(
        normal, torch.distributions.TanhTransform(cache_size=1)
    )
    expected = squashed.log_prob(unit.clamp(-0.999999, 0.999999)).sum(-1)
    inside = (unit.abs() < 0.999).all(-1)
    assert int(inside.sum()) > 10
    torch.testing.assert_close(log_p[inside], expected[inside], rtol=1e-3, atol=1e-3)
    without, _ = actor(observation, torch.zeros(50, 4))
    torch.testing.assert_close(policy.centre + policy.half_range * without, policy(observation))


def test_another_unit_of_rewards_changes_no_value() -> None:
    made = learner("unicycle_lane_paper")
    for _ in range(2):
        made.iterate()
    o, u = torch.randn(5, 8), torch.randn(5, 2)
    before, unit = made._value(made._critic, o, u) * made._unit, made._unit
    alpha = made._log_alpha.exp().item() * unit
    made._rescale(7.0 * unit)
    torch.testing.assert_close(made._value(made._critic, o, u) * made._unit, before)
    assert made._log_alpha.exp().item() * made._unit == pytest.approx(alpha, rel=1e-5)


def test_return_scale_is_the_standard_deviation_and_forgets() -> None:
    rng, scale = np.random.default_rng(0), ReturnScale(64, 0.9, window=20_000)
    never = np.zeros(64, dtype=np.bool_)
    for _ in range(4000):
        scale.update(rng.normal(1.0, 2.0, 64), never)
    assert scale.value == pytest.approx(2.0 / math.sqrt(1.0 - 0.81), rel=0.05)
    for _ in range(4000):
        scale.update(rng.normal(0.0, 0.2, 64), never)
    assert scale.value == pytest.approx(0.2 / math.sqrt(1.0 - 0.81), rel=0.15)


@pytest.mark.parametrize(
    ("name", "hidden", "offset"), [(PAPER[0], 128, 1.61), (PAPER[1], 256, 11.65)]
)
def test_published_recipe_runs_in_physical_units(name: str, hidden: int, offset: float) -> None:
    published = SacSettings.published(ROBOTS[name]())
    assert published.hidden == hidden and published.terminal_limit and not published.normalised
    small = replace(published, robots=8, periods=4, update_after=16, random_steps=16, hidden=16)
    made = learner(name, small)
    made.iterate()
    scalars = made.iterate()
    assert math.isfinite(scalars["loss/actor"]) and scalars["reward_scale"] == 1.0
    assert made._log_volume == pytest.approx(offset, abs=0.01)
    assert bool((made.policy.mean == 0.0).all() and (made.policy.std == 1.0).all())


def test_published_recipe_knows_two_robots() -> None:
    other = replace(ROBOTS["unicycle_lane_paper"](), robot="submarine")
    with pytest.raises(ModelError, match='not "submarine"; use SacSettings'):
        SacSettings.published(other)


def test_a_policy_to_begin_with_is_used_and_only_one_of_the_same_shape(tmp_path: Path) -> None:
    robot, file = ROBOTS["quadrotor_powerloop_paper"](), tmp_path / "policy.onnx"
    source = learner("quadrotor_powerloop_paper", seed=1).policy
    export_policy(source, robot, {}, file)
    settings = replace(TINY, critic_first=10_000)
    made = learners.make(robot, settings, 0, 1, "cpu", warm_start=file)
    for _ in range(3):
        scalars = made.iterate()
    assert "loss/critic" in scalars and "loss/actor" not in scalars
    for a, b in zip(source.state_dict().values(), made.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for other, wanted in (
        (replace(settings, hidden=32), "choose `hidden`"),
        (replace(settings, activation="relu"), "choose the `activation`"),
    ):
        with pytest.raises(ModelError, match=wanted):
            learners.make(robot, other, 0, 1, "cpu", warm_start=file)
    with pytest.raises(ModelError, match="there is no policy"):
        learners.make(robot, settings, 0, 1, "cpu", warm_start=tmp_path / "none.onnx")
