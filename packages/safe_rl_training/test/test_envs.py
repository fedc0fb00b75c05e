"""The env: the shield's own loop, many at a time; starts with a way out; bit-exact resume."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BACKUP, PASSED, PROJECTED, BatchKernel
from safe_rl_core.loop import ModelPlant, run_episode
from safe_rl_core.shield import Shield
from safe_rl_systems.build import batch_kernel, robot_of
from safe_rl_systems.robot import ROBOTS
from safe_rl_systems.tasks import LaneKeeping
from safe_rl_training.envs import ShieldedEnv, observation_sample
from safe_rl_training.parts.facing_rows import facing_rows
from safe_rl_training.projection_layer import ProjectionLayer

PAPER = ("unicycle_lane_paper", "quadrotor_powerloop_paper")
KERNELS: dict[str, BatchKernel] = {}


def kernel(name: str) -> BatchKernel:
    if name not in KERNELS:
        KERNELS[name] = batch_kernel(ROBOTS[name]())
    return KERNELS[name]


def env(name: str, count: int = 8, seed: int = 0, **options: object) -> ShieldedEnv:
    return ShieldedEnv(ROBOTS[name](), count, seed=seed, kernel=kernel(name), **options)


def wild(made: ShieldedEnv, rng: np.random.Generator) -> np.ndarray:
    """Proposals in and beyond the box, some of them missing."""
    proposed = 1.5 * rng.uniform(made.low, made.high, (made.count, made.action_size))
    proposed[rng.random(made.count) < 0.1] = np.nan
    return proposed


@pytest.mark.parametrize("name", PAPER)
def test_thousands_of_steps_without_a_violation(name: str) -> None:
    made, rng = env(name, 64, starts="mixed"), np.random.default_rng(1)
    verdicts = np.concatenate([made.step(wild(made, rng)).verdict for _ in range(80)])
    assert made.steps == 80 * 64
    assert made.violations == 0
    assert {PASSED, PROJECTED, BACKUP} <= set(verdicts.tolist())


@pytest.mark.parametrize("name", PAPER)
def test_without_the_shield_violations_are_counted(name: str) -> None:
    made = env(name, 16, shielded=False)
    for _ in range(80):
        made.step(np.tile(made.high, (16, 1)))
    assert made.violations > 0


@pytest.mark.parametrize("name", ["unicycle_lane", "quadrotor_powerloop"])
def test_is_the_shield_s_own_loop(name: str) -> None:
    """Delay included: the same proposals in the ROS-free loop give the same flight."""
    bundle = Bundle.load(f"models/{name}")
    made = ShieldedEnv(robot_of(bundle.path), 1, seed=0)
    rng, start = np.random.default_rng(2), made.x[0]
    proposals = rng.uniform(made.low, made.high, (30, made.action_size))
    given = iter(proposals)
    log = run_episode(
        bundle, ModelPlant(bundle), lambda x, t: next(given), Shield(bundle),
        steps=30, seed=0, x0=start,
    )  # fmt: skip
    for k, proposal in enumerate(proposals):
        np.testing.assert_allclose(made.x[0], log.x_true[k], atol=1e-9)
        transition = made.step(proposal[None])
        np.testing.assert_allclose(transition.action[0], log.u_safe[k], atol=1e-7)
    t = np.arange(1, 31)[:, None] * bundle.period
    expected = bundle.program("reward", log.x_true[1:], log.u_safe, t).sum()
    assert transition.returns[0] == pytest.approx(expected, rel=1e-6)


def test_time_limit_shows_the_last_observation_and_then_resets() -> None:
    made = env("unicycle_lane_paper", 4, duration=0.5)
    for k in range(10):
        transition = made.step(np.zeros((4, 2)))
        assert transition.ended.all() == (k == 9)
    last = made.kernel.evaluate("observation", transition.next_predicted, np.full((4, 1), 0.5))
    np.testing.assert_array_equal(transition.next_observation, last.astype(np.float32))
    assert np.isfinite(transition.returns).all() and (transition.returns < 0.0).all()
    assert (made.t == 0.0).all()
    assert not np.array_equal(made.observation, transition.next_observation)


def test_staggered_episodes_end_one_by_one() -> None:
    made = env("unicycle_lane_paper", 32, duration=1.0, staggered=True)
    first = [made.step(np.zeros((32, 2))) for _ in range(20)]
    ends = np.array([t.ended.sum() for t in first])
    assert ends.max() < 8 and ends.sum() >= 32
    cut = np.concatenate([t.returns[t.ended] for t in first[:10]])
    assert np.isnan(cut).all()
    later = [made.step(np.zeros((32, 2))) for _ in range(20)]
    assert sum(int(np.isfinite(t.returns[t.ended]).sum()) for t in later) >= 32


def test_mixed_starts_have_a_way_out_and_task_starts_begin_at_zero() -> None:
    made = env("quadrotor_powerloop", 64, starts="mixed")
    begun = made.t[:, 0] > 0.0
    assert 16 < begun.sum() < 48
    assert (made.kernel.way_out(made.predicted) >= 0.0).all()
    assert 0.0 < made.share_of_starts_rejected < 1.0
    assert (env("quadrotor_powerloop", 8).t == 0.0).all()


@dataclass(frozen=True)
class SlowStart(LaneKeeping):
    """From 0.1 to 0.5 m/s on the centre line."""

    def initial_state(self, w: torch.Tensor) -> torch.Tensor:
        """(..., 3) -> (..., 4)."""
        zero = torch.zeros_like(w[..., 0])
        return torch.stack((zero, zero, zero, 0.3 + 0.2 * w[..., 0]), -1)


def test_a_start_that_the_stop_action_takes_out_of_the_safe_set_is_rejected() -> None:
    """From v = 0.108 it brakes to v = -0.142 < 0 before the first own action takes effect."""
    robot = ROBOTS["unicycle_lane"]()
    robot = replace(robot, task=SlowStart(robot.task.system))
    slow = batch_kernel(robot)
    after = slow.evaluate(
        "step", np.array([[0.0, 0.0, 0.0, 0.108]]), np.array([robot.stop_action])
    )
    assert after[0, 3] == pytest.approx(-0.142)
    assert slow.way_out(after)[0] > 0.0  # what comes after it would be fine
    made = ShieldedEnv(robot, 32, seed=0, kernel=slow)
    assert made.x[:, 3].min() >= 0.3 - 1e-9 and made.predicted[:, 3].min() >= 0.05 - 1e-9
    assert 0.3 < made.share_of_starts_rejected < 0.7


def test_hopeless_starts_raise() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    impossible = batch_kernel(replace(robot, margins={"lane_upper": 1.9, "lane_lower": 1.9}))
    with pytest.raises(ModelError, match="verified backup plan"):
        ShieldedEnv(robot, 1, seed=0, kernel=impossible)


def test_rows_of_a_transition_hold_at_the_backup_action() -> None:
    made, rng = env("quadrotor_powerloop_paper", 16, keep=12), np.random.default_rng(3)
    transition = made.step(wild(made, rng))
    assert transition.normals.shape == (16, 12, 4) and transition.normals.dtype == np.float32
    slack = (transition.normals @ (transition.backup / made.scale)[..., None])[..., 0]
    assert (slack - transition.offsets >= -1e-4).all()


@pytest.mark.parametrize(
    ("name", "keep", "share"),
    [("unicycle_lane_paper", 8, 0.99), ("quadrotor_powerloop", 16, 0.85)],
)
def test_kept_rows_project_as_all_rows_do(name: str, keep: int, share: float) -> None:
    made, rng = env(name, 128, keep=keep, starts="mixed"), np.random.default_rng(6)
    layer = ProjectionLayer(made.scale, made.low, made.high)
    for _ in range(3):
        proposed, x = rng.uniform(made.low, made.high, (128, made.action_size)), made.predicted
        transition, rows = made.step(proposed), made.kernel.rows(x)
        kept, every = (
            layer(*(torch.from_numpy(np.asarray(a, dtype=np.float64)) for a in arrays)).action
            for arrays in (
                (proposed, transition.normals, transition.offsets, rows.backup),
                (proposed, rows.normals, rows.offsets, rows.backup),
            )
        )
        same = ((kept - every).abs() < 1e-3 * torch.from_numpy(made.high - made.low)).all(-1)
        assert float(same.double().mean()) > share


def test_facing_rows_are_those_that_rays_meet_first() -> None:
    """A square of half-width 1 around the origin among ten rows behind each of its sides."""
    sides = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    normals = np.repeat(sides, 11, axis=0)[None]
    offsets = -np.tile(np.linspace(1.0, 1.1, 11), 4)[None]
    ends = np.random.default_rng(0).uniform(-3.0, 3.0, (64, 2)).astype(np.float32)
    kept, bounds = facing_rows(normals, offsets, np.array([[0.2, -0.1]]), ends, 4)
    assert {tuple(row) for row in kept[0].tolist()} == {tuple(row) for row in sides.tolist()}
    np.testing.assert_array_equal(bounds, np.full((1, 4), -1.0))


@pytest.mark.parametrize("name", ["unicycle_lane_paper", "quadrotor_powerloop"])
def test_resumes_bit_exactly(name: str, tmp_path: object) -> None:
    first, rng = env(name, 6, seed=5, starts="mixed", duration=0.2), np.random.default_rng(4)
    proposals = [wild(first, rng) for _ in range(30)]
    for proposed in proposals[:15]:
        first.step(proposed)
    torch.save(first.state_dict(), f"{tmp_path}/env.pt")
    second = env(name, 6, seed=6, starts="mixed", duration=0.2)
    second.load_state_dict(torch.load(f"{tmp_path}/env.pt", weights_only=True))
    for proposed in proposals[15:]:
        a, b = first.step(proposed), second.step(proposed)
        np.testing.assert_array_equal(a.next_observation, b.next_observation)
        np.testing.assert_array_equal(a.reward, b.reward)
    assert first.steps == second.steps and first.starts_drawn == second.starts_drawn


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ModelError, match='"task" or "mixed"'):
        env("unicycle_lane_paper", starts="anywhere")
    with pytest.raises(ModelError, match=r"shape \(8, 2\), got \(8, 3\)"):
        env("unicycle_lane_paper").step(np.zeros((8, 3)))
    stored = env("unicycle_lane_paper", 4).state_dict()
    with pytest.raises(ModelError, match="the number of robots"):
        env("unicycle_lane_paper", 5).load_state_dict(stored)


def test_observation_sample_covers_more_than_the_task() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    seen = observation_sample(robot, kernel(robot.name), 0, count=64, periods=16)
    assert seen.shape == (1024, 8) and seen.dtype == np.float32
    assert seen.std(0).min() > 0.05
