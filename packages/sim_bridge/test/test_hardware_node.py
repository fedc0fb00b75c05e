"""The bridge to a vehicle, as a process; the test is vehicle and shield."""

import math
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install the wheels or source a setup file")

from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from safe_rl_ros import qos
from safe_rl_ros.stamps import SECOND, to_ns
from safe_rl_ros.testing import Stack
from safe_rl_ros.wire import odometry_wire, twist_numbers, twist_wire

pytestmark = pytest.mark.ros

MODELS = Path(__file__).resolve().parents[3] / "models"
STOP = (0.0, 0.0, 9.81, 0.0, 0.0, 0.0)
COMMAND = [0.0, 0.0, 12.5, 0.1, -0.2, 0.3]
HOVER = [0.0, 0, 1.5, 0, 0, 0, 1, 0, 0, 0]


class Vehicle:
    """Odometry out, commands in, and the shield's topics on the other side of the bridge."""

    def __init__(self, stack, bundle, kind, shield_topic, **params):
        self.stack = stack
        self.odometry, self.twist = odometry_wire("odom", "base_link"), twist_wire("base_link")
        # A vehicle's estimator speaks best effort, and the bridge must hear it.
        self.estimate = stack.publisher(Odometry, "fcu/odom", qos.best_effort())
        self.states = stack.listen(Odometry, "odom")
        self.received = stack.listen(kind, "fcu/setpoint")
        self.shield = stack.publisher(TwistStamped, shield_topic)
        self.bridge = stack.start(
            "sim_bridge.hardware_node", bundle=MODELS / bundle, stop_duration=0.4,
            vehicle_odom_topic="fcu/odom", vehicle_command_topic="fcu/setpoint", **params,
        )  # fmt: skip
        stack.connected(self.estimate)
        stack.connected(self.shield)
        stack.until(lambda: stack.node.count_publishers("fcu/setpoint"))
        stack.spin(0.5)

    def state(self, stamp, numbers=HOVER):
        count, end = len(self.states), time.monotonic() + 10.0
        while len(self.states) == count:
            assert time.monotonic() < end, self.bridge.text
            self.estimate.publish(self.odometry.pack(stamp, numbers))  # best effort: again
            self.stack.spin(0.1)

    def command(self, stamp, numbers=COMMAND, wire=None):
        self.shield.publish((wire or self.twist).pack(stamp, numbers))

    def gets(self, count):
        self.stack.until(lambda: len(self.received) >= count, 5.0)
        return self.received[count - 1][1]


def test_state_up_command_down_and_the_gate_between():
    with Stack() as stack:
        vehicle = Vehicle(stack, "quadrotor_powerloop", TwistStamped, "cmd_ctbr")
        now = 1_700_000_000 * SECOND
        # No state yet, frame of another vehicle, too old, from the future, not a number: closed.
        vehicle.command(now)
        vehicle.bridge.says("command_without_state")
        vehicle.estimate.publish(odometry_wire("map", "base_link").pack(now, HOVER))
        vehicle.bridge.says("state_wrong_frame")
        vehicle.state(now)
        vehicle.command(now - 4 * 20_000_000)
        vehicle.bridge.says("command_old")
        vehicle.command(now + 20_000_000)
        vehicle.bridge.says("command_wrong_stamp")
        vehicle.command(now, [0, 0, math.nan, 0, 0, 0])
        vehicle.bridge.says("command_not_finite")
        vehicle.command(now, wire=twist_wire("base_link_frd"))
        vehicle.bridge.says("command_wrong_frame")
        stack.spin(0.2)
        assert not vehicle.received and "armed" not in vehicle.bridge.text
        # The state went up byte for byte; now the gate opens.
        assert to_ns(vehicle.states[0][1].header.stamp) == now
        vehicle.command(now)
        message = vehicle.gets(1)
        assert twist_numbers(message) == tuple(COMMAND) and to_ns(message.header.stamp) == now
        assert message.header.frame_id == "base_link"


def test_a_silent_shield_means_stop_then_silence_then_a_closed_gate():
    with Stack() as stack:
        vehicle = Vehicle(stack, "quadrotor_powerloop", TwistStamped, "cmd_ctbr")
        vehicle.state(SECOND)
        sent = time.monotonic()
        vehicle.command(SECOND)
        vehicle.gets(2)
        assert twist_numbers(vehicle.received[1][1]) == STOP
        # Three periods of 20 ms, one more until the timer sees it, and what the machine adds.
        assert 0.06 <= vehicle.received[1][0] - sent <= 0.16
        stack.spin(1.0)
        stops = [m for _, m in vehicle.received[1:]]
        assert all(twist_numbers(m) == STOP for m in stops)
        assert 15 <= len(stops) <= 22  # 0.4 s of them, then silence
        assert "disarmed" in vehicle.bridge.text
        # An old command does not open the gate again, a fresh one does.
        count = len(vehicle.received)
        vehicle.state(2 * SECOND)
        vehicle.command(SECOND)
        stack.spin(0.2)
        assert len(vehicle.received) == count
        vehicle.command(2 * SECOND)
        assert twist_numbers(vehicle.gets(count + 1)) == tuple(COMMAND)


def test_an_armed_vehicle_gets_its_stop_when_the_bridge_ends():
    with Stack() as stack:
        vehicle = Vehicle(stack, "quadrotor_powerloop", TwistStamped, "cmd_ctbr")
        vehicle.state(SECOND)
        vehicle.command(SECOND)
        vehicle.gets(1)
        assert vehicle.bridge.stop() == 0
        stack.spin(0.2)
        assert twist_numbers(vehicle.received[-1][1]) == STOP


def test_a_base_that_wants_plain_twists_stops_without_reversing():
    with Stack() as stack:
        vehicle = Vehicle(stack, "unicycle_lane", Twist, "cmd_vel", command_type="twist")
        rolling = [0.0, 0, 0, 0, 0, 0, 1, 3.0, 0, 0]
        vehicle.state(SECOND, rolling)
        vehicle.command(SECOND, [3.05, 9.0, 9.0, 9.0, 9.0, 0.2])
        first = vehicle.gets(1)
        assert (first.linear.x, first.linear.y, first.angular.z) == (3.05, 0.0, 0.2)
        stop = vehicle.gets(2)
        assert (stop.linear.x, stop.angular.z) == (pytest.approx(3.0 - 5.0 * 0.05), 0.0)
        vehicle.state(SECOND + 1, [0.0, 0, 0, 0, 0, 0, 1, 0.1, 0, 0])
        count = len(vehicle.received)
        assert vehicle.gets(count + 2).linear.x == 0.0
