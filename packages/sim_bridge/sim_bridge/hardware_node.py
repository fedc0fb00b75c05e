"""The bridge to a real vehicle: renames, checks and ages; it converts, it never decides.

    vehicle_odom_topic (Odometry)  ->  odom                        to the policy and the shield
    cmd_ctbr or cmd_vel            ->  vehicle_command_topic       TwistStamped or Twist

Frames: odometry in `odom_frame` of `base_frame`, else it is not passed on. REP-103 units and axes;
an autopilot that thinks in NED/FRD needs an adapter behind this bridge.

Arming gate: nothing goes to the vehicle until a shielded command arrives for a state that is at
most three periods old. Once armed, three periods without a usable command mean that the shield is
gone: the bundle's stop action goes out each period for `stop_duration` seconds, then nothing, and
the gate is closed until a fresh command opens it again. The end of the node does the same.

Parameters: bundle, odom_frame, base_frame, autostart, and
    vehicle_odom_topic     string, "vehicle/odom"
    vehicle_command_topic  string, "vehicle/cmd"
    command_type           "twist_stamped" or "twist"
    stop_duration          s, 1.0
"""

from __future__ import annotations

import math

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from safe_rl_core.errors import SafeRLError
from safe_rl_ros import diagnostics, qos, topics
from safe_rl_ros.convert import MessageFault, Numbers, codecs
from safe_rl_ros.node_base import StackNode, now_ns
from safe_rl_ros.process import run
from safe_rl_ros.stamps import SECOND

AGE_PERIODS = 3
COMMAND_TYPES = {"twist_stamped": TwistStamped, "twist": Twist}


class HardwareNode(StackNode):
    """Passes state up and shielded commands down; stops the vehicle when they cease."""

    def __init__(self) -> None:
        super().__init__("hardware")
        self.declare_parameter("vehicle_odom_topic", "vehicle/odom")
        self.declare_parameter("vehicle_command_topic", "vehicle/cmd")
        self.declare_parameter("command_type", "twist_stamped")
        self.declare_parameter("stop_duration", 1.0)

    def configure(self) -> None:
        """Check the parameters and build the messages."""
        bundle = self.bundle
        if self.lockstep:
            raise SafeRLError("a vehicle does not wait: set lockstep:=false for the hardware node")
        self._stamped = self.param("command_type") == "twist_stamped"
        if self.param("command_type") not in COMMAND_TYPES:
            raise SafeRLError(
                f"command_type must be one of {', '.join(COMMAND_TYPES)}, "
                f"got {self.param('command_type')!r}"
            )
        if not 0.0 <= self.param("stop_duration") < math.inf:
            raise SafeRLError(f"stop_duration must be >= 0 s, got {self.param('stop_duration')}")
        self._states, self._inputs = codecs(bundle)
        self._state_wire, self._command_wire = self.wires()
        self._out = Twist()
        self._topics = topics.commands_of(bundle.robot)
        self._state_out = self.publisher(Odometry, topics.STATE, qos.reliable())
        self._vehicle_out = self.publisher(
            COMMAND_TYPES[self.param("command_type")],
            self.param("vehicle_command_topic"),
            qos.command_offer(bundle.period, lockstep=False),
        )

    def activate(self) -> None:
        """Start with the gate closed."""
        self._x: np.ndarray | None = None
        self._state_stamp = self._command_stamp = -1
        self._command_ns = self._stop_until_ns = 0
        self.armed = False
        source, command = self.param("vehicle_odom_topic"), self._topics.command
        self.listen(Odometry, source, self._on_vehicle_state, qos.best_effort(), raw=True)
        self.listen(TwistStamped, command, self._on_command, qos.reliable(), raw=True)
        self.every(self.bundle.period, self._watch)

    def _on_vehicle_state(self, data: bytes) -> None:
        try:
            self._state_stamp, numbers = self._state_wire.unpack(data)
            self._x = self._states.state(numbers)
        except MessageFault as fault:
            self.count(f"state_{fault.reason}", str(fault))
            return
        self._state_out.publish(data)

    def _on_command(self, data: bytes) -> None:
        now = now_ns()
        try:
            stamp, numbers = self._command_wire.unpack(data)
            self._check(stamp, numbers)
        except MessageFault as fault:
            self.count(f"command_{fault.reason}", str(fault))
            return
        if not self.armed:
            self.armed = True
            self.get_logger().info("armed: a shielded command for a fresh state has arrived")
        self._command_ns, self._command_stamp = now, stamp
        self._send(stamp, self._inputs.own(numbers))

    def _check(self, stamp: int, numbers: Numbers) -> None:
        """Raise `MessageFault` for a command that the vehicle must not get."""
        if self._x is None:
            raise MessageFault("without_state", "no state has been passed on yet")
        behind = self._state_stamp - stamp
        # An armed bridge takes a whole backup plan from a shield that has lost its state.
        limit = AGE_PERIODS + (self.bundle.horizon if self.armed else 0)
        if behind < 0 or stamp < self._command_stamp:
            raise MessageFault("wrong_stamp", "made for a state that was not passed on here")
        if behind > limit * self.period_ns:
            raise MessageFault("old", f"made {behind / SECOND:.3f} s before the newest state")
        if not np.isfinite(self._inputs.input(numbers, self._x)).all():
            raise MessageFault("not_finite", "the shield sends numbers only: who sent this?")

    def _send(self, stamp_ns: int, numbers: Numbers) -> None:
        if self._stamped:
            self._vehicle_out.publish(self._command_wire.pack(stamp_ns, numbers))
        else:
            a, b = self._out.linear, self._out.angular
            a.x, a.y, a.z, b.x, b.y, b.z = numbers
            self._vehicle_out.publish(self._out)

    def _watch(self) -> None:
        """Ask once per period whether the shield has gone silent."""
        now = now_ns()
        if not self.armed or now - self._command_ns <= AGE_PERIODS * self.period_ns:
            self._stop_until_ns = 0
            return
        if not self._stop_until_ns:
            self._stop_until_ns = now + round(self.param("stop_duration") * SECOND)
            self.count("command_aged_out", "the shield is silent: stop action to the vehicle")
        if now < self._stop_until_ns:
            self._send_stop()
        else:
            self.armed, self._stop_until_ns = False, 0
            self.get_logger().error("disarmed: waiting for a fresh shielded command")

    def _send_stop(self) -> None:
        u = self._inputs.stop(self.bundle.stop_action, self._x)
        self._send(self.ros_ns(), self._inputs.numbers(u, self._x))

    def deactivate(self) -> None:
        """An armed vehicle gets its stop action before the bridge falls silent."""
        if self.armed:
            self._send_stop()
            self._vehicle_out.wait_for_all_acked(Duration(seconds=0.2))
            self.armed = False

    def health(self) -> tuple[bytes, str]:
        """ERROR while the vehicle is being stopped, WARN while the gate is closed."""
        if self._x is None:
            return diagnostics.STALE, f"no state on {self.param('vehicle_odom_topic')}"
        if self._stop_until_ns:
            return diagnostics.ERROR, "shield silent: stopping the vehicle"
        if not self.armed:
            return diagnostics.WARN, "not armed: no fresh shielded command"
        return diagnostics.OK, "armed"


def main() -> None:
    """Entry point of the executable `hardware`."""
    run(HardwareNode)


if __name__ == "__main__":
    main()
