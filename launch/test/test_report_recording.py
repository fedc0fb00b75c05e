"""A recorded flight comes back as the flight log that it was."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from recordings import write_recording
from safe_rl.report.alignment import to_flight_log
from safe_rl.report.build import matching_bundle
from safe_rl.report.recording import RecordingError, read_recording
from safe_rl_core.errors import BundleError
from safe_rl_core.record import UNSHIELDED, FlightLog
from synthetic import quadrotor_bundle, quadrotor_log, unicycle_bundle, unicycle_log

FLIGHTS = ((quadrotor_bundle(), quadrotor_log(laps=1)), (unicycle_bundle(), unicycle_log()))


def assert_same(found: FlightLog, expected: FlightLog) -> None:
    """Equal in every column; numbers up to the rounding of a rotation there and back."""
    for field in fields(FlightLog):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if a.dtype.kind in "fc":
            np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-9, err_msg=field.name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=field.name)


@pytest.mark.parametrize(("bundle", "log"), FLIGHTS)
def test_round_trip(tmp_path: Path, bundle: object, log: FlightLog) -> None:
    write_recording(tmp_path / "recording.mcap", bundle, log)
    recording = read_recording(tmp_path)
    assert recording.robot == bundle.robot
    assert recording.bundle_name == bundle.name
    assert recording.bundle_hash == bundle.hash
    assert_same(to_flight_log(recording, bundle), log)
    assert set(recording.gaps.values()) == {0}


def test_repetitions_count_once_and_the_first_one_counts(tmp_path: Path) -> None:
    bundle, log = FLIGHTS[1]
    write_recording(tmp_path / "recording.mcap", bundle, log, repeated=(0, 7, 8))
    assert_same(to_flight_log(read_recording(tmp_path), bundle), log)


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    bundle, log = FLIGHTS[1]
    write_recording(tmp_path / "recording.mcap", bundle, log, dropped=(10, 11))
    recording = read_recording(tmp_path)
    found = to_flight_log(recording, bundle)
    assert found.steps == log.steps - 2
    assert recording.gaps["true_states"] == 2


def test_a_step_without_status_is_not_judged_and_one_without_command_holds(tmp_path: Path) -> None:
    bundle, log = FLIGHTS[1]
    write_recording(tmp_path / "recording.mcap", bundle, log)
    recording = read_recording(tmp_path)
    stamp = sorted(recording.commands)[5]
    del recording.commands[stamp], recording.status[stamp]
    found = to_flight_log(recording, bundle)
    assert found.verdict[5] == UNSHIELDED
    # accel travels as a speed, so the held command is read with each state's own speed
    assert found.u_safe[5, 1] == pytest.approx(log.u_safe[4, 1])
    assert recording.gaps["commands"] == recording.gaps["status"] == 1


def test_a_proposal_that_was_never_made_is_not_a_number(tmp_path: Path) -> None:
    bundle, log = FLIGHTS[0]
    proposed = log.u_proposed.copy()
    proposed[3] = np.nan
    write_recording(tmp_path / "recording.mcap", bundle, replace(log, u_proposed=proposed))
    found = to_flight_log(read_recording(tmp_path), bundle)
    assert np.isnan(found.u_proposed[3]).all()
    assert np.isfinite(found.u_proposed[4]).all()


def test_another_bundle_is_refused(tmp_path: Path) -> None:
    bundle, log = FLIGHTS[0]
    write_recording(tmp_path / "recording.mcap", bundle, log)
    recording = read_recording(tmp_path)
    changed = quadrotor_bundle()
    changed.hash = "0" * 64
    with pytest.raises(BundleError, match=r"5afe5afe5afe.*000000000000.*--bundle"):
        matching_bundle(recording, changed)
    with pytest.raises(BundleError, match="flight of a quadrotor"):
        matching_bundle(recording, unicycle_bundle())


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="found 0; fly again"):
        read_recording(tmp_path)
    with pytest.raises(RecordingError, match="no run at"):
        read_recording(tmp_path / "nowhere")
    (tmp_path / "cut.mcap").write_bytes(b"\x89MCAP0\r\n and then the power went")
    with pytest.raises(RecordingError, match="cannot be read as MCAP"):
        read_recording(tmp_path)
