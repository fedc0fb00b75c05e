"""Scores of closed-loop flights against hand-made ones."""

import pytest
import torch
from safe_rl_systems.robot import ROBOTS, unicycle_lane
from safe_rl_training.evaluation import Flight, evaluate, summarise
from safe_rl_training.recipes import RECIPES
from safe_rl_training.tracker import begin


def test_perfect_tracking_scores_zero_error_and_leaves_the_lane() -> None:
    robot = unicycle_lane()
    steps = 200
    t = torch.arange(steps + 1)[:, None, None] * 0.05
    states = robot.task.reference(t.expand(-1, 3, 1))
    flight = Flight(states, torch.zeros(steps, 3, 2), -torch.ones(steps, 3), 0.05)
    figures = summarise(flight, robot)
    assert figures["position_rmse"] == pytest.approx(0.0, abs=1e-6)
    assert figures["return_mean"] == -steps
    assert figures["share_of_episodes_outside_safe_set"] == 1.0


def test_offset_is_measured_after_the_first_half_lap() -> None:
    robot = unicycle_lane()
    steps = 200
    t = torch.arange(steps + 1)[:, None, None] * 0.05
    states = robot.task.reference(t).clone()
    states[:100, 0, 1] += 5.0  # forgiven
    states[100:, 0, 1] += 0.5
    flight = Flight(states, torch.zeros(steps, 1, 2), torch.zeros(steps, 1), 0.05)
    assert summarise(flight, robot)["rmse_py"] == pytest.approx(0.5, abs=1e-5)


def test_one_network_serves_both_variants_of_a_robot() -> None:
    for recipe in RECIPES.values():
        robot = ROBOTS[recipe.robot]()
        network = begin(recipe, robot, seed=0).network
        paper = ROBOTS[robot.variants["paper"]]()
        assert paper.task.observation_names == robot.task.observation_names
        figures = evaluate(network, paper, {}, laps=1, count=4)
        assert set(figures) == {"paper, episode, no lag", "paper, 1 laps, no lag"}
