"""Phase I as a whole: better than both baselines, resumed bit for bit, bound to its settings."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup import load_backup
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_training.arrival_rollout import RolloutArrival
from safe_rl_training.arrival_td3 import TdSettings
from safe_rl_training.parts.arrival_measures import judge, robust_kernel
from safe_rl_training.phase_one import backup_of, stored_backup
from safe_rl_training.robot_source import load_robot
from safe_rl_training.safe_arrival import ArrivalSettings, BackupResult, train_backup

MODELS = Path(__file__).parents[3] / "models"
QUICK = ArrivalSettings.quick()
BRIEF = replace(QUICK.learner, updates=2, block=2)


def short(name: str = "unicycle_lane_paper", horizon: int = 15) -> Robot:
    return replace(ROBOTS[name](), horizon=horizon)


def run(robot: Robot, out: Path, resume: bool = False, **changes: Any) -> BackupResult:
    learner = replace(QUICK.learner, updates=60)
    settings = replace(QUICK, learner=learner, selections=2, measured=2000, **changes)
    return train_backup(robot, settings, 3, out, resume, lambda _: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[BackupResult, Path]:
    out = tmp_path_factory.mktemp("phase1")
    return run(short(), out), out


def test_learned_backup_beats_the_analytic_one(finished: tuple[BackupResult, Path]) -> None:
    result, out = finished
    volume = result.measures["volume"]
    assert volume["learned"]["low"] > volume["analytic"]["high"]
    against = result.measures["learned_against_analytic"]
    gain = volume["learned"]["share"] - volume["analytic"]["share"]
    assert (against["gained"] - against["lost"]) / 2000 == pytest.approx(gain)
    assert json.loads((out / "record.json").read_text()) == json.loads(json.dumps(result.record))


def test_stored_layers_are_the_selected_ones(finished: tuple[BackupResult, Path]) -> None:
    result, out = finished
    for stored, kept in zip(load_backup(out / "backup.npz", short()), result.layers, strict=True):
        assert torch.equal(stored[0], kept[0]) and torch.equal(stored[1], kept[1])
    history = result.record["history"]
    assert [entry["iteration"] for entry in history] == [3, 6]
    assert torch.load(out / "checkpoint.pt", weights_only=True)["state"]["score"] == max(
        entry["held_out"] for entry in history
    )


def test_interrupted_run_gives_the_same_network(
    finished: tuple[BackupResult, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    iterate = RolloutArrival.iterate

    def interrupted(learner: RolloutArrival) -> dict[str, float]:
        if learner.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return iterate(learner)

    monkeypatch.setattr(RolloutArrival, "iterate", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(short(), tmp_path)
    assert "stops after this iteration" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    assert stored["learner"]["iteration"] == 4, "the iteration at hand is finished and kept"
    assert not (tmp_path / "record.json").exists()
    monkeypatch.setattr(RolloutArrival, "iterate", iterate)
    resumed = run(short(), tmp_path, resume=True)
    for a, b in zip(resumed.layers, finished[0].layers, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert resumed.record["history"] == finished[0].record["history"]


def test_resume_refuses_other_settings(
    finished: tuple[BackupResult, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="other settings"):
        run(short(), finished[1], resume=True, held_out=100)
    with pytest.raises(ModelError, match="no checkpoint"):
        run(short(), tmp_path, resume=True)


def test_robust_robot_is_judged_by_valid(tmp_path: Path) -> None:
    robot, bundle = ROBOTS["unicycle_robust"](), Bundle.load(MODELS / "unicycle_robust")
    settings = replace(
        QUICK, learner=BRIEF, horizons=(), robust_share=1, measured=120, held_out=60
    )
    for unfit in (None, Bundle.load(MODELS / "unicycle_lane")):
        with pytest.raises(ModelError, match="needs a bundle with a certificate"):
            train_backup(robot, settings, 0, tmp_path, False, lambda _: None, bundle=unfit)
    result = train_backup(robot, settings, 0, tmp_path, False, lambda _: None, bundle=bundle)
    assert result.record["judged_by"] == "VALID"
    assert 0.2 < result.measures["volume"]["learned"]["share"] < 0.9
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["learner"]
    # The tube grows along the plan and keeps more of the lane than the nominal shield's 0.1 m.
    lane = stored["profile_rows"][:, 0]
    assert float(lane[0]) < float(lane[-1]) and float(lane[-1]) > 0.1
    assert stored["profile_base"] > 0.0


def test_any_learner_runs_in_the_same_loop(tmp_path: Path) -> None:
    td3 = TdSettings(
        iterations=2, envs=16, collect=5, updates=2, batch=32, warmup=80, settle=0, hidden=8
    )
    settings = replace(QUICK, learner=td3, horizons=())
    result = train_backup(short(), settings, 0, tmp_path, False, lambda _: None)
    assert result.record["learner"] == "TdArrival"
    (events,) = (tmp_path / "tb").iterdir()
    assert all(name in events.read_bytes() for name in (b"volume/held_out", b"arrived"))
    with pytest.raises(ModelError, match="selections"):
        replace(settings, selections=3)


def test_judge_agrees_with_one_plan_at_a_time() -> None:
    bundle = Bundle.load(MODELS / "unicycle_robust")
    robot = ROBOTS["unicycle_robust"]()
    kernel = robust_kernel(robot, bundle)
    x = torch.tensor([[0.0, 0.1, 0.0, 5.0], [0.0, 1.75, 1.0, 11.0]], dtype=torch.float64)
    holds, profile = judge(kernel, x.numpy())
    assert holds.tolist() == [True, False]
    assert profile is not None and profile.rows.shape == (robot.horizon + 1, 6)
    kernel.valid(x[0].numpy(), robot.backup_policy(x[0]).numpy())
    rows, base = kernel.needed
    kept = rows.copy()
    # A plan that comes too close to the side of the lane, by what that row needs there.
    close = torch.tensor([0.0, 1.4, 0.3, 5.0], dtype=torch.float64)
    verdict = kernel.valid(close.numpy(), robot.backup_policy(close).numpy())
    room = robot.safe_set(torch.from_numpy(verdict.states)).numpy() - kernel.needed[0]
    node, row = np.unravel_index(room.argmin(), room.shape)
    assert verdict.critical == f"{robot.safe_set.names[row]}@{node}"
    assert verdict.slack == pytest.approx(room.min(), abs=1e-12) and verdict.slack < 0.0
    assert np.array_equal(rows, kept), "a later plan does not change what was returned"
    # Of the two plans only the first has a whole tube, so the margins are its own.
    assert np.array_equal(profile.rows, rows) and profile.base == base > 0.0


def test_a_robot_whose_law_names_no_gains_goes_without_a_tuned_baseline(tmp_path: Path) -> None:
    course = load_robot(str(MODELS.parent / "docs" / "examples" / "obstacle_course.py"))
    law, said = course.backup_policy, []
    robot = replace(course, horizon=5, backup_policy=lambda x: law(x))
    settings = replace(QUICK, learner=BRIEF, measured=64, held_out=32, horizons=(5,))
    result = train_backup(robot, settings, 0, tmp_path, False, said.append)
    assert "no tuned baseline" in said[0] and said[-1].startswith("  saved: analytic 0.")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["tuning"] is None
    assert set(result.measures["volume"]) == {"analytic", "learned"}
    assert set(result.measures["horizons"]) == {"analytic", "learned"}
    assert "learned_against_tuned" not in result.measures
    with pytest.raises(ModelError, match="not known to the tuner"):
        backup_of(robot, "tuned", seed=0, out=tmp_path, quick=True, threads=1, resume=False)


def test_tuned_gains_are_found_again(tmp_path: Path) -> None:
    robot = replace(ROBOTS["quadrotor_powerloop_paper"](), horizon=4)
    found = backup_of(
        robot, "tuned", seed=0, out=tmp_path, quick=True, threads=1, resume=False,
        say=lambda _: None,
    )  # fmt: skip
    again = stored_backup(robot, "tuned", tmp_path)
    assert again.robot.backup_policy.recovery == found.robot.backup_policy.recovery
    tuned = again.record["tuning"]["rate_gain"]["tuned"]
    assert again.robot.backup_policy.recovery.rate_gain == tuned != 45.0
