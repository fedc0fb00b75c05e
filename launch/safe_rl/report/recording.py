"""Reads a recorded run (MCAP, ROS 2 messages), without rclpy and without the nodes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from safe_rl_core.errors import SafeRLError
from safe_rl_ros import topics
from safe_rl_ros.convert import Numbers
from safe_rl_ros.stamps import to_ns


class RecordingError(SafeRLError):
    """A recording that is missing, damaged, or lacks what a report needs."""


@dataclass
class Recording:
    """What was on the wire, by topic and by stamp (ns). The first message of each stamp.

    States and commands are the numbers that `safe_rl_ros.convert` takes.
    """

    path: Path
    robot: str
    true_states: dict[int, Numbers] = field(default_factory=dict)
    states: dict[int, Numbers] = field(default_factory=dict)
    proposals: dict[int, Numbers] = field(default_factory=dict)
    commands: dict[int, Numbers] = field(default_factory=dict)
    status: dict[int, dict[str, str]] = field(default_factory=dict)
    simulated: bool = False
    bundle_name: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)

    @property
    def bundle_hash(self) -> str:
        """Hash of the bundle that the shield said it flew with, or ''."""
        return next((values.get("bundle_hash", "") for values in self.status.values()), "")


def find_recording(folder: str | Path) -> Path:
    """The one .mcap file in a run's folder. Raises `RecordingError` with what to do next."""
    folder = Path(folder)
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise RecordingError(f"no run at {folder}: expected a folder made by 'safe-rl fly'")
    files = sorted(folder.rglob("*.mcap"))
    if len(files) != 1:
        raise RecordingError(
            f"expected one .mcap recording in {folder}, found {len(files)}; "
            + ("pass the file itself" if files else "fly again with 'safe-rl fly'")
        )
    return files[0]


def read_recording(path: str | Path) -> Recording:
    """Read an .mcap file made by the recorder node."""
    path = find_recording(path)
    decoded = list(messages(path))
    robots = [
        robot
        for robot, names in topics.COMMANDS.items()
        if any(topic in (names.command, names.proposal) for topic, _ in decoded)
    ]
    if len(robots) != 1:
        expected = ", ".join(names.command for names in topics.COMMANDS.values())
        raise RecordingError(
            f"{path}: cannot tell the robot: expected commands on one of {expected}, found "
            f"{', '.join(sorted({topic for topic, _ in decoded})) or 'no messages'}"
        )
    recording = Recording(path, robots[0])
    by_stamp = {
        topics.TRUE_STATE: recording.true_states,
        topics.STATE: recording.states,
        topics.commands_of(robots[0]).proposal: recording.proposals,
        topics.commands_of(robots[0]).command: recording.commands,
    }
    for topic, message in decoded:
        if topic in by_stamp:
            by_stamp[topic].setdefault(to_ns(message.header.stamp), numbers_of(message))
        elif topic == topics.STATUS:
            recording.bundle_name = message.status[0].hardware_id
            values = {pair.key: pair.value for pair in message.status[0].values}
            recording.status.setdefault(to_ns(message.header.stamp), values)
        elif topic == topics.CLOCK.lstrip("/"):
            recording.simulated = True
        elif topic == topics.DIAGNOSTICS.lstrip("/"):
            for status in message.status:
                if status.name.startswith("sim"):
                    recording.facts.update({pair.key: pair.value for pair in status.values})
    return recording


def numbers_of(message: Any) -> Numbers:
    """Pose and linear velocity of an Odometry; linear and angular part of a TwistStamped."""
    if not hasattr(message, "pose"):
        a, b = message.twist.linear, message.twist.angular
        return (a.x, a.y, a.z, b.x, b.y, b.z)
    p, q = message.pose.pose.position, message.pose.pose.orientation
    v = message.twist.twist.linear
    return (p.x, p.y, p.z, q.x, q.y, q.z, q.w, v.x, v.y, v.z)


def messages(path: Path) -> Iterator[tuple[str, Any]]:
    """(topic without leading slash, decoded message), in the order of time, without markers."""
    wanted = {topics.TRUE_STATE, topics.STATE, topics.STATUS}
    wanted |= {topics.DIAGNOSTICS.lstrip("/"), topics.CLOCK.lstrip("/")}
    for names in topics.COMMANDS.values():
        wanted |= {names.proposal, names.command}
    try:
        with path.open("rb") as stream:
            reader = make_reader(stream, decoder_factories=[DecoderFactory()])
            found = reader.iter_decoded_messages(
                [name for topic in wanted for name in (topic, f"/{topic}")]
            )
            for _, channel, _, message in found:
                yield channel.topic.lstrip("/"), message
    except (McapError, OSError, EOFError, ValueError, struct.error) as error:
        raise RecordingError(
            f"{path} cannot be read as MCAP ({error}); the recorder was probably killed before it "
            f"could close the file: fly again"
        ) from error
