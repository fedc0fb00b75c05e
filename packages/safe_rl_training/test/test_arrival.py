"""Phase I's parts: starts, margins that agree with the kernel, intervals, pools, learners."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup import with_backup
from safe_rl_systems.build import batch_kernel
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_training.arrival_rollout import RolloutArrival, RolloutSettings
from safe_rl_training.arrival_tuning import (
    Gains,
    TuningSettings,
    tune,
    with_gains,
    with_tuning,
)
from safe_rl_training.parts.arrival import (
    Margins,
    Profile,
    inward_clip,
    make_advance,
    plan_margin,
    safe_states,
)
from safe_rl_training.parts.arrival_measures import (
    NEAR_CEILING,
    clopper_pearson,
    compared,
    hoeffding,
    over_horizons,
    pools,
    published_grid,
    saved,
    saver,
)
from safe_rl_training.robot_source import load_robot

COURSE = Path(__file__).parents[3] / "docs" / "examples" / "obstacle_course.py"
QUICK = RolloutSettings(updates=4, block=2, batch=64, width=8, pool=2, compiled=False)


@pytest.fixture(scope="module")
def course() -> Robot:
    """A robot of one's own file, with a recovery law of its own."""
    return load_robot(str(COURSE))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def margins_of(robot: Robot) -> Margins:
    return Margins.measured(robot, safe_states(robot, 1024, seeded()), Profile.nominal(robot))


def test_safe_states_fill_the_safe_part_of_the_operating_box() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    narrow = replace(robot.safe_set, rows=(*robot.safe_set.rows[:2], *robot.safe_set.rows[2:]))
    x = safe_states(replace(robot, safe_set=narrow), 4000, seeded())
    assert x.shape == (4000, 3) and bool((robot.safe_set(x) >= 0.0).all())
    low, high = x.amin(0), x.amax(0)
    torch.testing.assert_close(high[0], torch.tensor(1.8), atol=0.01, rtol=0.0)
    assert float(low[1]) < 0.05 and float(high[1]) > 11.95
    assert abs(float(x[:, 0].mean())) < 0.1


def test_a_safe_set_that_misses_the_operating_box_is_refused() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    rows = (replace(robot.safe_set.rows[0], limit=-5.0), *robot.safe_set.rows[1:])
    nowhere = replace(robot, safe_set=replace(robot.safe_set, rows=rows))
    with pytest.raises(ModelError, match="hardly a state"):
        safe_states(nowhere, 10, seeded())


@pytest.mark.parametrize("name", ["unicycle_lane", "quadrotor_powerloop"])
def test_margin_has_the_sign_of_the_kernels_way_out(name: str) -> None:
    robot = replace(ROBOTS[name](), horizon=30 if name == "unicycle_lane" else 60)
    margins = margins_of(robot)
    x = safe_states(robot, 600, seeded(3)).double()
    advance = make_advance(margins, robot.backup_policy)
    found = plan_margin(advance, margins, x).numpy() >= 0.0
    least = batch_kernel(robot).way_out(x.numpy())
    assert 0.1 < found.mean() < 0.9
    # A state whose margin is the kernel's numerical margin may go either way.
    assert np.array_equal(found[np.abs(least) > 1e-4], (least >= 0.0)[np.abs(least) > 1e-4])


def test_arrival_anywhere_and_discount_keep_the_sign() -> None:
    robot = replace(ROBOTS["unicycle_lane_paper"](), horizon=25)
    margins = margins_of(robot)
    x = safe_states(robot, 800, seeded(4)).double()
    advance = make_advance(margins, robot.backup_policy)
    plain = plan_margin(advance, margins, x)
    for discount, anywhere in ((0.9, False), (1.0, True), (0.9, True)):
        other = plan_margin(advance, margins, x, discount, anywhere)
        assert torch.equal(other >= 0.0, plain >= 0.0)
    torch.testing.assert_close(plan_margin(advance, margins, x, 0.9), 0.9**26 * plain)


