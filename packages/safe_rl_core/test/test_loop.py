"""The loop, its log and its scores; hand-worked where a number can be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safe_rl_core import Bundle, Policy, Shield
from safe_rl_core.adversary import corners, make_proposer
from safe_rl_core.errors import ModelError, PlantError, SafeRLError
from safe_rl_core.loop import ModelPlant, recoverable_state, run_episode
from safe_rl_core.metrics import quantiles, summarise, wilson
from safe_rl_core.record import FlightLog


def test_adversaries_do_not_leave_the_safe_set(bundle: Bundle) -> None:
    shield, plant, kinds = Shield(bundle), ModelPlant(bundle), set()
    for episode in range(10):
        rng = np.random.default_rng([3, episode])
        x0 = recoverable_state(bundle, rng)
        propose = make_proposer("adversarial", bundle, rng)
        kinds.add(propose.__qualname__)
        log = run_episode(bundle, plant, propose, shield, steps=60, seed=episode, x0=x0)
        assert summarise(bundle, log)["violations"] == 0
    assert len(kinds) >= 3


def test_without_the_shield_the_same_adversary_leaves_it(unicycle: Bundle) -> None:
    plant, unsafe = ModelPlant(unicycle), 0
    for episode in range(10):
        rng = np.random.default_rng([3, episode])
        x0 = recoverable_state(unicycle, rng)
        propose = make_proposer("adversarial", unicycle, rng)
        log = run_episode(unicycle, plant, propose, None, steps=100, seed=episode, x0=x0)
        unsafe += summarise(unicycle, log)["violations"] > 0
    assert unsafe >= 8


def test_scores_of_a_hand_made_flight(instant: Bundle) -> None:
    plant = ModelPlant(instant)
    start = np.array([0.0, 0.0, 0.0, 5.0])
    log = run_episode(instant, plant, lambda x, t: np.zeros(2), None, steps=3, seed=0, x0=start)
    summary = summarise(instant, log)
    assert np.allclose(log.x_true[:, 0], [0.0, 0.25, 0.5, 0.75])
    assert summary["worst_margin"] == pytest.approx(math.pi / 3)
    assert summary["rmse"]["v"] == pytest.approx(0.0, abs=1e-12)
    errors = 2.5 * np.sin(2 * np.pi * np.array([0.05, 0.1, 0.15]) / 10.0)
    slopes = np.arcsin(
        2.5 * 0.2 * np.pi * np.cos(2 * np.pi * np.array([0.05, 0.1, 0.15]) / 10) / 5
    )
    expected = -np.sum(50 * (errors / 1.8) ** 2 + 10 * (slopes / (math.pi / 3)) ** 2)
    assert summary["return"] == pytest.approx(expected)
    assert summary["shielded"] is False
    assert summary["shield_us"] is None


def test_a_violation_is_counted(instant: Bundle) -> None:
    plant = ModelPlant(instant)
    start = np.array([0.0, 1.7, 0.5, 5.0])
    log = run_episode(instant, plant, lambda x, t: np.zeros(2), None, steps=4, seed=0, x0=start)
    summary = summarise(instant, log)
    assert summary["violations"] == int(np.sum(log.x_true[:, 1] > 1.8)) > 0
    assert summary["worst_row"] == "lane_upper"
    assert summary["worst_margin"] == pytest.approx(1.8 - log.x_true[-1, 1])


def test_the_log_survives_a_file(unicycle: Bundle, tmp_path: Path) -> None:
    shield, plant = Shield(unicycle), ModelPlant(unicycle)
    log = run_episode(unicycle, plant, Policy(unicycle).act, shield, steps=5, seed=1)
    log.save(tmp_path / "log.npz")
    again = FlightLog.load(tmp_path / "log.npz")
    assert summarise(unicycle, again) == summarise(unicycle, log)
    np.savez(tmp_path / "other.npz", t=np.zeros(1))
    with pytest.raises(SafeRLError, match="not a flight log: it lacks"):
        FlightLog.load(tmp_path / "other.npz")


def test_the_model_plant_delays_by_whole_periods(unicycle: Bundle) -> None:
    plant, x0 = ModelPlant(unicycle), np.array([0.0, 0.0, 0.0, 5.0])
    plant.reset(0, x0)
    first, second = plant.step(np.array([2.0, 0.0])), plant.step(np.array([0.0, 0.0]))
    assert first[3] == pytest.approx(5.0 + unicycle.stop_action[0] * unicycle.period)
    assert second[3] == pytest.approx(first[3] + 2.0 * unicycle.period)


def test_same_seed_same_flight(quadrotor: Bundle) -> None:
    flights = [
        run_episode(
            quadrotor,
            ModelPlant(quadrotor),
            Policy(quadrotor).act,
            Shield(quadrotor),
            steps=20,
            seed=9,
        )
        for _ in range(2)
    ]
    assert flights[0].x_true.tobytes() == flights[1].x_true.tobytes()
    assert flights[0].u_safe.tobytes() == flights[1].u_safe.tobytes()


def test_wilson_against_published_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_quantiles_ignore_missing_values() -> None:
    assert quantiles(np.array([math.nan])) is None
    assert quantiles(np.array([1.0, math.nan, 3.0])) == {"p50": 2.0, "p99": 2.98, "max": 3.0}


def test_corners_are_all_corners(unicycle: Bundle) -> None:
    assert sorted(map(tuple, corners(unicycle))) == [(-5, -1), (-5, 1), (5, -1), (5, 1)]


def test_wrong_requests(unicycle: Bundle, quadrotor: Bundle) -> None:
    with pytest.raises(ModelError, match="policy must be one of"):
        make_proposer("clever", unicycle, np.random.default_rng(0))
    with pytest.raises(PlantError, match="period"):
        run_episode(unicycle, ModelPlant(quadrotor), lambda x, t: None, None, steps=1, seed=0)
    with pytest.raises(PlantError, match="x0 must have shape"):
        ModelPlant(unicycle).reset(0, np.zeros(2))


@pytest.mark.parametrize("kind", ["onnx", "random"])
def test_the_other_proposers_stay_in_shape(unicycle: Bundle, kind: str) -> None:
    propose = make_proposer(kind, unicycle, np.random.default_rng(0))
    assert propose(np.array([0.0, 0.1, 0.0, 5.0]), 0.3).shape == (2,)


def test_a_robot_without_a_way_out_is_said_to_be_one(unicycle: Bundle) -> None:
    hopeless = replace(unicycle, margins=dict.fromkeys(unicycle.safe_set_names, 50.0))
    with pytest.raises(PlantError, match="no state of unicycle_lane's operating box"):
        recoverable_state(hopeless, np.random.default_rng(0))


def test_an_unshielded_nonsense_proposal_stops_the_robot(instant: Bundle) -> None:
    start = np.array([0.0, 0.0, 0.0, 5.0])
    log = run_episode(
        instant, ModelPlant(instant), lambda x, t: None, None, steps=2, seed=0, x0=start
    )
    assert np.array_equal(log.u_safe, np.tile(instant.stop_action, (2, 1)))
