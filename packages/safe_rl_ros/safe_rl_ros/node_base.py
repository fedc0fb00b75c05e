"""What the nodes of the stack share: lifecycle, parameters, diagnostics.

A node checks everything it was given in `on_configure`: a bad bundle or parameter leaves it
unconfigured with the reason in the log. It listens and speaks only while active. `autostart:=true`
makes it configure and activate itself, and end with exit code 1 if it cannot.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import SafeRLError

from safe_rl_ros import diagnostics, qos, topics
from safe_rl_ros.stamps import SECOND
from safe_rl_ros.wire import Wire, odometry_wire, twist_wire

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class StackNode(LifecycleNode):
    """A lifecycle node with a bundle. Subclasses fill in configure, activate, deactivate, health.

    `configure` raises `SafeRLError` for anything it was given that cannot work.
    """

    #: Exit code when a signal ends the node.
    interrupted_code = 0
    #: Seconds to go on listening after that signal.
    linger_s = 0.0

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.declare_parameter("autostart", False)
        self.declare_parameter("bundle", "")
        self.declare_parameter("robot", "")
        self.declare_parameter("lockstep", False)
        self.declare_parameter("odom_frame", topics.ODOM_FRAME)
        self.declare_parameter("base_frame", topics.BASE_FRAME)
        self.exit_code: int | None = None
        self.counts: Counter[str] = Counter()
        self.steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.active = False
        #: True: the simulation waits for each command, and the state's stamp is the clock.
        self.lockstep = False
        #: Control period of the bundle.
        self.period_ns = 0
        self._closers: list[Callable[[], object]] = []
        self._qos_error = ""
        self._diagnostics = self.create_publisher(
            DiagnosticArray, topics.DIAGNOSTICS, qos.reliable()
        )
        self.create_timer(1.0, self.diagnose, clock=self.steady)

    # ---- for subclasses to fill in

    def configure(self) -> None:
        """Load and check everything; create publishers."""

    def activate(self) -> None:
        """Create subscriptions and timers."""

    def deactivate(self) -> None:
        """Forget what a later activation must not know. Subscriptions and timers are gone."""

    def health(self) -> tuple[bytes, str]:
        """Diagnostic level and one sentence for `/diagnostics`."""
        return diagnostics.OK, "active"

    def details(self) -> dict[str, object]:
        """Further values for `/diagnostics`, beside the counters."""
        return {}

    # ---- for subclasses to use

    def param(self, name: str) -> Any:
        """Value of a declared parameter."""
        return self.get_parameter(name).value

    def wires(self) -> tuple[Wire, Wire]:
        """State and command messages as bytes, in this node's frames."""
        frame, child = self.param("odom_frame"), self.param("base_frame")
        return odometry_wire(frame, child), twist_wire(child)

    def ros_ns(self) -> int:
        """ROS time, ns (simulated time under use_sim_time)."""
        return self.get_clock().now().nanoseconds

    def publisher(self, kind: type, topic: str, profile: QoSProfile) -> Any:
        """A lifecycle publisher that reports incompatible subscribers."""
        events = PublisherEventCallbacks(
            incompatible_qos=lambda info: self._on_mismatch(topic, info, profile, True)
        )
        return self.create_lifecycle_publisher(kind, topic, profile, event_callbacks=events)

    def listen(
        self,
        kind: type,
        topic: str,
        callback: Callable[..., None],
        profile: QoSProfile,
        **how: Any,
    ) -> Any:
        """A subscription that lives until deactivation and reports incompatible publishers."""
        events = SubscriptionEventCallbacks(
            incompatible_qos=lambda info: self._on_mismatch(topic, info, profile, False),
            message_lost=how.pop("message_lost", None),
        )
        handle = self.create_subscription(
            kind, topic, callback, profile, event_callbacks=events, **how
        )
        self._closers.append(lambda: self.destroy_subscription(handle))
        return handle

    def every(self, period: float, callback: Callable[[], None]) -> None:
        """A timer on the steady clock that lives until deactivation."""
        timer = self.create_timer(period, callback, clock=self.steady)
        self._closers.append(lambda: self.destroy_timer(timer))

    def count(self, what: str, text: str) -> None:
        """Count an oddity; say it in the log the first, tenth, hundredth … time."""
        self.counts[what] += 1
        times = str(self.counts[what])
        if times.strip("0") == "1":
            self.get_logger().warning(f"{what} ({times}x): {text}")

    # ---- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle, then the subclass's own; FAILURE with the reason in the log."""
        try:
            self.bundle = Bundle.load(self._bundle_name())
            self._check_robot()
            self.lockstep = self.param("lockstep")
            self.period_ns = round(self.bundle.period * SECOND)
            self.configure()
        except Exception as error:  # rclpy would swallow it without a word
            self.get_logger().error(f"not configured: {_reason(error)}")
            self._drop_publishers()
            return FAILURE
        # What lives now lives as long as the node: the collector need not walk it in flight.
        gc.collect()
        gc.freeze()
        return super().on_configure(state)

    def _bundle_name(self) -> str:
        name = self.param("bundle")
        if not name:
            raise SafeRLError(
                "parameter bundle is empty: expected the name or the folder of a bundle; "
                "pass -p bundle:=quadrotor_powerloop"
            )
        return name

    def _check_robot(self) -> None:
        """`robot`, where it is given, says what this stack is wired for."""
        wanted = self.param("robot")
        if wanted and wanted != self.bundle.robot:
            raise SafeRLError(
                f"this stack is wired for robot '{wanted}', bundle {self.bundle.name} is for "
                f"'{self.bundle.robot}'; name a bundle of a {wanted}"
            )

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start listening and speaking; FAILURE with the reason in the log."""
        result = super().on_activate(state)
        self.active = True
        try:
            self.activate()
        except Exception as error:  # rclpy would swallow it without a word
            self.get_logger().error(f"not active: {_reason(error)}")
            self.active = False
            self._close_all()
            super().on_deactivate(state)
            return FAILURE
        self.get_logger().info(
            f"active with {self.bundle.name} ({self.bundle.hash[:12]}), "
            f"{'lockstep' if self.lockstep else 'real time'}"
        )
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening and speaking."""
        self._go_silent()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to the state before configure."""
        self._drop_publishers()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop for good; ends the process."""
        self._go_silent()
        self._drop_publishers()
        self.exit_code = self.exit_code if self.exit_code is not None else self.interrupted_code
        return SUCCESS

    def close(self) -> None:
        """Last call before the process ends, whatever ended it."""
        self._go_silent()

    def _go_silent(self) -> None:
        if not self.active:
            return
        self.active = False
        self._close_all()
        self.deactivate()

    def _close_all(self) -> None:
        for closer in self._closers:
            closer()
        self._closers.clear()

    def _drop_publishers(self) -> None:
        for entity in list(self._managed_entities):
            self.destroy_lifecycle_publisher(entity)

    # ---- diagnostics

    def _on_mismatch(self, topic: str, info: Any, profile: QoSProfile, publishing: bool) -> None:
        ends = self.get_publishers_info_by_topic
        if publishing:
            ends = self.get_subscriptions_info_by_topic
        others = [
            f"{end.node_name} ({end.qos_profile.reliability.name}, "
            f"{end.qos_profile.durability.name})"
            for end in ends(self.resolve_topic_name(topic))
        ]
        self._qos_error = qos.mismatch(topic, info.last_policy_kind, profile, others)
        self.get_logger().error(self._qos_error)

    def diagnose(self) -> None:
        """Publish the state of this node on `/diagnostics`; a timer does it once a second."""
        if self._qos_error:
            level, text = diagnostics.ERROR, self._qos_error
        elif self.active:
            level, text = self.health()
        else:
            level, text = diagnostics.WARN, "not active: waits for configure and activate"
        values = {**self.details(), **self.counts} if self.active else dict(self.counts)
        name = f"{self.get_name()}: stack"
        self._diagnostics.publish(diagnostics.report(name, self.ros_ns(), level, text, values))


def _reason(error: Exception) -> str:
    """The message of an error made for people; the traceback of any other."""
    if isinstance(error, (SafeRLError, ParameterException, OSError)):
        return str(error)
    return "".join(traceback.format_exception(error))


def now_ns() -> int:
    """The machine's steady clock, ns."""
    return time.monotonic_ns()
