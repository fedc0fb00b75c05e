"""A whole stack through the runner: real nodes, real Fast DDS, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros


def start(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`safe-rl launch …` as a user types it."""
    command = [sys.executable, "-m", "safe_rl.cli", "launch", *words]
    env = {**os.environ, "ROS_LOG_DIR": str(folder / "log")}
    return subprocess.run(
        command, cwd=folder, env=env, text=True, capture_output=True, timeout=120, check=False
    )


def others() -> set[str]:
    """Command lines of all node processes on this machine that were started from this Python."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0] == sys.executable and "--ros-args" in words:
            found.add(f"{path.parent.name} {' '.join(words)}")
    return found


@pytest.mark.parametrize("robot", ["quadrotor", "unicycle"])
def test_one_lap_ends_by_itself_with_zero(robot: str, tmp_path: Path) -> None:
    before = others()
    done = start(robot, "--plant", "model", "--laps", "1", "--record", "run", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[sim] lap 1/1" in done.stdout
    assert (tmp_path / "run" / "recording.mcap").stat().st_size > 10_000
    assert others() <= before


def test_a_bundle_that_does_not_exist_ends_the_stack_with_the_reason(tmp_path: Path) -> None:
    before = others()
    done = start("quadrotor", "--bundle", "no_such_bundle", folder=tmp_path)
    assert done.returncode not in (0, 4)
    assert "no_such_bundle" in done.stdout
    assert others() <= before


BLOCKED = """
import sys
for name in ("torch", "pybullet", "matplotlib", "PIL", "mcap_ros2"):
    sys.modules[name] = None
from safe_rl.cli import main
sys.exit(main(["launch", "--help"]))
"""


def test_launch_needs_neither_simulator_nor_report_on_the_robot(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--plant" in done.stdout


def test_a_robust_flight_passes_the_audit(tmp_path: Path) -> None:
    models = Path(__file__).resolve().parents[2] / "models"
    bundle = ("--bundle", str(models / "unicycle_robust"))
    flown = ("unicycle", *bundle, "--plant", "assumed", "--laps", "1", "--record", "run")
    done = start(*flown, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    command = [sys.executable, "-m", "safe_rl.cli", "audit", "run", *bundle]
    audit = subprocess.run(
        command, cwd=tmp_path, text=True, capture_output=True, timeout=120, check=False
    )
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "ACCEPTED" in audit.stdout
