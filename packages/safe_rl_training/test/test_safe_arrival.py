"""Phase I as a whole: better than both baselines, resumed bit for bit, bound to its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup import load_backup
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_training import safe_arrival
from safe_rl_training.arrival_td3 import TdSettings
from safe_rl_training.parts.arrival_measures import judge, robust_kernel, shipped_bundle
from safe_rl_training.safe_arrival import ArrivalSettings, BackupResult, train_backup

MODELS = Path(__file__).parents[3] / "models"
QUICK = ArrivalSettings.quick()


def short(name: str = "unicycle_lane_paper", horizon: int = 15) -> Robot:
    return replace(ROBOTS[name](), horizon=horizon)


def run(robot: Robot, out: Path, resume: bool = False, **changes: Any) -> BackupResult:
    learner = replace(QUICK.learner, updates=60)
    settings = replace(QUICK, learner=learner, selections=3, measured=2000, **changes)
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
    assert [entry["iteration"] for entry in history] == [2, 4, 6]
    assert torch.load(out / "checkpoint.pt", weights_only=True)["state"]["score"] == max(
        entry["held_out"] for entry in history
    )


def test_interrupted_run_gives_the_same_network(
    finished: tuple[BackupResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, select = 0, safe_arrival._select

    def interrupted(*arguments: Any) -> None:
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt
        select(*arguments)

    monkeypatch.setattr(safe_arrival, "_select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(short(), tmp_path)
    monkeypatch.setattr(safe_arrival, "_select", select)
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


def test_robust_robot_is_judged_by_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot = ROBOTS["unicycle_robust"]()
    monkeypatch.chdir(MODELS.parent)
    settings = replace(QUICK, horizons=(), robust_share=1, measured=200, held_out=100)
    result = train_backup(robot, settings, 0, tmp_path, False, lambda _: None)
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
    logged: list[tuple[int, set[str]]] = []
    result = train_backup(
        short(),
        settings,
        0,
        tmp_path,
        False,
        lambda _: None,
        log=lambda iteration, scalars: logged.append((iteration, set(scalars))),
    )
    assert [iteration for iteration, _ in logged] == [1, 2, 2]
    assert logged[-1][1] == {"volume/held_out"} and logged[0][1]
    assert result.record["learner"] == "TdArrival"
    again = train_backup(short(), settings, 0, tmp_path, True, lambda _: None)
    assert again.measures == result.measures
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
    verdict = kernel.valid(x[0].numpy(), robot.backup_policy(x[0]).numpy())
    room = robot.safe_set(torch.from_numpy(verdict.states)).numpy() - profile.rows
    assert verdict.slack == pytest.approx(min(room.min(), verdict.slack), abs=0.05)
    assert shipped_bundle(ROBOTS["unicycle_lane"]()) is None