def test_profile_tightens_rows_step_by_step() -> None:
    robot = replace(ROBOTS["unicycle_lane_paper"](), horizon=3)
    margins = margins_of(robot)
    x = torch.tensor([[1.5, 5.0, 0.0]], dtype=torch.float64)
    advance = make_advance(margins, lambda y: torch.zeros_like(y[..., :2]))
    rows = np.zeros((4, 4))
    rows[2, 0] = 0.5  # one step keeps half a metre from the upper lane limit: 0.2 m too much
    tight = margins.with_profile(Profile(rows, 0.0))
    lowest = tight.safe(x, torch.tensor(rows[2]))
    torch.testing.assert_close(lowest, -0.2 / margins.row_scale[:1].double())
    free = plan_margin(advance, margins, x)
    held = plan_margin(advance, margins.with_profile(Profile(np.zeros((4, 4)), 0.3)), x)
    torch.testing.assert_close(held, torch.minimum(held, free - 0.3))


def test_inward_clip_passes_only_slopes_that_lead_back() -> None:
    low, high = torch.tensor([-1.0]), torch.tensor([1.0])
    u = torch.tensor([[2.0], [2.0], [-2.0], [-2.0], [0.5]], requires_grad=True)
    sides = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0]])
    clipped = inward_clip(u, low, high)
    assert clipped.flatten().tolist() == [1.0, 1.0, -1.0, -1.0, 0.5]
    (clipped * sides).sum().backward()
    # A descent moves against the slope: down from above (slope > 0), up from below (slope < 0).
    assert u.grad is not None and u.grad.flatten().tolist() == [1.0, 0.0, 0.0, -1.0, 1.0]


def test_adjoint_limit_bounds_each_sample_alone() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    margins = margins_of(robot)
    x = torch.tensor([[1.0, 5.0, 0.3], [-0.5, 6.0, 0.1]], requires_grad=True)
    kept = torch.zeros(4)
    lowest = torch.full((2,), torch.inf)
    slopes = []
    for limit in (math.inf, 1e-3):
        _, end = make_advance(margins, robot.backup_policy, limit)(x, lowest, kept)
        slopes.append(torch.autograd.grad(end.sum(), x)[0])
    norms = slopes[0].norm(dim=-1, keepdim=True)
    assert bool((norms > 1e-3).all())
    torch.testing.assert_close(slopes[1], 1e-3 * slopes[0] / norms)


def test_intervals() -> None:
    # Textbook values: 0 of 10 at 99 % gives 1 - (0.005)^(1/10).
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1.0 - 0.005**0.1))
    assert clopper_pearson(10, 10)[1] == 1.0
    low, high = clopper_pearson(50, 100)
    assert (low, high) == (pytest.approx(0.3689, abs=2e-4), pytest.approx(0.6311, abs=2e-4))
    assert hoeffding(1024) == pytest.approx(math.sqrt(math.log(200.0) / 2048.0))
    before, after = np.array([True, True, False]), np.array([True, False, True])
    assert compared(before, after) == {"gained": 1, "lost": 1}


def test_longer_horizons_save_more_and_the_grid_follows_the_plant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("safe_rl_training.parts.arrival_measures.GRID", (13, 13, 9))
    robot = ROBOTS["unicycle_lane_paper"]()
    x = safe_states(robot, 2000, seeded(1)).double().numpy()
    saves = saver(robot, None)
    found = over_horizons(saves, (5, 20, 50), x)
    shares = [found[n]["share"] for n in ("5", "20", "50")]
    assert shares[0] < shares[1] < shares[2]
    coarse = published_grid(robot, saves, 20)
    assert coarse["states"] == 13 * 13 * 9
    # A slow twin: 20 steps on the plant, x_0 .. x_20 in C, x_20 in B.
    side = torch.linspace(-1.0, 1.0, 13, dtype=torch.float64)
    speed = torch.linspace(0.0, 12.0, 9, dtype=torch.float64)
    x0 = torch.cartesian_prod(1.8 * side, speed, math.pi / 3.0 * side)
    safe, y = (robot.safe_set(x0) >= 0.0).all(-1), x0
    for _ in range(20):
        y = robot.system.step(y, robot.backup_policy(y))
        safe &= (robot.safe_set(y) >= 0.0).all(-1)
    safe &= (robot.base_set(y) >= 0.0).all(-1)
    assert coarse["share"] == pytest.approx(float(safe.double().mean()), abs=2.5 / len(x0))
    with pytest.raises(ModelError, match="LaneUnicycle"):
        published_grid(ROBOTS["unicycle_lane"](), saves, 20)


