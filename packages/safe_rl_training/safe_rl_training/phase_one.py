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

import torch
from safe_rl_systems.backup.learned import feature_size, load_backup, with_backup
from safe_rl_systems.robot import Robot

from safe_rl_training.arrival_tuning import tune, with_gains
from safe_rl_training.parts.arrival import Margins, Profile, safe_states
from safe_rl_training.parts.report import write_training_record
from safe_rl_training.safe_arrival import ArrivalSettings, train_backup

BACKUPS = ("learned", "tuned", "analytic")
Say = Callable[[str], None]
#: States from which the scales of a plan's margins are measured.
_SCALES = 4096


@dataclass(frozen=True)
class Found:
    """The robot with its backup policy, and how that came about, ready for JSON."""

    robot: Robot
    record: dict[str, Any]


def backup_of(
    robot: Robot,
    backup: str,
    *,
    seed: int,
    out: Path,
    quick: bool,
    threads: int,
    resume: bool,
    say: Say = print,
) -> Found:
    """The robot with one of BACKUPS; `out` is phase I's folder."""
    if backup == "analytic":
        say("  the robot's own, nothing to train")
        return stored_backup(robot, backup, out)
    if resume and (out / "record.json").is_file():
        say("  as it was found before")
        return stored_backup(robot, backup, out)
    if backup == "tuned":
        return _tuned(robot, seed, out, quick, say)
    feature_size(robot)  # says what is missing before anything is trained
    begun = resume and (out / "checkpoint.pt").is_file()
    result = train_backup(robot, _settings(quick), seed, out, begun, say, threads)
    return Found(result.robot, {"backup": backup, **result.record})


def _settings(quick: bool) -> ArrivalSettings:
    return ArrivalSettings.quick() if quick else ArrivalSettings()


def stored_backup(robot: Robot, backup: str, out: Path) -> Found:
    """What an earlier `backup_of` left in its folder."""
    if backup == "analytic":
        return Found(robot, {"backup": backup})
    record = {"backup": backup, **json.loads((out / "record.json").read_text())}
    if backup == "tuned":
        gains = torch.tensor([gain["tuned"] for gain in record["tuning"].values()])
        return Found(with_gains(robot, gains), record)
    return Found(with_backup(robot, load_backup(out / "backup.npz", robot)), record)


def _tuned(robot: Robot, seed: int, out: Path, quick: bool, say: Say) -> Found:
    """The analytic law with gains by cross-entropy, and nothing else."""
    states = safe_states(robot, _SCALES, torch.Generator().manual_seed(seed))
    margins = Margins.measured(robot, states, Profile.nominal(robot))
    gains, tuning = tune(robot, margins, _settings(quick).tuning, seed, say)
    record = {"backup": "tuned", "tuning": tuning}
    out.mkdir(parents=True, exist_ok=True)
    write_training_record(record, out / "record.json")
    return Found(with_gains(robot, gains), record)
