"""The card says what was trained, how, and what is not proved."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safe_rl_systems.robot import ROBOTS
from safe_rl_training.card import card, main

PROVENANCE = {
    "command": "python -m safe_rl_training.tracker unicycle --seed 7",
    "seed": "7",
    "git_commit": "abc",
    "git_dirty": "false",
    "duration_s": "12.5",
    "hardware": "a machine",
    "threads": "1",
    "date": "2026-01-01",
    "torch_version": "2.13.0",
    "source_sha256": "def",
}
SCORES = {
    "episodes": 256.0,
    "return_mean": -12.3456,
    "return_worst": -20.0,
    "share_of_episodes_outside_safe_set": 1.0,
}


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_it_names_everything_that_made_it(name: str) -> None:
    robot = ROBOTS[name]()
    text = card(robot, {"provenance": PROVENANCE, "evaluation": {"model": SCORES}})
    claim = "none (nominal)" if robot.robust is None else "robust"
    for value in (*PROVENANCE.values(), name, f"Certificate: {claim}", "-12.35"):
        assert value in text
    if robot.robust is not None:
        assert all(f"| {channel} |" in text for channel, _ in robot.robust.chart.errors)


def test_a_policy_of_ps2_is_described_by_its_own_record() -> None:
    scores = {
        "episodes": 1000, "unsafe_episodes": 0, "return_mean": -61.23, "return_std": 4.5,
        "intervention_rate": 0.125, "fallback_rate": 0.01, "rmse": {"py": 0.123456},
    }  # fmt: skip
    share = {"share": 0.71, "low": 0.7, "high": 0.72, "states": 40000}
    shares = {"analytic": share, "learned": {**share, "share": 0.8}}
    record = {
        "algorithm": "ps2", "provenance": PROVENANCE, "backup": "learned", "learner": "staged",
        "quick": False, "warm_start": None,
        "phase1": {"measures": {"volume": shares}},
        "seconds": {"phase1": 60.0, "phase2": 120.4},
        "phase2": {
            "env_steps": 123456, "violations": 0, "best_at_iteration": 700, "iterations": 1000,
            "env_steps_per_s": 1234.5,
        },
        "evaluation": {"ps2": scores, "unshielded": {**scores, "unsafe_episodes": 990}},
    }  # fmt: skip
    text = card(ROBOTS["unicycle_lane"](), record)
    for words in (
        "123456 training steps, 0 states outside", "700 of 1000", "phase I 60 s, phase II 120 s",
        "| -61.23 ± 4.5 | 0 of 1000 | 12.5% | 1.0% | 0.123 |", "| 990 of 1000 | – | – |",
        "Without the shield 990 of 1000 episodes leave the safe set", "about 0.003 (95 %)",
        PROVENANCE["command"], "It began from nothing.", "of 40000 states",
        "| analytic | 0.710 | 0.700 to 0.720 |", "| learned | 0.800 |",
    ):  # fmt: skip
        assert words in text
    assert "A quick run" not in text
    assert "A quick run" in card(ROBOTS["unicycle_lane"](), {**record, "quick": True})
    tracker = {"file": "unicycle.onnx", "sha256": "abcdef0123456789", "command": "train it"}
    text = card(
        ROBOTS["unicycle_lane"](),
        {**record, "warm_start": tracker, "phase1": {"backup": "analytic"}},
    )
    assert "unicycle.onnx (SHA-256 abcdef012345…), made without a\nshield by `train it`" in text
    assert "## The backup policy" not in text


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "training.json"
    record.write_text(json.dumps({"provenance": PROVENANCE, "evaluation": {"m": SCORES}}))
    out = tmp_path / "CARD.md"
    monkeypatch.setattr(
        sys, "argv", ["card", "unicycle_lane", "--record", str(record), "--out", str(out)]
    )
    main()
    assert out.read_text().startswith("# unicycle_lane\n")
