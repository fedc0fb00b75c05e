"""Imperfect actuators against a hand-worked case, a fine simulation, and the ideal robot."""

import math

import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS, unicycle_lane
from safe_rl_training.parts.actuators import (
    Actuators,
    Imperfection,
    draw,
    ideal,
    lag_over_period,
    step_with,
)
from safe_rl_training.recipes import RECIPES


def test_lag_of_one_period_by_hand() -> None:
    # From 0 towards 1 with tau = period: end 1 - e^-1, mean 1 - (1 - e^-1) = e^-1.
    one = torch.ones(1, 1)
    mean, end = lag_over_period(0.0 * one, one, 0.05 * one, 0.05)
    assert end.item() == pytest.approx(1.0 - math.exp(-1.0), abs=1e-6)
    assert mean.item() == pytest.approx(math.exp(-1.0), abs=1e-6)


def test_lag_agrees_with_a_fine_simulation() -> None:
    delivered, target, tau, period, substeps = 2.0, -1.0, 0.03, 0.02, 20_000
    w, total = delivered, 0.0
    for _ in range(substeps):
        total += w / substeps
        w += period / substeps * (target - w) / tau
    as_tensor = torch.tensor
    mean, end = lag_over_period(as_tensor(delivered), as_tensor(target), as_tensor(tau), period)
    assert mean.item() == pytest.approx(total, abs=2e-4)
    assert end.item() == pytest.approx(w, abs=2e-4)


def test_delay_and_gain_and_drift_by_hand() -> None:
    system = unicycle_lane().system  # states px, py, theta, v; inputs accel, turn_rate
    actuators = Actuators(
        tau=torch.zeros(1, 2),
        gain=torch.tensor([[2.0, 1.0]]),
        delay=torch.tensor([[0.25]]),
        drift=torch.tensor([[0.0, 0.0, 0.0, 0.4]]),
    )
    x, last, u = torch.zeros(1, 4), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    x_next, delivered = step_with(actuators, system, x, last, last, u)
    # A quarter of the last command 0, three quarters of 1, twice: 1.5 m/s², plus 0.4 m/s² drift.
    assert delivered[0, 0].item() == pytest.approx(1.5)
    assert x_next[0, 3].item() == pytest.approx(0.05 * (1.5 + 0.4))


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_ideal_actuators_leave_the_robot_as_it_is(name: str) -> None:
    robot = ROBOTS[name]()
    m = len(robot.system.inputs)
    x = robot.task.operating_state(2.0 * torch.rand(50, robot.task.operating_dimension) - 1.0)
    u, other = torch.randn(50, m), torch.randn(50, m)
    x_next, delivered = step_with(ideal(robot.system, 50), robot.system, x, other, other, u)
    torch.testing.assert_close(x_next, robot.system.step(x, u))
    torch.testing.assert_close(delivered, u)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_draws_stay_in_their_ranges(name: str) -> None:
    recipe = RECIPES[name]
    system = ROBOTS[recipe.robot]().system
    drawn = draw(recipe.imperfection, system, 4000, torch.Generator().manual_seed(0))
    high = torch.tensor([high for _, high in recipe.imperfection.lag])
    low = torch.tensor([low for low, _ in recipe.imperfection.lag])
    lagging = (drawn.tau > 0.0).all(-1)
    assert bool((drawn.tau <= high).all() and (drawn.tau[lagging] >= low).all())
    assert 1.0 - lagging.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert bool(((drawn.delay >= 0.0) & (drawn.delay <= 1.0)).all())


def test_ranges_that_do_not_fit_the_robot_are_refused() -> None:
    system = unicycle_lane().system
    good = {"lag": ((0.0, 0.1),) * 2, "gain": ((1.0, 1.0),) * 2, "drift": {}}
    Imperfection(**good).check(system)
    with pytest.raises(ModelError, match="per input"):
        Imperfection(**good | {"lag": ((0.0, 0.1),)}).check(system)
    with pytest.raises(ModelError, match="low <= high"):
        Imperfection(**good | {"lag": ((0.2, 0.1),) * 2}).check(system)
    with pytest.raises(ModelError, match="unknown states"):
        Imperfection(**good | {"drift": {"pz": 1.0}}).check(system)
