"""Names of the topics and frames, once.

All relative, so that a namespace moves the whole stack; only `/clock` and `/diagnostics` are
absolute, as everywhere in ROS 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from safe_rl_core.errors import SafeRLError

STATE = "odom"
TRUE_STATE = "ground_truth/odom"
STATUS = "shield/status"
MARKERS = "shield/markers"
RECORD = "shield/certificate"
DIAGNOSTICS = "/diagnostics"
CLOCK = "/clock"
ODOM_FRAME = "odom"
BASE_FRAME = "base_link"


@dataclass(frozen=True)
class CommandTopics:
    """The two command topics of a robot: what the policy proposes and what the shield sends."""

    proposal: str
    command: str


COMMANDS = {
    "quadrotor": CommandTopics("cmd_ctbr_nominal", "cmd_ctbr"),
    "unicycle": CommandTopics("cmd_vel_nominal", "cmd_vel"),
}


def commands_of(robot: str) -> CommandTopics:
    """Command topics of a robot named by a bundle."""
    if robot not in COMMANDS:
        raise SafeRLError(
            f"no command topics for robot {robot!r}: expected one of {', '.join(COMMANDS)}; "
            f"add it to safe_rl_ros/topics.py"
        )
    return COMMANDS[robot]


def recorded(robot: str, *, robust: bool = False) -> dict[str, str]:
    """Topic -> message type of everything that a run says; `robust`: with the signed record."""
    names = commands_of(robot)
    signed = {RECORD: "std_msgs/msg/UInt8MultiArray"} if robust else {}
    return {
        STATE: "nav_msgs/msg/Odometry",
        TRUE_STATE: "nav_msgs/msg/Odometry",
        names.proposal: "geometry_msgs/msg/TwistStamped",
        names.command: "geometry_msgs/msg/TwistStamped",
        STATUS: "diagnostic_msgs/msg/DiagnosticArray",
        MARKERS: "visualization_msgs/msg/MarkerArray",
        DIAGNOSTICS: "diagnostic_msgs/msg/DiagnosticArray",
        CLOCK: "rosgraph_msgs/msg/Clock",
        **signed,
    }
