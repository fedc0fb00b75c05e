"""A vehicle that measures: publishes the state, takes the command, steps the model.

lockstep:=true   state k + 1 follows at once on the command for state k
lockstep:=false  a steady timer publishes a state `rate` times per second and applies the newest
                 command, as the simulation does in real time

Writes `output`: JSON with the round trips (state published to its command received) and the
lateness of the timer in µs, the states without an answer, and, where a real shield runs, its own
account of each answer (state received to command published), read from shield/status afterwards.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock as ClockMessage
from safe_rl_core.bundle import Bundle
from safe_rl_core.loop import ModelPlant, initial_state
from safe_rl_ros import qos, topics
from safe_rl_ros.convert import codecs
from safe_rl_ros.process import make_executor
from safe_rl_ros.stamps import SECOND, write_ns
from safe_rl_ros.wire import odometry_wire, twist_wire

PATIENCE_S = 20.0
RESEND_S = 0.5
#: Periods at the start that are not counted: caches, allocations, discovery.
WARM_UP = 100


class Probe(Node):
    """The measuring vehicle."""

    def __init__(self) -> None:
        super().__init__("sim")
        for name, value in {
            "bundle": "", "output": "", "periods": 1000, "rate": 100.0, "lockstep": True,
            "listeners": 2, "plant": True,
        }.items():  # fmt: skip
            self.declare_parameter(name, value)
        bundle = Bundle.load(self._value("bundle"))
        self._names = topics.commands_of(bundle.robot)
        self._states, self._inputs = codecs(bundle)
        self._state_wire = odometry_wire(topics.ODOM_FRAME, topics.BASE_FRAME)
        self._command_wire = twist_wire(topics.BASE_FRAME)
        self._plant = ModelPlant(bundle)
        self._x = self._plant.reset(0, initial_state(bundle, np.random.default_rng(0)))
        self._period_ns = round(bundle.period * SECOND)
        self._stop = bundle.stop_action
        self._lockstep, self._moves = self._value("lockstep"), self._value("plant")
        self._periods = self._value("periods") + WARM_UP
        self._sent = np.zeros(self._periods)
        self._answered = np.full(self._periods, np.nan)
        self._late: list[float] = []
        self._status: list[bytes] = []
        self._step, self._command, self.over, self._started_at = -1, None, False, 0.0
        self._publish_first()

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _publish_first(self) -> None:
        self._state_out = self.create_publisher(Odometry, topics.STATE, qos.reliable())
        self._truth_out = self.create_publisher(Odometry, topics.TRUE_STATE, qos.reliable())
        self._clock_out = self.create_publisher(ClockMessage, topics.CLOCK, qos.reliable())
        self._clock = ClockMessage()
        self.create_subscription(
            TwistStamped, self._names.command, self._on_command, qos.reliable(), raw=True
        )
        self.create_subscription(
            DiagnosticArray, topics.STATUS, self._status.append, qos.reliable(1000), raw=True
        )
        self._deadline = time.monotonic() + PATIENCE_S
        self._watch = self.create_timer(0.2, self._on_watch, clock=self._steady())

    def _steady(self) -> Clock:
        return Clock(clock_type=ClockType.STEADY_TIME)

    def _on_watch(self) -> None:
        now = time.monotonic()
        if self._step < 0:
            if self._state_out.get_subscription_count() >= self._value("listeners"):
                self._start()
            elif now > self._deadline:
                raise SystemExit("the other nodes did not come")
        elif self._lockstep and not self.over and now - self._sent[self._step] > RESEND_S:
            self._publish()

    def _start(self) -> None:
        self._started_at = time.monotonic()
        if not self._lockstep:
            self._interval = 1.0 / self._value("rate")
            self._due = self._started_at + self._interval
            self.create_timer(self._interval, self._on_tick, clock=self._steady())
        self._advance()

    def _advance(self) -> None:
        """The next state, if there is one to come."""
        self._step += 1
        if self._step == self._periods:
            self.over = True
            return
        if self._step and self._moves:
            u = self._stop if self._command is None else self._inputs.input(self._command, self._x)
            self._x = self._plant.step(u)
        self._publish()

    def _publish(self) -> None:
        stamp = self._step * self._period_ns
        data = self._state_wire.pack(stamp, self._states.numbers(self._x))
        self._sent[self._step] = time.monotonic()
        self._state_out.publish(data)
        if self._moves:
            self._truth_out.publish(data)
        if not self._lockstep:
            write_ns(stamp, self._clock.clock)
            self._clock_out.publish(self._clock)

    def _on_tick(self) -> None:
        late = time.monotonic() - self._due
        self._late.append(1e6 * late)
        # A timer that is later than its interval leaves out what it has missed.
        self._due += self._interval * (1 + max(0, int(late / self._interval)))
        if not self.over:
            self._advance()

    def _on_command(self, data: bytes) -> None:
        now = time.monotonic()
        stamp, self._command = self._command_wire.unpack(data)
        k = stamp // self._period_ns
        if np.isnan(self._answered[k]):
            self._answered[k] = now
        if self._lockstep and k == self._step and not self.over:
            self._advance()

    def write(self) -> None:
        """The result of the run."""
        trips = 1e6 * (self._answered - self._sent)[WARM_UP:]
        latency = [self._latency(data) for data in self._status]
        wall = self._answered[-1] - self._sent[WARM_UP]
        result = {
            "steps_per_s": len(trips) / wall if np.isfinite(wall) else float("nan"),
            "round_trip_us": trips[np.isfinite(trips)].tolist(),
            "unanswered": int(np.isnan(trips).sum()),
            "timer_late_us": self._late[WARM_UP:],
            "shield_latency_us": [us for us in latency[WARM_UP:] if us is not None],
        }
        Path(self._value("output")).write_text(json.dumps(result))

    @staticmethod
    def _latency(data: bytes) -> float | None:
        values = {
            v.key: v.value for v in deserialize_message(data, DiagnosticArray).status[0].values
        }
        latency = float(values.get("latency_us", "nan"))
        return latency if np.isfinite(latency) else None


def main() -> int:
    """Run to the end of the periods."""
    rclpy.init()
    probe = Probe()
    executor = make_executor()
    executor.add_node(probe)
    linger = None
    while rclpy.ok():
        executor.spin_once(timeout_sec=0.05)
        if probe.over and linger is None:
            linger = time.monotonic() + 0.3  # the last answer and its status are still under way
        if linger is not None and time.monotonic() > linger:
            break
    probe.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
