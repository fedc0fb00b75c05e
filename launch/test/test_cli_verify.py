"""`safe-rl verify`: what it refuses, what it writes, and that a changed certificate is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safe_rl.cli import main
from safe_rl_core.bundle import Bundle, write_sums

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture
def unicycle(tmp_path: Path) -> Path:
    """A copy of the shipped robust unicycle."""
    return Path(shutil.copytree(MODELS / "unicycle_robust", tmp_path / "unicycle_robust"))


def test_a_proof_from_nothing_is_checked_and_written(
    unicycle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (unicycle / "bundle.yaml").read_text()
    assert "certificate: robust\n" in text
    nominal = text.replace("certificate: robust\n", "certificate: none (nominal)\n")
    (unicycle / "bundle.yaml").write_text(nominal)
    for name in ("certificate.json", "certificate.npz"):
        (unicycle / name).unlink()
    write_sums(unicycle)
    assert Bundle.load(unicycle).robust is None
    assert main(["verify", str(unicycle), "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "base set: proved" in out and "ACCEPTED" in out
    assert Bundle.load(unicycle).robust is not None


def test_a_better_number_than_was_proved_is_refused(
    unicycle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unicycle / "certificate.json"
    data = json.loads(path.read_text())
    data["tracking_error"] = [0.97 * value for value in data["tracking_error"]]
    path.write_text(json.dumps(data))
    write_sums(unicycle)
    assert main(["verify", str(unicycle), "--check-only", "--jobs", "1"]) == 1
    assert "tracking_error" in capsys.readouterr().out


def test_the_published_quadrotor_set_is_refused_with_a_counterexample(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = str(MODELS / "quadrotor_powerloop_paper")
    assert main(["verify", bundle, "--level", "8", "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "base set: refuted" in out and "counterexample" in out and "> 1" in out


def test_the_published_unicycle_set_is_proved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(MODELS / "unicycle_lane_paper"), "--jobs", "1"]) == 0
    assert "base set: proved" in capsys.readouterr().out


def test_a_bundle_without_a_certificate_cannot_be_checked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["verify", str(MODELS / "unicycle_lane"), "--check-only"]) == 2
    assert "carries no certificate" in capsys.readouterr().err
