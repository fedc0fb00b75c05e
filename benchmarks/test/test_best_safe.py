"""The best safe trajectory: against exhaustive search, at the boundary, with delay, and saved."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("casadi", reason="the solver is installed by make bench")

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))

from safe_rl_systems.robot import ROBOTS  # noqa: E402
from toolbox.shooting import (  # noqa: E402
    Best,
    Problem,
    best,
    fly,
    inputs_along,
    moved_inside,
    save,
    setting,
    starts,
)

#: Near the edge of the lane and heading for it, as (py, v, theta).
OUTWARD = np.array([1.5, 5.0, 0.3])


def quiet(line: str) -> None:
    """No progress in tests."""


def solved(name: str, steps: int, start: np.ndarray, margins: str, **more: bool) -> Best:
    case = setting(ROBOTS[name](), steps, margins, **more)
    return best(Problem(case, 300), start, 0, 0, quiet)


def test_one_period_against_every_input_of_a_grid() -> None:
    case = setting(ROBOTS["unicycle_lane_paper"](), 1, "none")
    found = best(Problem(case, 300), OUTWARD, 0, 0, quiet).flight
    low, high = case.box
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 201).T, indexing="ij"), -1).reshape(-1, 2)
    program = case.compiled.program
    after = program("step", np.tile(OUTWARD, (len(grid), 1)), grid)
    reward = program("reward", after, grid, np.tile(case.times, (len(grid), 1)))[:, 0]
    reward = reward[(program("safe_set", after) >= case.margin).all(-1)]
    assert reward.max() - 1e-9 <= found.total <= reward.max() + 1e-3


def test_the_safe_set_holds_and_costs_something() -> None:
    safe = solved("unicycle_lane_paper", 30, OUTWARD, "none").flight
    free = solved("unicycle_lane_paper", 30, OUTWARD, "off").flight
    program = setting(ROBOTS["unicycle_lane_paper"](), 1, "none").compiled.program
    assert program("safe_set", free.states).min() < -0.1
    assert 0.0 <= program("safe_set", safe.states).min() < 1e-5, "the optimum lies on the edge"
    assert safe.total < free.total - 1.0


def test_all_guesses_lead_to_the_same_return_on_the_lane() -> None:
    case = setting(ROBOTS["unicycle_lane_paper"](), 60, "none")
    found = best(Problem(case, 300), starts(case, 0, 0)[0], 0, 2, quiet).found
    assert len(found) == 5 and np.ptp(list(found.values())) < 1e-3


def test_margins_of_the_bundle_are_kept() -> None:
    start = np.array([0.0, 1.5, 0.1, 5.0])
    found = solved("unicycle_lane", 40, start, "bundle").flight
    limit = ROBOTS["unicycle_lane"]().margins["lane_upper"]
    room = 1.8 - found.states[:, 1].max()
    assert limit <= room < limit + 1e-5


def test_a_delayed_robot_begins_with_the_stop_action() -> None:
    robot = ROBOTS["unicycle_lane"]()
    start = np.array([0.0, 0.0, 0.2, 5.0])
    found = solved("unicycle_lane", 2, start, "none").flight
    stopped = robot.stop_action
    case = setting(robot, 2, "none")
    assert np.array_equal(found.states[1], case.compiled("step", start, np.array(stopped)))
    assert np.array_equal(found.states[2], case.compiled("step", found.states[1], found.inputs[0]))
    # The last input acts on nothing that counts any more; it only costs.
    assert np.allclose(found.inputs[1], 0.0, atol=1e-4)


def test_a_way_back_at_the_end_costs_something() -> None:
    # The reference crosses the edge of the lane just after the end.
    start = np.array([0.0, 5.0, 0.32])
    end_free = solved("unicycle_lane_paper", 26, start, "none").flight
    returning = solved("unicycle_lane_paper", 26, start, "none", recoverable=True).flight
    assert len(returning.inputs) == 26
    assert returning.total < end_free.total - 0.1
    assert returning.states[-1, 2] < end_free.states[-1, 2] - 0.02


def test_inputs_along_a_rollout_are_those_of_the_rollout() -> None:
    for name in ("unicycle_lane_paper", "quadrotor_powerloop"):
        case = setting(ROBOTS[name](), 10, "none")
        low, high = case.box
        middle = 0.5 * (low + high)
        draws = np.random.default_rng(0).uniform(-0.02, 0.02, (10, len(low)))
        inputs = middle + (high - low) * draws
        path = fly(case, starts(case, 0, 0)[0], inputs, "").states
        late = case.robot.delay_steps
        found = inputs_along(case, path)[: 10 - late]
        assert np.allclose(found, inputs[: 10 - late], atol=0.02 * (high - low).max())
        assert not np.allclose(found, middle, atol=0.002 * (high - low).max())


def test_states_are_moved_just_inside_and_safe_ones_not_at_all() -> None:
    case = setting(ROBOTS["unicycle_lane"](), 1, "bundle")
    states = np.array([[3.0, 2.5, 1.4, 13.0], [3.0, 0.5, 0.1, 5.0]])
    moved = moved_inside(case, states)
    expected = case.robot.margins
    assert np.allclose(moved[0], [3.0, 1.8 - expected["lane_upper"], np.pi / 3 - 0.01, 11.95])
    assert np.array_equal(moved[1], states[1])


def test_no_solution_is_said_so() -> None:
    case = setting(ROBOTS["unicycle_lane_paper"](), 5, "none")
    outside = np.array([3.0, 5.0, 0.0])
    with pytest.raises(ValueError, match="from none of 3 guesses"):
        best(Problem(case, 30), outside, 0, 0, quiet)


def test_a_saved_trajectory_can_be_flown_again(tmp_path: Path) -> None:
    case = setting(ROBOTS["unicycle_lane_paper"](), 15, "none")
    found = best(Problem(case, 300), OUTWARD, 0, 0, quiet)
    save(tmp_path / "a.npz", case, found, {"cores": 2})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        about = json.loads(str(stored["provenance"]))
        again = fly(case, stored["states"][0], stored["inputs"], "again")
        assert np.array_equal(again.states, stored["states"])
        assert again.total == float(stored["total"]) == pytest.approx(stored["rewards"].sum())
        assert len(stored["t"]) == 16 and stored["t"][-1] == pytest.approx(0.75)
    assert about["program"] == case.compiled.program.hash
    assert about["robot"] == "unicycle_lane_paper" and about["states"] == ["py", "v", "theta"]


def test_what_breaks_a_margin_does_not_count() -> None:
    case = setting(ROBOTS["unicycle_lane_paper"](), 40, "none")
    straight = fly(case, OUTWARD, np.zeros((40, 2)), "")
    assert straight.worst < 0.0
    assert fly(replace(case, margin=np.full(4, -np.inf)), OUTWARD, np.zeros((40, 2)), "").worst > 0


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    command = [sys.executable, str(FOLDER / "best_safe.py"), "--quick", "--json", str(target)]
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(target.read_text())["numbers"]["unicycle_lane_paper_none"]
    assert numbers["stop"] < numbers["shipped"] < numbers["best"] < numbers["without_safe_set"]
    assert (tmp_path / "unicycle_lane_paper_none.npz").is_file()
    assert (tmp_path / "unicycle_lane_paper_none.png").is_file()
