"""A policy or a shield that computes nothing: what remains is the cost of the ROS chain.

    python -m chain.echo --ros-args -r __node:=policy     answers each state with a command
    python -m chain.echo --ros-args -r __node:=shield     passes each such command on

Topics, message types, quality of service, executor and handling of bytes are those of the nodes.
"""

from __future__ import annotations

import signal
import sys

import rclpy
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from safe_rl_ros import qos, topics
from safe_rl_ros.convert import ZERO_TWIST
from safe_rl_ros.process import make_executor
from safe_rl_ros.wire import odometry_wire, twist_wire

NAMES = topics.commands_of("quadrotor")


class Echo(Node):
    """Answers a state (as policy) or a proposal (as shield) with the same stamp."""

    def __init__(self) -> None:
        super().__init__("policy")
        states, commands = (
            odometry_wire(topics.ODOM_FRAME, topics.BASE_FRAME),
            twist_wire(topics.BASE_FRAME),
        )
        shield = self.get_name() == "shield"
        out = self.create_publisher(
            TwistStamped, NAMES.command if shield else NAMES.proposal, qos.reliable()
        )

        def propose(data: bytes) -> None:
            out.publish(commands.pack(states.unpack(data)[0], ZERO_TWIST))

        def forward(data: bytes) -> None:
            stamp, numbers = commands.unpack(data)
            out.publish(commands.pack(stamp, numbers))

        def receive(data: bytes) -> None:
            states.unpack(data)

        on_state = receive if shield else propose
        self.create_subscription(Odometry, topics.STATE, on_state, qos.reliable(), raw=True)
        if shield:
            self.create_subscription(
                TwistStamped, NAMES.proposal, forward, qos.reliable(), raw=True
            )


def main() -> int:
    """Run until a signal comes."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    rclpy.init()
    executor = make_executor()
    executor.add_node(Echo())
    try:
        while True:
            executor.spin_once(timeout_sec=0.1)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
