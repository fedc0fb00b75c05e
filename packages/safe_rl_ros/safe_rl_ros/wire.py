"""The two message types of the control path as bytes: stamp and numbers in, stamp and numbers out.

rclpy builds some twenty Python objects to hand over one Odometry (80 us, four fifths of what the
policy does per state). The control path subscribes and publishes serialized messages instead, and
this file reads and writes the numbers where they are.

Nothing here knows the format by heart. A template is serialized by ROS itself, the places of the
numbers are found in it, and the result is proved against ROS's own deserializer when a node is
configured. Messages that differ from the template in byte order, length or frames take the slow
way through ROS and are judged there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message, serialize_message
from safe_rl_core.errors import SafeRLError

from safe_rl_ros.convert import MessageFault, Numbers
from safe_rl_ros.stamps import SECOND, to_ns, write_ns

STAMP = struct.Struct("<iI")
STAMP_AT = 4  # behind the four bytes that name the byte order


def odometry_numbers(odom: Any) -> tuple[float, ...]:
    """(position x y z, orientation x y z w, linear x y z) of a `nav_msgs/Odometry`."""
    p, q = odom.pose.pose.position, odom.pose.pose.orientation
    v = odom.twist.twist.linear
    return (p.x, p.y, p.z, q.x, q.y, q.z, q.w, v.x, v.y, v.z)


def fill_odometry(odom: Any, numbers: Numbers) -> None:
    """Write the ten numbers into a `nav_msgs/Odometry`."""
    p, q = odom.pose.pose.position, odom.pose.pose.orientation
    v = odom.twist.twist.linear
    p.x, p.y, p.z, q.x, q.y, q.z, q.w, v.x, v.y, v.z = map(float, numbers)


def twist_numbers(message: Any) -> tuple[float, ...]:
    """(linear x y z, angular x y z) of a `geometry_msgs/TwistStamped`."""
    a, b = message.twist.linear, message.twist.angular
    return (a.x, a.y, a.z, b.x, b.y, b.z)


def fill_twist(message: Any, numbers: Numbers) -> None:
    """Write the six numbers into a `geometry_msgs/TwistStamped`."""
    a, b = message.twist.linear, message.twist.angular
    a.x, a.y, a.z, b.x, b.y, b.z = map(float, numbers)


class Wire:
    """Serialized messages of one type and one pair of frames."""

    def __init__(
        self,
        kind: type,
        frames: tuple[str, str],
        get: Callable[[Any], tuple[float, ...]],
        fill: Callable[[Any, Numbers], None],
    ) -> None:
        self._kind, self._frames, self._get, self._fill = kind, frames, get, fill
        message = self.message()
        count = len(get(message))
        # Numbers that occur nowhere else in the message mark their own places.
        marks = [1.0 + (k + 1) / 64.0 for k in range(count)]
        fill(message, marks)
        self._template = bytearray(serialize_message(message))
        self._places = [self._template.find(struct.pack("<d", mark)) for mark in marks]
        self._begin, self._size = min(self._places), len(self._template)
        self._layout = self._compile()
        self._order = bytes(self._template[:STAMP_AT])
        self._strings = tuple(self._find(text) for text in frames if text)
        self._prove(marks)

    def message(self) -> Any:
        """A typed message in these frames."""
        message = self._kind()
        message.header.frame_id = self._frames[0]
        if hasattr(message, "child_frame_id"):
            message.child_frame_id = self._frames[1]
        return message

    def unpack(self, data: bytes) -> tuple[int, tuple[float, ...]]:
        """(stamp in ns, numbers) of a serialized message; `MessageFault` for a wrong frame."""
        if len(data) != self._size or data[:STAMP_AT] != self._order:
            return self._unpack_slowly(data)
        for begin, end, text in self._strings:
            if data[begin:end] != text:
                return self._unpack_slowly(data)
        seconds, nanoseconds = STAMP.unpack_from(data, STAMP_AT)
        return seconds * SECOND + nanoseconds, self._layout.unpack_from(data, self._begin)

    def pack(self, stamp_ns: int, numbers: Numbers) -> bytes:
        """Serialized message with this stamp (>= 0) and these numbers."""
        STAMP.pack_into(self._template, STAMP_AT, *divmod(stamp_ns, SECOND))
        self._layout.pack_into(self._template, self._begin, *numbers)
        return bytes(self._template)

    def _compile(self) -> struct.Struct:
        """One struct over all numbers, skipping what lies between them."""
        layout, at = "<", self._begin
        for place in self._places:
            if place < at:
                raise SafeRLError(f"numbers of {self._kind.__name__} do not lie in order")
            layout += f"{place - at}xd"
            at = place + 8
        return struct.Struct(layout)

    def _find(self, text: str) -> tuple[int, int, bytes]:
        """Begin, end and bytes of a string with its length; padding around it is not looked at."""
        data = struct.pack("<I", len(text) + 1) + text.encode() + b"\0"
        begin = self._template.find(data, STAMP_AT + STAMP.size, self._begin)
        if begin < 0:
            raise SafeRLError(f"frame {text!r} not found in a serialized {self._kind.__name__}")
        return begin, begin + len(data), data

    def _unpack_slowly(self, data: bytes) -> tuple[int, tuple[float, ...]]:
        message = deserialize_message(data, self._kind)
        got = (message.header.frame_id, getattr(message, "child_frame_id", self._frames[1]))
        if got != self._frames:
            raise MessageFault(
                "wrong_frame",
                f"expected frames {self._frames}, got {got}; set odom_frame and base_frame, or "
                f"transform the source",
            )
        return to_ns(message.header.stamp), self._get(message)

    def _prove(self, marks: list[float]) -> None:
        """Raise unless these bytes are what ROS would have written, and mean the same to it."""
        message = self.message()
        write_ns(3 * SECOND + 5, message.header.stamp)
        numbers = [-1.0 / mark for mark in marks]
        self._fill(message, numbers)
        data = self.pack(3 * SECOND + 5, numbers)
        understood = deserialize_message(data, self._kind) == message
        read = self.unpack(bytes(serialize_message(message)))
        if not understood or read != (3 * SECOND + 5, tuple(numbers)):
            raise SafeRLError(
                f"this ROS serializes {self._kind.__name__} in a way that safe_rl_ros/wire.py "
                f"does not understand; report the distribution and RMW_IMPLEMENTATION"
            )


def odometry_wire(frame: str, child: str) -> Wire:
    """Wire of `nav_msgs/Odometry` of `child` in `frame`."""
    return Wire(Odometry, (frame, child), odometry_numbers, fill_odometry)


def twist_wire(frame: str) -> Wire:
    """Wire of `geometry_msgs/TwistStamped` in `frame`."""
    return Wire(TwistStamped, (frame, ""), twist_numbers, fill_twist)
