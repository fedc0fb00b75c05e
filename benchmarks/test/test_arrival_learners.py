"""Learners of phase I on one budget: what is counted, what is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))

pytest.importorskip("torch", reason="the learners are torch's")

import arrival_learners  # noqa: E402
from safe_rl_systems.robot import ROBOTS  # noqa: E402


@pytest.mark.parametrize("name", arrival_learners.LEARNERS)
def test_every_learner_gets_the_iterations_that_fit_its_budget(name: str) -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    few = arrival_learners.iterations_for(name, robot, 1e-3)
    assert few == arrival_learners.SELECTIONS
    assert arrival_learners.iterations_for(name, robot, 100.0) > 2 * few
    assert arrival_learners.made(name, robot, 30, 0).settings.iterations == 30


def test_the_best_network_is_kept_and_no_worse_than_the_analytic_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    monkeypatch.setattr(arrival_learners, "HELD_OUT", 200)
    scores = iter((0.3, 0.9, 0.2, *[0.1] * 20))
    judged = []

    class Score:
        def __init__(self, found: object) -> None:
            judged.append(found)

        def mean(self) -> float:
            return next(scores)

    monkeypatch.setattr(arrival_learners, "saved", lambda found, x, bundle: Score(found))
    best, count, spent = arrival_learners.learned("TD3, reach-avoid value", robot, 1e-3, 0)
    assert best is judged[1] and count == len(judged) == arrival_learners.SELECTIONS
    assert spent > 0.0