def test_pools_lie_where_they_say() -> None:
    robot = ROBOTS["quadrotor_powerloop_paper"]()
    found = pools(robot, 300)
    assert {x.shape for x in found.values()} == {(300, 10)}
    room = {name: 3.0 - x[:, 2] for name, x in found.items()}
    assert all((r >= 0.0).all() for r in room.values())
    assert room["near_ceiling"].max() <= NEAR_CEILING + 1.5 * 0.4
    assert room["general"].mean() > 1.0 > room["near_ceiling"].mean()
    for x in found.values():
        assert np.allclose(np.linalg.norm(x[:, 6:], axis=1), 1.0, atol=1e-5)
    again = pools(robot, 300)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    low = replace(robot, task=replace(robot.task, height=1.0, radius=0.5))
    assert set(pools(low, 10)) == {"general"}, "a loop below the ceiling has no excursion"
    with pytest.raises(ModelError, match="ceiling"):
        pools(ROBOTS["unicycle_lane"](), 10)


@pytest.mark.parametrize("name", ["unicycle_lane_paper", "quadrotor_powerloop", "unicycle_robust"])
def test_gains_of_many_candidates_are_those_of_each(name: str) -> None:
    robot = ROBOTS[name]()
    gains = Gains.of(robot)
    factors = torch.exp(0.3 * torch.randn(3, len(gains.names), generator=seeded()))
    values = (gains.values * factors).unsqueeze(1)
    x = safe_states(robot, 50, seeded(2))
    wide = with_gains(robot, values).backup_policy(x.expand(3, *x.shape))
    for k in range(3):
        one = with_gains(robot, values[k, 0]).backup_policy(x)
        torch.testing.assert_close(wide[k], one, atol=2e-4, rtol=1e-4)
    same = with_gains(robot, gains.values).backup_policy(x)
    outside = (robot.base_set(x) < 0.0).any(-1)
    torch.testing.assert_close(
        same[outside], robot.backup_policy(x)[outside], atol=2e-4, rtol=1e-4
    )


def test_tuning_enlarges_the_set() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    settings = TuningSettings(generations=5, candidates=12, elites=4, states=128)
    tuning = tune(robot, margins_of(robot), settings, 0, lambda _: None)
    x = safe_states(robot, 4000, seeded(7)).double().numpy()
    better = saved(with_tuning(robot, tuning), x, None).mean()
    assert better > saved(robot, x, None).mean() + 0.02
    assert len(tuning) == 3


def test_an_account_of_the_tuner_may_be_in_any_order() -> None:
    robot = ROBOTS["quadrotor_powerloop"]()
    names = Gains.of(robot).names
    tuning = {name: {"tuned": 1.0 + k} for k, name in enumerate(names)}
    assert sorted(tuning) != list(names)
    x = safe_states(robot, 20, seeded(3))
    one, other = (
        with_tuning(robot, found).backup_policy(x)
        for found in (tuning, {name: tuning[name] for name in sorted(tuning)})
    )
    assert torch.equal(one, other)


