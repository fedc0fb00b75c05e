"""`safe-rl fly` and `safe-rl report`: exit codes and files; a record stands in for the stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recordings import write_recording
from safe_rl import runner
from safe_rl.cli import build_parser, main
from safe_rl.commands.fly import new_folder
from safe_rl.stack import StackError
from safe_rl_core import progress
from safe_rl_core.bundle import Bundle
from safe_rl_core.record import FlightLog
from synthetic import unicycle_bundle, unicycle_log

FILES = {"recording.mcap", "run.json", "summary.json", "report.html", "overview.png"}


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every bundle is the synthetic lane."""
    bundle = unicycle_bundle()
    monkeypatch.setattr(Bundle, "load", staticmethod(lambda source: bundle))
    return bundle


def fly(
    monkeypatch: pytest.MonkeyPatch, folder: Path, bundle: Any, log: FlightLog | None, code: int
) -> tuple[int, Path]:
    """`safe-rl fly unicycle` with a stack that leaves `log` behind and ends with `code`."""

    def launch(robot: str, *, echo: Any, record: Path, **options: Any) -> int:
        assert robot == "unicycle"
        assert options["lockstep"]
        echo("[sim] lap 1/1")
        if log is not None:
            write_recording(record / "recording.mcap", bundle, log)
        return code

    monkeypatch.setattr(runner, "launch", launch)
    result = main(["fly", "unicycle", "--no-film", "--seed", "3", "--out", str(folder)])
    return result, next(folder.iterdir())


def test_a_good_flight(
    tmp_path: Path,
    lane: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, folder = fly(monkeypatch, tmp_path, lane, unicycle_log(), 0)
    assert code == 0
    assert {path.name for path in folder.iterdir()} == FILES
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["seed"], summary["plant"], summary["laps"]) == (3, "bullet", 1)
    out = capsys.readouterr().out
    for words in ("NO VIOLATION", "[sim] lap 1/1", "certificate: none (nominal)", "report.html"):
        assert words in out


@pytest.mark.parametrize(
    ("peak", "stack_code", "expected"),
    [(1.9, 0, 1), (1.75, 4, 4)],
    ids=["violated", "lost_node"],
)
def test_exit_codes(
    tmp_path: Path,
    lane: Any,
    monkeypatch: pytest.MonkeyPatch,
    peak: float,
    stack_code: int,
    expected: int,
) -> None:
    code, folder = fly(monkeypatch, tmp_path, lane, unicycle_log(peak), stack_code)
    assert code == expected
    badge = "bad" if peak > 1.8 else "good"
    assert f'<div class="badge {badge}">' in (folder / "report.html").read_text()


def test_without_a_recording_there_is_no_success(
    tmp_path: Path,
    lane: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _ = fly(monkeypatch, tmp_path, lane, None, 0)
    assert code == 1
    assert "no report: expected one .mcap" in capsys.readouterr().err


def test_a_stack_that_cannot_start_leaves_nothing(
    tmp_path: Path,
    lane: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def launch(robot: str, **options: Any) -> int:
        raise StackError("no rclpy here; install it")

    monkeypatch.setattr(runner, "launch", launch)
    assert main(["fly", "unicycle", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "safe-rl fly: no rclpy here; install it\n"
    assert not list(tmp_path.iterdir())


def test_report_from_the_recording_alone(
    tmp_path: Path, lane: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recording(tmp_path / "recording.mcap", lane, unicycle_log(1.9))
    assert main(["report", str(tmp_path), "--no-film"]) == 1
    assert "VIOLATED" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"run.json"}


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("safe-rl report: no run at ")


def test_two_flights_in_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = {new_folder(tmp_path, "unicycle") for _ in range(3)}
    assert len(folders) == 3


def test_launch_hands_over_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def launch(robot: str, **options: Any) -> int:
        seen.update(options, robot=robot)
        return 5

    monkeypatch.setattr(runner, "launch", launch)
    words = "launch quadrotor --plant hardware --laps 2 --no-lockstep --record here"
    assert main(words.split()) == 5
    assert seen["robot"] == "quadrotor"
    assert (seen["plant"], seen["laps"], seen["lockstep"]) == ("hardware", 2, False)
    assert seen["record"] == Path("here")


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["fly"], ["launch"], ["simulate"], ["inspect"], ["report"]):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([*words, "--help"])
        assert stop.value.code == 0
        assert f"safe-rl {' '.join(words)}".strip() in capsys.readouterr().out


def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_S", 0.0)
    line = progress.Progress("episodes", 2)
    line.advance("unsafe 0")
    line.close()
    assert capsys.readouterr().err == "episodes 1/2, 0 s left unsafe 0\n"
