"""The comparison table: its rows, what is kept, and how the safe reward comes about."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))

pytest.importorskip("torch", reason="the policies are flown by torch")
pytest.importorskip("onnx", reason="the policies are read by onnx")

import training  # noqa: E402

MODELS = FOLDER.parent / "models"
NAME = "unicycle_lane"


def run_of(
    runs: Path, folder: str, backup: str, *, learner: str = "staged", quick: bool = False
) -> None:
    """A finished run: its account, and as its bundle the shipped one."""
    shutil.copytree(MODELS / NAME, runs / folder / NAME)
    asked = {"backup": backup, "learner": learner, "quick": quick, "provenance": {"seed": "3"}}
    account = {"algorithm": "ps2", **asked}
    (runs / folder / "training.json").write_text(json.dumps(account))


@pytest.fixture()
def args(tmp_path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    training.arguments(parser)
    args = parser.parse_args(["--robots", NAME, "--plants", "model", "--episodes", "2"])
    args.quick, args.jobs, args.runs, args.resume = False, 1, tmp_path / "runs", tmp_path / "kept"
    args.runs.mkdir()
    return args


def names(args: argparse.Namespace, models: Path = MODELS) -> list[str]:
    return [entry.name for entry in training.entries(NAME, models, args.runs, args.resume)]


def test_rows_are_those_that_must_stand_and_every_full_run(args: argparse.Namespace) -> None:
    run_of(args.runs, "b", "learned")
    run_of(args.runs, "a", "analytic")
    (args.runs / "a" / NAME / "backup.npz").unlink()
    run_of(args.runs, "c", "learned", quick=True)
    assert names(args) == [
        "tracker, unshielded",
        "tracker + shield, analytic backup",
        "tracker + shield, shipped backup",
        "PS2, shipped",
        "PS2, analytic backup, seed 3",
        "PS2, learned backup, seed 3",
        "backup alone, shipped",
        "backup alone (PS2, learned backup, seed 3)",
        "stop",
    ]
    run_of(args.runs, "d", "learned", learner="published")
    assert "published recipe, learned backup, seed 3" in names(args)
    run_of(args.runs, "e", "learned", learner="sac")
    assert {f"PS2 ({learner}), learned backup, seed 3" for learner in ("staged", "sac")} <= set(
        names(args)
    )


def test_the_tracker_is_told_from_what_ps2_made_of_it(args: argparse.Namespace) -> None:
    tracker, shielded, shipped, *_ = training.entries(NAME, MODELS, args.runs, args.resume)
    assert not tracker.shielded and tracker.folder == shielded.folder
    policy = (MODELS / "trackers" / "unicycle.onnx").read_bytes()
    assert (tracker.folder / "policy.onnx").read_bytes() == policy
    assert not (tracker.folder / "backup.npz").exists()
    assert (shipped.folder / "policy.onnx").read_bytes() == policy
    backup = (MODELS / NAME / "backup.npz").read_bytes()
    assert (shipped.folder / "backup.npz").read_bytes() == backup


def test_the_table_and_its_resume(
    args: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args.best = tmp_path / "best.json"
    best = {"best": -1.0, "drawn": [-10.0, -20.0]}
    args.best.write_text(json.dumps({"numbers": {f"{NAME}_bundle": best}}))
    report = training.measure(args)
    numbers = {key.split("/")[-1]: value for key, value in report.numbers.items()}
    stop, tracker = numbers["stop"], numbers["tracker + shield, analytic backup"]
    assert stop["safe_reward"] == 0.0
    assert tracker["unsafe_episodes"] == 0
    gained = tracker["return_mean"] - stop["return_mean"]
    assert tracker["safe_reward"] == pytest.approx(gained / (-15.0 - stop["return_mean"]))
    assert numbers["backup alone, shipped"]["fallback_rate"] == 1.0
    assert "No PS2 policy" not in report.markdown()
    assert len(list(args.resume.glob("*.json"))) == 6

    def flown(*arguments: object) -> None:
        raise AssertionError("a row that is kept is not flown again")

    monkeypatch.setattr(training, "on_equations", flown)
    again = training.measure(args)
    assert again.numbers == report.numbers
    args.seed = 1
    with pytest.raises(AssertionError, match="not flown again"):
        training.measure(args)


def test_full_physics_speaks_the_same_words(args: argparse.Namespace) -> None:
    pytest.importorskip("pybullet")
    args.plants, args.flights = ["bullet"], 1
    report = training.measure(args)
    assert [row[0] for row in report.tables[0].rows] == [
        "tracker, unshielded",
        "tracker + shield, analytic backup",
        "tracker + shield, shipped backup",
        "PS2, shipped",
    ]
    scores = report.numbers[f"bullet/{NAME}/PS2, shipped"]
    assert scores["return_min"] == scores["return_mean"] == scores["safe_return_mean"]
    assert scores["safe_reward"] is None
