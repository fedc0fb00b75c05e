"""The trainer: gradients, a tiny run that learns, a resumed run that equals an unbroken one."""

import math
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS
from safe_rl_training import tracker
from safe_rl_training.evaluation import evaluate
from safe_rl_training.parts.actuators import Actuators, ideal
from safe_rl_training.recipes import RECIPES, Recipe
from safe_rl_training.tracker import (
    Starts,
    begin,
    draw_starts,
    make_advance,
    resume,
    rollout_cost,
    save,
    train,
    validation_cost,
)


def tiny(name: str, iterations: int = 12) -> Recipe:
    return replace(RECIPES[name], batch=64, iterations=iterations, horizon=(5, 8), hidden=16)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_gradient_reaches_every_weight(name: str) -> None:
    recipe = tiny(name)
    robot = ROBOTS[recipe.robot]()
    progress = begin(recipe, robot, seed=0)
    advance = make_advance(recipe, robot, progress.network)
    starts = draw_starts(recipe, robot, progress.network, progress.generator)
    rollout_cost(advance, starts, 8, robot.system.period).backward()
    for parameter in progress.network.parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all())
        assert bool((parameter.grad != 0.0).any())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    recipe = tiny(name)
    robot = ROBOTS[recipe.robot]()
    network = begin(recipe, robot, seed=0).network
    starts = draw_starts(recipe, robot, network, torch.Generator().manual_seed(7))
    network.double()
    actuators = Actuators(*(getattr(starts.actuators, f.name).double() for f in fields(Actuators)))
    starts = Starts(starts.x.double(), starts.t.double(), actuators, starts.delivered.double())
    advance = make_advance(recipe, robot, network)
    bias, small = network.body[-1].bias, 1e-5
    rollout_cost(advance, starts, 8, robot.system.period).backward()
    for i in range(len(bias)):
        costs = []
        for change in (small, -small):
            with torch.no_grad():
                bias[i] += change
                costs.append(rollout_cost(advance, starts, 8, robot.system.period).item())
                bias[i] -= change
        slope = (costs[0] - costs[1]) / (2.0 * small)
        assert slope == pytest.approx(bias.grad[i].item(), rel=1e-5, abs=1e-7)


def test_cost_of_one_step_by_hand() -> None:
    recipe = replace(tiny("unicycle"), state_cost={"py": 10.0}, keep={"speed_min": 1.0})
    robot = ROBOTS[recipe.robot]()
    network = begin(recipe, robot, seed=0).network
    with torch.no_grad():
        network.body[-1].weight.zero_()  # so that u = 0, the centre of the box
    advance = make_advance(recipe, robot, network)
    # On the lane at a standstill at t = -0.05 s; the reference is then at py = 0, v = 5.
    x, zero = torch.zeros(1, 4), torch.zeros(1, 2)
    *_, cost = advance(x, zero, zero, torch.tensor([[-0.05]]), ideal(robot.system, 1))
    heading = math.asin(2.0 * math.pi / 10.0 * 2.5 / 5.0) / (math.pi / 3.0)
    raw = 20.0 + 10.0 * heading**2 + recipe.keep_weight * 1.0  # speed, heading, 1 m/s too slow
    s = recipe.cost_scale
    assert cost.item() == pytest.approx(s * (math.sqrt(1.0 + 2.0 * raw / s) - 1.0), rel=1e-5)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_tiny_run_learns(name: str) -> None:
    recipe = replace(tiny(name, iterations=40), horizon=(10, 15), learning_rate=(1e-2, 1e-2))
    robot = ROBOTS[recipe.robot]()
    progress = begin(recipe, robot, seed=0)
    advance = make_advance(recipe, robot, progress.network)
    before = validation_cost(recipe, robot, progress.network, advance)
    train(recipe, robot, progress, advance, until=40)
    assert validation_cost(recipe, robot, progress.network, advance) < 0.85 * before
    assert len(progress.curve) == 40 and progress.validation[-1][0] == 40


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    recipe = tiny("unicycle", iterations=6)
    robot = ROBOTS[recipe.robot]()
    whole = begin(recipe, robot, seed=3)
    train(recipe, robot, whole, make_advance(recipe, robot, whole.network), until=6)
    half = begin(recipe, robot, seed=3)
    train(recipe, robot, half, make_advance(recipe, robot, half.network), until=3)
    save(half, recipe, 3, tmp_path / "checkpoint.pt")
    again = begin(recipe, robot, seed=3)
    resume(again, recipe, 3, tmp_path / "checkpoint.pt")
    train(recipe, robot, again, make_advance(recipe, robot, again.network), until=6)
    assert again.curve == whole.curve
    for a, b in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_refuses_what_it_cannot_continue(tmp_path: Path) -> None:
    recipe = tiny("unicycle")
    robot = ROBOTS[recipe.robot]()
    progress = begin(recipe, robot, seed=0)
    with pytest.raises(ModelError, match="no checkpoint"):
        resume(progress, recipe, 0, tmp_path / "checkpoint.pt")
    save(progress, recipe, 0, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError, match="another recipe or seed"):
        resume(progress, recipe, 1, tmp_path / "checkpoint.pt")


def test_recipe_refuses_names_that_the_robot_lacks() -> None:
    with pytest.raises(ModelError, match="nonsense"):
        replace(RECIPES["unicycle"], keep={"nonsense": 0.1})
    with pytest.raises(ModelError, match="unknown robot"):
        replace(RECIPES["unicycle"], robot="boat")
    with pytest.raises(ModelError, match="horizon"):
        replace(RECIPES["unicycle"], horizon=(8, 5))


def test_schedules_by_hand() -> None:
    recipe = replace(
        RECIPES["unicycle"], iterations=100, horizon=(20, 80), learning_rate=(3e-3, 1e-3)
    )
    assert [recipe.horizon_at(i) for i in (0, 25, 50, 99)] == [20, 50, 80, 80]
    assert recipe.learning_rate_at(0) == pytest.approx(3e-3)
    assert recipe.learning_rate_at(50) == pytest.approx(2e-3)
    assert recipe.learning_rate_at(100) == pytest.approx(1e-3)


def test_the_command_line_leaves_a_complete_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracker.RECIPES, "unicycle", tiny("unicycle", iterations=2))
    monkeypatch.setattr(tracker, "evaluate", partial(evaluate, laps=1, count=4))
    out = tmp_path / "run"
    arguments = ["unicycle", "--seed", "0", "--out", str(out), "--no-compile"]
    assert tracker.main(arguments) == 0
    names = {"policy.onnx", "training.json", "learning_curve.png", "checkpoint.pt"}
    assert {p.name for p in out.iterdir()} == names
    text = (out / "training.json").read_text()
    assert "source_sha256" in text and str(tmp_path) not in text
    assert tracker.main([*arguments, "--resume"]) == 0
