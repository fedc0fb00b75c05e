"""`safe-rl identify` from flight logs and from recordings, on the unicycle with an error chart."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from recordings import write_recording
from safe_rl.commands import identify as command
from safe_rl.flights import read_flights
from safe_rl.report.recording import RecordingError
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import BundleError, SafeRLError
from safe_rl_core.identify import IdentifyError
from safe_rl_core.proposal import rounded_up
from safe_rl_core.record import FlightLog, FlightRecorder

pytest.importorskip("torch", reason="builds a bundle from its definition")
from safe_rl_systems.build import write_bundle
from safe_rl_systems.robot import ROBOTS

MODELS = Path(__file__).parents[2] / "models"
STEPS = 1500


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The robust unicycle, without a certificate: identification needs its chart only."""
    policy = MODELS / "unicycle_lane" / "policy.onnx"
    out = tmp_path_factory.mktemp("models")
    return write_bundle(ROBOTS["unicycle_robust"](), policy, "A unicycle.\n", out)


def fly(bundle: Bundle, seed: int = 0, delay: int = 1, scale: float = 1.0) -> FlightLog:
    """The model with uniform noise of `scale` times the assumed bounds; strong commands."""
    rng, recorder = np.random.default_rng(seed), FlightRecorder(bundle, STEPS)
    errors = bundle.assumptions["errors"]
    w, d = (
        scale * rng.uniform(-1, 1, (STEPS, 3)) * np.array([e[key] for e in errors])
        for key in ("disturbance", "estimate_error")
    )
    x, pending = np.array([0.0, 0.0, 0.0, 5.0]), [np.zeros(2)] * delay
    recorder.start(x)
    for k in range(STEPS):
        if k % 3 == 0:
            pull = np.array([5.0 - x[3], -x[1] - 2.0 * x[2]])
            u = np.clip(
                pull + rng.normal(size=2) * [2.0, 0.8], bundle.input_low, bundle.input_high
            )
        recorder.unshielded(k * bundle.period, bundle.program("retract", x, -d[k]), None, u)
        force, *pending = [*pending, u]
        x = bundle.program("retract", bundle.program("step", x, force), w[k])
        recorder.moved(x)
    return recorder.log()


@pytest.fixture(scope="module")
def log(bundle: Bundle) -> FlightLog:
    return fly(bundle)


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_command(parser.add_subparsers())
    args = parser.parse_args(["identify", *(str(word) for word in words)])
    return args.run(args)


