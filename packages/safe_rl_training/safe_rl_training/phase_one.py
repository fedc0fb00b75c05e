"""The backup policy that phase II is trained behind: as defined, tuned, or learned.

What phase I left in its folder is used again by a resumed run; the work itself is that of
`safe_arrival.py` (learned) and `arrival_tuning.py` (tuned).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_rl_core.bundle import Bundle
from safe_rl_systems.backup.learned import feature_size, load_backup, with_backup
from safe_rl_systems.robot import Robot

from safe_rl_training.arrival_tuning import Gains, with_tuning
from safe_rl_training.parts.report import write_training_record
from safe_rl_training.safe_arrival import ArrivalSettings, baseline, train_backup

BACKUPS = ("learned", "tuned", "analytic")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """The robot with its backup policy, and how that came about, ready for JSON."""

    robot: Robot
    record: dict[str, Any]


def refuse_impossible(robot: Robot, backup: str) -> None:
    """ModelError that says what the robot lacks for this backup, before anything is trained."""
    if backup == "learned":
        feature_size(robot)
    elif backup == "tuned":
        Gains.of(robot)


def backup_of(
    robot: Robot,
    backup: str,
    *,
    seed: int,
    out: Path,
    quick: bool,
    threads: int,
    resume: bool,
    bundle: Bundle | None = None,
    say: Say = print,
) -> Found:
    """The robot with one of BACKUPS; `out` is phase I's folder.

    A robot with assumed bounds needs a `bundle` that holds its certificate.
    """
    refuse_impossible(robot, backup)
    if backup == "analytic":
        say("  the robot's own, nothing to train")
        return stored_backup(robot, backup, out)
    if resume and (out / "record.json").is_file():
        say("  as it was found before")
        return stored_backup(robot, backup, out)
    settings = ArrivalSettings.quick() if quick else ArrivalSettings()
    if backup == "tuned":
        return _tuned(robot, settings, seed, out, bundle, say)
    begun = resume and (out / "checkpoint.pt").is_file()
    result = train_backup(robot, settings, seed, out, begun, say, threads, bundle=bundle)
    return Found(result.robot, {"backup": backup, **result.record})


def stored_backup(robot: Robot, backup: str, out: Path) -> Found:
    """What an earlier `backup_of` left in its folder."""
    if backup == "analytic":
        return Found(robot, {"backup": backup})
    record = {"backup": backup, **json.loads((out / "record.json").read_text())}
    if backup == "tuned":
        return Found(with_tuning(robot, record["tuning"]), record)
    return Found(with_backup(robot, load_backup(out / "backup.npz", robot)), record)


def _tuned(
    robot: Robot, settings: ArrivalSettings, seed: int, out: Path, bundle: Bundle | None, say: Say
) -> Found:
    """The analytic law with gains by cross-entropy, and nothing else."""
    _, tuning = baseline(robot, settings, seed, bundle, say)
    out.mkdir(parents=True, exist_ok=True)
    write_training_record({"backup": "tuned", "tuning": tuning}, out / "record.json")
    return stored_backup(robot, "tuned", out)
