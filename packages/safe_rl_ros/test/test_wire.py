"""Serialized messages: the quick way and ROS's own way mean the same, and wrong types are loud."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs ROS 2: pip install the wheels or source a setup file")

from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message, serialize_message
from safe_rl_ros.convert import MessageFault
from safe_rl_ros.stamps import SECOND, to_ns, write_ns
from safe_rl_ros.wire import (
    fill_odometry,
    fill_twist,
    odometry_numbers,
    odometry_wire,
    twist_numbers,
    twist_wire,
)

ODOMETRY = odometry_wire("odom", "base_link")
TWIST = twist_wire("base_link")
CASES = {
    "odometry": (ODOMETRY, Odometry, odometry_numbers, fill_odometry, 10),
    "twist": (TWIST, TwistStamped, twist_numbers, fill_twist, 6),
}
real = st.floats(allow_nan=True, allow_infinity=True, width=64)
stamps = st.integers(0, 2_000_000_000 * SECOND)


def same(a, b):
    return all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_what_is_packed_is_what_ros_reads(name, data):
    wire, kind, get, _, count = CASES[name]
    stamp, numbers = data.draw(stamps), data.draw(st.tuples(*[real] * count))
    message = deserialize_message(wire.pack(stamp, numbers), kind)
    assert to_ns(message.header.stamp) == stamp and same(get(message), numbers)
    assert message.header.frame_id == wire.message().header.frame_id


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_what_ros_writes_is_what_is_unpacked(name, data):
    wire, _, _, fill, count = CASES[name]
    stamp, numbers = data.draw(stamps), data.draw(st.tuples(*[real] * count))
    message = wire.message()
    write_ns(stamp, message.header.stamp)
    fill(message, numbers)
    got = wire.unpack(bytes(serialize_message(message)))
    assert got[0] == stamp and same(got[1], numbers)


def test_the_quick_way_is_taken(monkeypatch):
    monkeypatch.setattr(type(ODOMETRY), "_unpack_slowly", lambda *_: pytest.fail("slow way"))
    ODOMETRY.unpack(bytes(serialize_message(ODOMETRY.message())))
    TWIST.unpack(bytes(serialize_message(TWIST.message())))


def test_covariances_do_not_disturb():
    message = ODOMETRY.message()
    message.pose.covariance = np.arange(36.0)
    message.twist.covariance = np.full(36, math.nan)
    message.twist.twist.linear.x = 4.5
    assert ODOMETRY.unpack(bytes(serialize_message(message)))[1][7] == 4.5


@pytest.mark.parametrize("frames", [("map", "base_link"), ("odom", "base_link_ned"), ("", "")])
def test_another_frame_is_refused_with_both_named(frames):
    message = Odometry()
    message.header.frame_id, message.child_frame_id = frames
    with pytest.raises(MessageFault, match="base_link.*got") as caught:
        ODOMETRY.unpack(bytes(serialize_message(message)))
    assert caught.value.reason == "wrong_frame"


def test_big_endian_takes_the_slow_way():
    message = TWIST.message()
    message.twist.linear.x, message.header.stamp.sec = 1.5, 7
    little = bytes(serialize_message(message))
    big = bytearray(little)
    big[1] = 0
    for begin, width in ((4, 4), (8, 4), (12, 4), *((k, 8) for k in range(28, 76, 8))):
        big[begin : begin + width] = big[begin : begin + width][::-1]
    assert TWIST.unpack(bytes(big)) == TWIST.unpack(little) == (7 * SECOND, (1.5, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("value", [1, np.float32(1.5)])
def test_a_wrongly_typed_number_is_right_on_the_wire(value):
    assert TWIST.unpack(TWIST.pack(0, [value] * 6))[1] == (float(value),) * 6
    message = TWIST.message()
    fill_twist(message, [value] * 6)
    assert twist_numbers(message) == (float(value),) * 6


NODES = (
    "safe_policy_node.node",
    "backup_shield_node.node",
    "sim_bridge.node",
    "sim_bridge.hardware_node",
    "safe_rl_ros.recorder",
)


@pytest.mark.parametrize("module", NODES)
def test_a_wrongly_typed_number_is_loud_in_every_node(module):
    code = (
        f"import {module}, numpy\n"
        "from geometry_msgs.msg import Twist\n"
        "for value in (1, numpy.float32(1.5)):\n"
        "    try: Twist().linear.x = value\n"
        "    except AssertionError: continue\n"
        "    raise SystemExit(f'{value!r} was taken')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ROS_PYTHON_CHECK_FIELDS"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
