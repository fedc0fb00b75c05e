"""Flights in full physics: distances, counts, what is kept, and what is refused."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))

pytest.importorskip("torch", reason="the bundles are written by torch")
pytest.importorskip("pybullet")

import full_physics  # noqa: E402
from safe_rl_core import Bundle  # noqa: E402
from safe_rl_core.errors import ModelError  # noqa: E402

STEPS = 30


@pytest.fixture()
def args(tmp_path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    full_physics.arguments(parser)
    asked = ["--flights", "3", "--piece", "2", "--delays", "0", "--jobs", "1"]
    args = parser.parse_args([*asked, "--resume", str(tmp_path)], argparse.Namespace(quick=False))
    bundle = Bundle.load(args.models / full_physics.NAME)
    times = bundle.period * np.arange(STEPS + 1)
    args.trajectory = tmp_path / "reference.npz"
    np.savez(args.trajectory, states=bundle.program("reference", times[:, None]), t=times)
    return args


def test_distance_and_counts_and_no_flight_twice(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = full_physics.measure(args)
    assert [row[:4] for row in report.tables[0].rows] == [
        ["shipped policy", 0, 3, 0],
        ["tracker", 0, 3, 0],
    ]
    own = report.numbers["shipped policy/0"]
    assert all(len(own[name]) == 3 for name in ("unsafe", "square", "margin"))
    assert own["rms"] == pytest.approx(np.sqrt(np.mean(own["square"]))) and own["rms"] < 0.5
    assert [target.met for target in report.targets[:1]] == [True]

    def flown(asked: full_physics.Flights) -> None:
        raise AssertionError("a piece that is kept is not flown again")

    monkeypatch.setattr(full_physics, "fly", flown)
    assert full_physics.measure(args).numbers == report.numbers
    moved = np.load(args.trajectory)
    np.savez(args.trajectory, states=moved["states"] + 1.0, t=moved["t"])
    with pytest.raises(AssertionError, match="not flown again"):
        full_physics.measure(args)


def test_a_flight_that_leaves_the_safe_set_is_counted(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker leaves it within a second, when nothing holds it back."""
    scenario = full_physics.Scenario

    def bare(*given: object, **named: object) -> object:
        return replace(scenario(*given, **named), shielded=False)

    monkeypatch.setattr(full_physics, "Scenario", bare)
    *_, (_, folder) = full_physics.cases(args)
    bundle = Bundle.load(folder)
    times = bundle.period * np.arange(61)
    np.savez(args.trajectory, states=bundle.program("reference", times[:, None]), t=times)
    found = full_physics.fly(full_physics.Flights(folder, 0, 0, 2, 1.0, args.trajectory))
    assert found["unsafe"] == [1, 1] and max(found["margin"]) < 0.0
    assert set(found["row"]) == {"ceiling"}


def test_a_trajectory_of_another_robot_is_refused(args: argparse.Namespace) -> None:
    bundle = Bundle.load(args.models / full_physics.NAME)
    with pytest.raises(ModelError, match="the commands above make it"):
        full_physics.positions(args.trajectory.with_name("none.npz"), bundle)
    np.savez(args.trajectory, states=np.zeros((5, 4)), t=0.05 * np.arange(5))
    with pytest.raises(ModelError, match="is no trajectory of quadrotor_powerloop"):
        full_physics.positions(args.trajectory, bundle)
