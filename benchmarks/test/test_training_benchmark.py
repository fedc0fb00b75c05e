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


def run_of(runs: Path, folder: str, backup: str, *, quick: bool = False) -> None:
    """A finished run: its account, and as its bundle the shipped one."""
    shutil.copytree(MODELS / NAME, runs / folder / NAME)
    account = {"algorithm": "ps2", "backup": backup, "quick": quick, "provenance": {"seed": "3"}}
    (runs / folder / "training.json").write_text(json.dumps(account))


@pytest.fixture()
def args(tmp_path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    training.arguments(parser)
    args = parser.parse_args(["--robots", NAME, "--plants", "model", "--episodes", "2"])
    args.quick, args.jobs, args.runs, args.resume = False, 1, tmp_path / "runs", tmp_path / "kept"
    args.runs.mkdir()
    return args


def test_rows_are_those_that_must_stand_and_every_full_run(args: argparse.Namespace) -> None:
    run_of(args.runs, "b", "learned")
    run_of(args.runs, "a", "analytic")
    run_of(args.runs, "c", "learned", quick=True)
    assert [entry.name for entry in training.entries(NAME, MODELS, args.runs)] == [
        "tracker, unshielded",
        "tracker + shield",
        "PS2, analytic backup, seed 3",
        "PS2, learned backup, seed 3",
        "backup alone, shipped",
        "backup alone, learned backup, seed 3",
        "stop",
    ]


def test_shipped_ps2_policies_are_not_called_trackers(args: argparse.Namespace) -> None:
    run_of(args.runs, "models", "learned")
    shipped = args.runs / "models"
    shutil.copy(shipped / "training.json", shipped / NAME / "training.json")
    found = [entry.name for entry in training.entries(NAME, shipped, args.runs / "none")]
    assert found == ["PS2, shipped", "backup alone, shipped", "stop"]
    more = list(training.entries(NAME, shipped, args.runs / "none", MODELS))
    assert [(entry.name, entry.folder) for entry in more[:3]] == [
        ("tracker, unshielded", MODELS / NAME),
        ("tracker + shield", MODELS / NAME),
        ("PS2, shipped", shipped / NAME),
    ]


def test_the_table_and_its_resume(
    args: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args.best = tmp_path / "best.json"
    best = {"best": -1.0, "drawn": [-10.0, -20.0]}
    args.best.write_text(json.dumps({"numbers": {f"{NAME}_bundle": best}}))
    report = training.measure(args)
    numbers = {key.split("/")[-1]: value for key, value in report.numbers.items()}
    stop, tracker = numbers["stop"], numbers["tracker + shield"]
    assert stop["safe_reward"] == 0.0
    assert tracker["unsafe_episodes"] == 0
    gained = tracker["return_mean"] - stop["return_mean"]
    assert tracker["safe_reward"] == pytest.approx(gained / (-15.0 - stop["return_mean"]))
    assert numbers["backup alone, shipped"]["fallback_rate"] == 1.0
    assert "No PS2 policy" in report.markdown() and "No tracker" not in report.markdown()
    assert len(list(args.resume.glob("*.json"))) == 4

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
    args.plants, args.flights, args.resume = ["bullet"], 1, None
    report = training.measure(args)
    assert [row[0] for row in report.tables[0].rows] == ["tracker, unshielded", "tracker + shield"]
    scores = report.numbers[f"bullet/{NAME}/tracker + shield"]
    assert scores["return_min"] == scores["return_mean"] == scores["safe_return_mean"]
    assert scores["safe_reward"] is None