def test_a_law_of_ones_own_is_tuned_in_the_fields_that_it_names(course: Robot) -> None:
    gains = Gains.of(course)
    assert gains.names == ("reach", "gain") and gains.values.tolist() == pytest.approx([0.6, 8.0])
    x = safe_states(course, 200, seeded(5))
    values = torch.tensor([[[0.6, 8.0]], [[0.9, 3.0]]])
    wide = with_gains(course, values).backup_policy(x.expand(2, *x.shape))
    by_hand = replace(course.backup_policy, reach=float(values[1, 0, 0]), gain=3.0)
    assert torch.allclose(wide[0], course.backup_policy(x)) and torch.equal(wide[1], by_hand(x))
    assert not torch.equal(wide[0], wide[1])
    small = TuningSettings(generations=1, candidates=3, elites=2, states=32)
    tuning = tune(replace(course, horizon=5), margins_of(course), small, 0, lambda _: None)
    law = with_tuning(course, tuning).backup_policy
    assert law.reach == tuning["reach"]["tuned"] != 0.6


def test_a_law_that_names_no_gains_is_not_tuned(course: Robot) -> None:
    nameless = replace(course, backup_policy=lambda x: course.backup_policy(x))
    assert Gains.find(nameless) is None
    with pytest.raises(ModelError, match="name them in an attribute `tunable`"):
        Gains.of(nameless)
    negative = replace(course, backup_policy=replace(course.backup_policy, gain=-1.0))
    with pytest.raises(ModelError, match="positive floats, got .*'gain': -1.0"):
        Gains.of(negative)


def test_tuned_base_controller_acts_outside_the_base_set_only() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    base_set = robot.base_set
    # a base set of one's own, which has no attribute `level`
    own = replace(robot, base_set=lambda x: base_set(x))
    values = 2.0 * Gains.of(robot).values
    x = torch.cat((safe_states(robot, 100, seeded(6)), torch.tensor([[0.1, 5.0, 0.0]])))
    found = with_gains(own, values).backup_policy(x)
    assert torch.equal(found[-1], robot.base_controller(x[-1]))
    assert torch.equal(found, with_gains(robot, values).backup_policy(x))


def test_learner_starts_at_the_analytic_law_and_improves() -> None:
    robot = replace(ROBOTS["unicycle_lane_paper"](), horizon=15)
    settings = replace(QUICK, updates=60, block=10, batch=128)
    learner = RolloutArrival(robot, settings, seed=1)
    x = safe_states(robot, 1500, seeded(8)).double().numpy()
    at_first = saved(with_backup(robot, learner.layers), x, None).mean()
    assert at_first == pytest.approx(saved(robot, x, None).mean(), abs=0.02)
    scalars = {}
    for _ in range(settings.iterations):
        scalars = learner.iterate()
    assert saved(with_backup(robot, learner.layers), x, None).mean() > at_first + 0.025
    assert set(scalars) == {"volume/pool", "volume/soft", "gradient_norm", "sharpness"}
    # The learner's own margin is that of the kernel.
    margin = learner.margin(torch.from_numpy(x).float()).numpy()
    way_out = batch_kernel(with_backup(robot, learner.layers)).way_out(x)
    clear = np.abs(way_out) > 1e-3
    assert np.array_equal((margin >= 0.0)[clear], (way_out >= 0.0)[clear])


def test_learner_resumes_bit_for_bit() -> None:
    robot = replace(ROBOTS["unicycle_lane"](), horizon=5)
    straight, first, second = (RolloutArrival(robot, QUICK, seed=2) for _ in range(3))
    straight.iterate()
    expected = straight.iterate()
    first.iterate()
    second.load_state_dict(first.state_dict())
    assert second.iterate() == expected
    for a, b in zip(straight.layers, second.layers, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_settings_and_numbers_that_cannot_work_are_refused() -> None:
    with pytest.raises(ModelError, match="multiple of block"):
        RolloutSettings(updates=10, block=3)
    with pytest.raises(ModelError, match="discount"):
        RolloutSettings(discount=0.0)
    with pytest.raises(ModelError, match="elites"):
        TuningSettings(candidates=3, elites=5)
    robot = replace(ROBOTS["unicycle_lane"](), horizon=5)
    learner = RolloutArrival(robot, QUICK, seed=0)
    with torch.no_grad():
        learner._parameters[0].fill_(math.nan)
    with pytest.raises(ModelError, match="gradient norm is nan"):
        learner.iterate()
