"""Numbers of a report against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import write_recording
from safe_rl.json_file import plain
from safe_rl.report.alignment import to_flight_log
from safe_rl.report.build import build_report, flight_summary
from safe_rl.report.judgement import judge, safety_statement
from safe_rl.report.recording import read_recording
from safe_rl.report.text import flight_rows, quantity
from safe_rl_core.metrics import wilson
from safe_rl_core.record import FlightLog
from synthetic import unicycle_bundle, unicycle_log


def three_steps(y: tuple[float, float, float, float]) -> FlightLog:
    """Three periods of 0.05 s through the lateral positions y, at 5 m/s, heading 0."""
    states = np.array([[0.25 * k, y[k], 0.0, 5.0] for k in range(4)])
    action = np.zeros((3, 2))
    return FlightLog(
        t=np.array([0.0, 0.05, 0.1]),
        x_true=states,
        x_measured=states[:3],
        u_proposed=action,
        u_safe=action,
        verdict=np.array([0, 1, 2], dtype=np.int8),
        reason=np.array(["proposal_safe", "projected", "qp_infeasible"]),
        margin=np.array([0.5, 0.4, 0.3]),
        critical_row=np.array(["lane_left@1"] * 3),
        intervention=np.array([0.0, 0.2, 0.4]),
        shield_us=np.array([100.0, 200.0, 300.0]),
        latency_us=np.array([1000.0, 3000.0, 2000.0]),
        qp_used=np.array([False, True, True]),
    )


def summary_of(folder: Path, log: FlightLog, **settings: Any) -> dict[str, Any]:
    """The summary of a recorded log, without drawing anything."""
    bundle = unicycle_bundle()
    write_recording(folder / "recording.mcap", bundle, log)
    recording = read_recording(folder)
    found = to_flight_log(recording, bundle)
    return flight_summary(bundle, found, recording, settings)


def test_summary_by_hand(tmp_path: Path) -> None:
    log = three_steps((0.0, 1.0, 1.9, 1.7))
    written = json.loads(json.dumps(summary_of(tmp_path, log, seed=4, plant="model")))
    assert written["violations"] == 1
    assert written["worst_margin"] == pytest.approx(-0.1)
    assert written["worst_row"] == "lane_left"
    assert written["steps"] == 3
    assert written["duration_s"] == pytest.approx(0.15)
    assert written["interventions"] == {"PASSED": 1, "PROJECTED": 1, "BACKUP": 1}
    assert written["intervention_rate"] == pytest.approx(2.0 / 3.0)
    assert written["chatter_per_s"] == pytest.approx(2.0 / 0.15)
    assert written["shield_us"]["p50"] == 200.0
    assert written["shield_us"]["max"] == 300.0
    assert written["latency_ms"]["p50"] == 2.0
    reference = [2.5 * math.sin(2.0 * math.pi * t / 10.0) for t in (0.0, 0.05, 0.1, 0.15)]
    errors = [y - r for y, r in zip((0.0, 1.0, 1.9, 1.7), reference, strict=True)]
    assert written["return"] == pytest.approx(-sum(error**2 for error in errors[1:]))
    assert written["rmse"]["py"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 4.0))
    assert written["seed"] == 4
    assert written["plant"] == "model"
    assert written["verdict"] == "VIOLATED"
    assert written["bundle_hash"] == "5afe" * 16


def test_one_violating_state_fails_the_flight(tmp_path: Path) -> None:
    bundle = unicycle_bundle()
    write_recording(tmp_path / "recording.mcap", bundle, three_steps((0.0, 1.0, 1.9, 1.7)))
    report = build_report(tmp_path, bundle, film=False)
    judgement = judge(report.summary)
    assert not judgement.passed
    assert judgement.sentence.startswith("1 of 4 states")
    assert json.loads(report.files["summary"].read_text())["violations"] == 1
    assert '<div class="badge bad">VIOLATED</div>' in report.files["report"].read_text()


def test_a_violation_in_the_last_state_counts(tmp_path: Path) -> None:
    assert summary_of(tmp_path, three_steps((0.0, 1.0, 1.7, 1.81)))["violations"] == 1


def test_a_complete_flight_without_violation_passes(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, unicycle_log(), laps=1)
    assert judge(summary).passed
    assert summary["expected_steps"] == 400


def test_a_flight_that_ended_early_does_not_pass(tmp_path: Path) -> None:
    judgement = judge(summary_of(tmp_path, three_steps((0.0, 0.1, 0.2, 0.3)), laps=1))
    assert judgement.word == "INCOMPLETE"
    assert "after 3 of 400 steps" in judgement.sentence


def test_a_flight_with_missing_states_does_not_pass(tmp_path: Path) -> None:
    bundle = unicycle_bundle()
    write_recording(tmp_path / "recording.mcap", bundle, unicycle_log(), dropped=(50,))
    recording = read_recording(tmp_path)
    log = to_flight_log(recording, bundle)
    judgement = judge(flight_summary(bundle, log, recording, {}))
    assert judgement.word == "INCOMPLETE"
    assert "1 true states are missing" in judgement.sentence


def test_not_a_number_becomes_null() -> None:
    value = {"a": np.float64("nan"), "b": np.arange(2), 3: (np.int8(1), math.inf)}
    assert plain(value) == {"a": None, "b": [0, 1], "3": [1, None]}


def test_wilson_against_known_values() -> None:
    # Newcombe (1998), table I: 81 of 263 -> 0.2553 to 0.3662; 0 of 20 -> 0 to 0.1611
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_safety_is_never_said_without_its_interval() -> None:
    assert safety_statement(0, 1000) == (
        "1 (95 % interval 0.9962 to 1, 1000 episodes); 0 unsafe bounds the rate by about "
        "3/N = 0.003"
    )
    assert safety_statement(1, 4).startswith("0.75 (95 % interval 0.3006 to 0.9544")
    assert "3/N" not in safety_statement(0, 1)


def test_rows_name_every_score(tmp_path: Path) -> None:
    rows = {row.name: row.value for row in flight_rows(summary_of(tmp_path, unicycle_log()))}
    assert rows["safety"] == "0 violating states of 401"
    assert rows["verdicts"].startswith("PASSED 260 (65.0 %) · PROJECTED 140 (35.0 %)")
    assert rows["RMSE to the reference"].endswith("m/s")
    assert rows["shield step"].endswith("µs")
    assert rows["state to command"].endswith("ms")
    assert "not in the recording" not in rows


def test_quantities() -> None:
    assert quantity(None) == quantity(math.nan) == "not recorded"
    assert quantity(-27785.04) == "-27785.0"
    assert quantity(0.0123456) == "0.01235"
