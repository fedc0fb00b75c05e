"""The book of a simulated run, with the real bundle and states made by hand."""

from pathlib import Path

import numpy as np
import pytest
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import PlantError
from sim_bridge.flight import COMPLETED, INCOMPLETE, VIOLATED, Flight

MODELS = Path(__file__).resolve().parents[3] / "models"
HOVER = np.array([0.0, 0, 1.5, 0, 0, 0, 1, 0, 0, 0])


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(MODELS / "quadrotor_powerloop")


def fly(flight, states):
    return [line for x in states if (line := flight.add(x))]


def test_a_lap_counts_when_it_is_complete(bundle):
    flight = Flight(bundle, 3)
    assert flight.steps == 315  # 3 · 2.0944 s are 314.2 periods
    lines = fly(flight, [HOVER] * 316)
    assert flight.done and flight.exit_code() == COMPLETED
    assert [line.split("  ")[0] for line in lines] == ["lap 1/3", "lap 2/3", "lap 3/3"]
    assert "t   2.10 s" in lines[0] and "violations 0" in lines[2]


def test_the_worst_row_is_named(bundle):
    flight = Flight(bundle, 1)
    fly(flight, [HOVER, HOVER + 0.25 * np.eye(10)[2], HOVER])
    flight.judge()
    assert flight.worst == pytest.approx(1.25) and flight.worst_row == "ceiling"


@pytest.mark.parametrize("height", [3.5, -1.0, np.nan])
def test_one_state_outside_is_a_violation_even_if_all_others_are_not(bundle, height):
    flight = Flight(bundle, 1)
    bad = HOVER.copy()
    bad[2] = height
    fly(flight, [HOVER] * 50 + [bad] + [HOVER] * (flight.steps - 50))
    assert flight.done and flight.violations == 1 and flight.exit_code() == VIOLATED


def test_a_run_that_breaks_off_is_not_a_success(bundle):
    flight = Flight(bundle, 1)
    fly(flight, [HOVER] * 10)
    assert flight.exit_code() == INCOMPLETE


def test_zero_laps_means_what_the_task_says(bundle):
    assert Flight(bundle, 0).laps == bundle.task.laps_default
    with pytest.raises(PlantError, match="-1"):
        Flight(bundle, -1)
