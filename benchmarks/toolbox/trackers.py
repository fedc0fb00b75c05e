"""Bundles that fly a tracker of models/trackers, which knows the task and no shield."""

from __future__ import annotations

from pathlib import Path

from safe_rl_core import Bundle
from safe_rl_systems.build import BACKUP, robot_of, write_bundle
from safe_rl_systems.robot import ROBOTS

CARD = "The tracker that phase II may begin with; do not fly it without a shield.\n"


def tracker_bundle(shipped: Path, out: Path, *, analytic: bool = False) -> Bundle:
    """Write `shipped` with the tracker as its policy into the folder `out`.

    `analytic`: with the analytic backup policy instead of that of `shipped`.
    """
    backup = None if analytic else shipped / BACKUP
    if backup is not None and not backup.is_file():
        backup = None
    robot = ROBOTS[shipped.name]() if analytic else robot_of(shipped)
    policy = shipped.parent / "trackers" / f"{robot.robot}.onnx"
    return write_bundle(robot, policy, CARD, out, backup=backup)