def test_a_flight_log_gives_a_table_and_a_proposal(
    bundle: Bundle, log: FlightLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.save(tmp_path / "flight.npz")
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    out = tmp_path / "proposed.yaml"
    words = ("--bundle", bundle.path, "--exposure", 600, "--out", out)
    assert call(tmp_path / "flight.npz", *words) == 0
    said = capsys.readouterr().out
    for text in (
        "from 1 recording", "1, as assumed", "disturbance per period", "estimate error", "theta",
        "m/s", "true max", "no contradiction", "not a bound", "0.999", "no bundle was changed",
    ):  # fmt: skip
        assert text in said, text
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before
    text = out.read_text()
    assert text.startswith("# Proposed by safe-rl identify for unicycle_robust")
    assert "not a bound" in text
    data = yaml.safe_load(text)
    assert data["delay_steps"] == 1
    for proposed, assumed in zip(
        data["assumptions"]["errors"], bundle.assumptions["errors"], strict=True
    ):
        assert (proposed["name"], proposed["unit"]) == (assumed["name"], assumed["unit"])
        for key in ("disturbance", "estimate_error"):  # the assumed ones are true here
            assert 1.0 <= proposed[key] / assumed[key] < 8.0
    assert data["assumptions"]["jitter_s"] == 2e-4


def test_a_recording_gives_the_same_as_its_flight_log(
    bundle: Bundle, log: FlightLog, tmp_path: Path
) -> None:
    write_recording(tmp_path / "recording.mcap", bundle, log)
    (flight,) = read_flights(tmp_path, bundle)
    np.testing.assert_allclose(flight.states, log.x_measured, atol=1e-9)
    np.testing.assert_allclose(flight.commands, log.u_safe, atol=1e-9)
    np.testing.assert_allclose(flight.truth, log.x_true[:-1], atol=1e-9)


def test_a_recording_without_the_true_state_will_do(
    bundle: Bundle, log: FlightLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As from a vehicle; and one missing period is a gap."""
    write_recording(tmp_path / "r.mcap", bundle, log, dropped=tuple(range(STEPS + 1)))
    (flight,) = read_flights(tmp_path / "r.mcap", bundle)
    assert flight.truth is None
    assert call(tmp_path, "--bundle", bundle.path, "--exposure", 600) == 0
    assert "true max" not in capsys.readouterr().out


def test_gaps_and_bad_numbers_cut_the_flight(
    bundle: Bundle, log: FlightLog, tmp_path: Path
) -> None:
    t, x = log.t.copy(), log.x_measured.copy()
    t[700:] += bundle.period
    x[900, 2] = np.nan
    replace(log, t=t, x_measured=x).save(tmp_path / "cut.npz")
    flights = read_flights(tmp_path / "cut.npz", bundle)
    assert [len(flight.states) for flight in flights] == [700, 200, STEPS - 901]


def test_another_delay_and_larger_noise_are_named(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fly(bundle, delay=2).save(tmp_path / "late.npz")
    call(tmp_path / "late.npz", "--bundle", bundle.path, "--exposure", 600)
    assert "2, but 1 ASSUMED" in capsys.readouterr().out
    fly(bundle, scale=2.0).save(tmp_path / "loud.npz")
    call(tmp_path / "loud.npz", "--bundle", bundle.path, "--exposure", 600)
    said = capsys.readouterr().out
    assert "they are CONTRADICTED" in said
    assert said.count("above what is assumed") == 6


def test_too_little_data_for_the_exposure_writes_nothing(
    bundle: Bundle, log: FlightLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x = log.x_measured.copy()
    x[:, 1] += 0.01 * rng.standard_t(1.5, STEPS)
    replace(log, x_measured=x).save(tmp_path / "heavy.npz")
    out = tmp_path / "proposed.yaml"
    assert call(tmp_path / "heavy.npz", "--bundle", bundle.path, "--out", out) == 1
    said = capsys.readouterr().out
    assert "too little data for a limit" in said
    assert "no proposal is written" in said
    assert not out.exists()


def test_a_short_log_is_refused(bundle: Bundle, log: FlightLog, tmp_path: Path) -> None:
    short = replace(log, t=log.t[:500], x_measured=log.x_measured[:500], u_safe=log.u_safe[:500])
    replace(short, x_true=log.x_true[:501]).save(tmp_path / "short.npz")
    with pytest.raises(IdentifyError, match="too little data: 494 usable periods"):
        call(tmp_path / "short.npz", "--bundle", bundle.path)


def test_wrong_use_says_what_to_do(
    bundle: Bundle, log: FlightLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.save(tmp_path / "flight.npz")
    flight = tmp_path / "flight.npz"
    with pytest.raises(IdentifyError, match="unicycle_lane is nominal: it has no error chart"):
        call(flight, "--bundle", MODELS / "unicycle_lane")
    with pytest.raises(SafeRLError, match="must not be changed"):
        call(flight, "--bundle", bundle.path, "--out", bundle.path / "new.yaml")
    with pytest.raises(SafeRLError, match="the folder .* does not exist"):
        call(flight, "--bundle", bundle.path, "--out", tmp_path / "no" / "new.yaml")
    with pytest.raises(SafeRLError, match="no recording at"):
        call(tmp_path / "nothing.npz", "--bundle", bundle.path)
    with pytest.raises(RecordingError, match="found 0"):
        call(tmp_path, "--bundle", bundle.path)
    with pytest.raises(BundleError, match="no bundle"):
        call(flight, "--bundle", "nowhere")
    for words in (("--probability", "1"), ("--exposure", "0"), ("--max-delay", "0")):
        with pytest.raises(SystemExit):
            call(flight, "--bundle", bundle.path, *words)
        assert words[0] in capsys.readouterr().err


def test_a_log_of_another_robot_is_refused(bundle: Bundle, log: FlightLog, tmp_path: Path) -> None:
    other = replace(log, x_measured=np.zeros((STEPS, 10)), u_safe=np.zeros((STEPS, 4)))
    other.save(tmp_path / "other.npz")
    with pytest.raises(SafeRLError, match="10 states and 4 inputs, unicycle_robust has 4 and 2"):
        read_flights(tmp_path / "other.npz", bundle)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0.0),
        (1.0, 1.0),
        (0.0012341, 0.00124),
        (9.991, 10.0),
        (123.4, 124.0),
        (2.5e-7, 2.5e-7),
    ],
)
def test_proposals_are_rounded_up(value: float, expected: float) -> None:
    assert rounded_up(value) == expected
    assert rounded_up(value) >= value
