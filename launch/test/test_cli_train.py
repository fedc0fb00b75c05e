"""`safe-rl train`: the whole quick run, and what the command line refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safe_rl.cli import main
from safe_rl.commands import train
from safe_rl_core.bundle import Bundle

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.slow
def test_a_quick_run_of_the_unicycle_makes_a_bundle_that_flies_safely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", "ps2", "unicycle", "--quick", "--threads", "1", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    for line in ("1  phase I ", "2  phase II ", "3  evaluation ", "4  bundle ", "fly it: safe-rl"):
        assert line in said
    bundle = Bundle.load(out / "unicycle_lane")
    record = json.loads((bundle.path / "training.json").read_text())
    assert record["phase2"]["violations"] == 0 < record["phase2"]["env_steps"]
    assert record["phase1"]["backup"] == "learned"
    flown = ["simulate", str(bundle.path), "--episodes", "2", "--jobs", "1"]
    assert main(flown) == 0
    assert main(words) == 2  # the folder holds a run
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_what_is_missing_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name, *more: None if name in ("tensorboard", "ray") else find(name, *more),
    )  # fmt: skip
    assert main(["train", "ps2", "unicycle"]) == 2
    said = capsys.readouterr().err
    assert "training needs tensorboard, which" in said and "make train" in said
    assert main(["train", "ps2", "unicycle", "--ray"]) == 2
    assert "tensorboard, ray" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safe_rl_training import pipeline

    def interrupted(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train", interrupted)
    monkeypatch.chdir(tmp_path)
    words = ["train", "ps2", "unicycle", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["safe-rl", *words])
    assert main(words) == 130
    expected = "safe-rl train ps2 unicycle --seed 3 --out runs/ps2-unicycle_lane-3 --resume"
    assert expected in capsys.readouterr().err


def test_the_options_become_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safe_rl_training import pipeline, study

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pipeline, "train", lambda *a, **k: calls.append((*a, k)))
    monkeypatch.setattr(study, "run_study", lambda *a, **k: calls.append((*a, k)))
    monkeypatch.chdir(tmp_path)
    main(["train", "ps2", "quadrotor", "--learner", "sac", "--backup", "tuned", "--phase1-only"])
    plan, out, more = calls[0]
    assert (plan.learner, plan.backup, plan.phase1_only) == ("sac", "tuned", True)
    assert (plan.source, str(out)) == ("quadrotor_powerloop", "runs/ps2-quadrotor_powerloop-0")
    assert more == {"cluster": None, "resume": False} and plan.warm_start is None
    (tmp_path / "grid.yaml").write_text("actor_rate: [0.001, 0.002]\n")
    main(["train", "ps2", "unicycle", "--seeds", "2", "--sweep", "grid.yaml", "--ray"])
    plan, out, more = calls[1]
    assert str(out) == "runs/ps2-unicycle_lane-study-0"
    assert more["seeds"] == 2 and more["cluster"] == "local"
    assert more["grid"] == {"actor_rate": [0.001, 0.002]}


def test_a_shipped_robot_begins_with_its_tracker_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(MODELS.parent)
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    shipped = train.beginning(None, "quadrotor_powerloop", "staged")
    assert shipped is not None
    assert Path(shipped).read_bytes() == (MODELS / "trackers" / "quadrotor.onnx").read_bytes()
    assert train.beginning("none", "quadrotor_powerloop", "staged") is None
    assert train.beginning(None, "quadrotor_powerloop", "sac") is None
    assert train.beginning(None, "my_robot.py", "staged") is None
    own = train.beginning("own.onnx", "my_robot.py", "sac")
    assert own == str(MODELS.parent / "own.onnx")


def test_choices_of_the_command_line_are_those_of_the_trainer() -> None:
    from safe_rl_training import learners, phase_one

    assert train.LEARNERS == learners.NAMES
    assert train.BACKUPS == phase_one.BACKUPS


def test_a_robot_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ps2", "boat"]) == 2
    assert "no robot 'boat'" in capsys.readouterr().err
