"""A robot of one's own in a file of its own: the lane unicycle, for two seconds."""

from __future__ import annotations

from dataclasses import replace

from safe_rl_systems import robot
from safe_rl_systems.robot import Robot


def short_lane() -> Robot:
    """Twenty periods ahead, forty periods long."""
    return replace(robot.unicycle_lane(), name="short_lane", horizon=20, duration=2.0)


def not_a_robot() -> int:
    """Found by nobody."""
    return 1
