"""Writes flight logs as the recorder would have recorded them, without ROS."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from mcap_ros2.writer import Writer
from safe_rl_core.record import VERDICTS, FlightLog
from safe_rl_ros import topics
from safe_rl_ros.convert import codecs
from safe_rl_ros.stamps import SECOND

HEADER = """std_msgs/Header header
"""
SHARED = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
================================================================================
MSG: geometry_msgs/Vector3
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Twist
geometry_msgs/Vector3 linear
geometry_msgs/Vector3 angular
"""
ODOMETRY = (
    HEADER
    + "string child_frame_id\ngeometry_msgs/PoseWithCovariance pose\n"
    + "geometry_msgs/TwistWithCovariance twist\n"
    + SHARED
    + """================================================================================
MSG: geometry_msgs/PoseWithCovariance
geometry_msgs/Pose pose
float64[36] covariance
================================================================================
MSG: geometry_msgs/TwistWithCovariance
geometry_msgs/Twist twist
float64[36] covariance
================================================================================
MSG: geometry_msgs/Pose
geometry_msgs/Point position
geometry_msgs/Quaternion orientation
================================================================================
MSG: geometry_msgs/Point
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Quaternion
float64 x
float64 y
float64 z
float64 w
"""
)
TWIST = HEADER + "geometry_msgs/Twist twist\n" + SHARED
STATUS = (
    HEADER
    + "diagnostic_msgs/DiagnosticStatus[] status\n"
    + SHARED
    + """================================================================================
MSG: diagnostic_msgs/DiagnosticStatus
byte level
string name
string message
string hardware_id
diagnostic_msgs/KeyValue[] values
================================================================================
MSG: diagnostic_msgs/KeyValue
string key
string value
"""
)
CLOCK = "builtin_interfaces/Time clock\n" + SHARED


def write_recording(
    path: Path,
    bundle: SimpleNamespace,
    log: FlightLog,
    *,
    repeated: tuple[int, ...] = (),
    dropped: tuple[int, ...] = (),
) -> None:
    """The log as `path` (.mcap).

    `repeated`: steps whose state, proposal and command are sent a second time, the command with
    other numbers; `dropped`: steps whose true state is missing.
    """
    states, inputs = codecs(bundle)
    commands = topics.commands_of(bundle.robot)
    with path.open("wb") as stream:
        writer = Writer(stream)
        kinds = {
            name: writer.register_msgdef(name, text)
            for name, text in (
                ("nav_msgs/msg/Odometry", ODOMETRY),
                ("geometry_msgs/msg/TwistStamped", TWIST),
                ("diagnostic_msgs/msg/DiagnosticArray", STATUS),
                ("rosgraph_msgs/msg/Clock", CLOCK),
            )
        }

        def send(topic: str, step: int, message: dict) -> None:
            kind = kinds[topics.recorded(bundle.robot)[topic]]
            name = topic if topic.startswith("/") else f"/{topic}"
            stamp = round(step * bundle.period * SECOND)
            writer.write_message(name, kind, message, stamp)

        for step in range(log.steps + 1):
            header = _header(step, bundle)
            send(topics.CLOCK, step, {"clock": header["stamp"]})
            if step not in dropped:
                truth = states.numbers(log.x_true[step])
                send(topics.TRUE_STATE, step, _odometry(header, truth))
            if step == log.steps:
                break
            x = log.x_measured[step]
            send(topics.STATE, step, _odometry(header, states.numbers(x)))
            if np.isfinite(log.u_proposed[step]).all():
                proposal = inputs.numbers(log.u_proposed[step], x)
                send(commands.proposal, step, _twist(header, proposal))
            send(commands.command, step, _twist(header, inputs.numbers(log.u_safe[step], x)))
            send(topics.STATUS, step, _status(header, bundle, log, step))
            if step in repeated:
                send(topics.STATE, step, _odometry(header, states.numbers(x)))
                send(commands.command, step, _twist(header, [99.0] * 6))
        writer.finish()


def _header(step: int, bundle: SimpleNamespace) -> dict:
    seconds, nanoseconds = divmod(round(step * bundle.period * SECOND), SECOND)
    return {"stamp": {"sec": seconds, "nanosec": nanoseconds}, "frame_id": "odom"}


def _vector(numbers: list[float]) -> dict:
    return dict(zip("xyzw", numbers, strict=False))


def _odometry(header: dict, numbers: list[float]) -> dict:
    pose = {"position": _vector(numbers[:3]), "orientation": _vector(numbers[3:7])}
    twist = {"linear": _vector(numbers[7:]), "angular": _vector([0.0] * 3)}
    blank = [0.0] * 36
    return {
        "header": header,
        "child_frame_id": "base_link",
        "pose": {"pose": pose, "covariance": blank},
        "twist": {"twist": twist, "covariance": blank},
    }


def _twist(header: dict, numbers: list[float]) -> dict:
    twist = {"linear": _vector(numbers[:3]), "angular": _vector(numbers[3:])}
    return {"header": header, "twist": twist}


def _status(header: dict, bundle: SimpleNamespace, log: FlightLog, step: int) -> dict:
    values = {
        "verdict": VERDICTS[log.verdict[step]],
        "reason": str(log.reason[step]),
        "margin": repr(float(log.margin[step])),
        "critical_row": str(log.critical_row[step]),
        "intervention": repr(float(log.intervention[step])),
        "qp_used": "true" if log.qp_used[step] else "false",
        "total_us": repr(float(log.shield_us[step])),
        "latency_us": repr(float(log.latency_us[step])),
        "bundle_hash": bundle.hash,
        "certificate": bundle.certificate,
    }
    pairs = [{"key": key, "value": value} for key, value in values.items()]
    status = {
        "level": 0,
        "name": "shield: verdict",
        "message": values["reason"],
        "hardware_id": bundle.name,
        "values": pairs,
    }
    return {"header": header, "status": [status]}
