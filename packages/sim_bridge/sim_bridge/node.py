"""The simulation node: a plant in the place of the vehicle.

Publishes   odom (nav_msgs/Odometry, measured), ground_truth/odom (true), /clock, /diagnostics
Subscribes  cmd_ctbr or cmd_vel (geometry_msgs/TwistStamped), the shield's output only

Stamps are simulated time: state k carries k * period, the task starts at stamp 0.

lockstep:=true   publishes state k, waits for the command with that very stamp, steps, and so on;
                 as fast as the machine goes, or paced with realtime:=true. A state without an
                 answer is sent again after 0.5 s. The result does not depend on the load.
lockstep:=false  a steady timer steps the plant with the newest command, whatever happens. A
                 command that is not renewed for 3 periods, or that was made for a state older
                 than a whole backup plan, ages out: the plant gets the bundle's stop action.
                 After the last lap the shield is deactivated before it misses a state, as an
                 operator does it before he switches the estimator off; that closes the record.

Nothing starts before the nodes in `wait_for` listen, and in real time nothing moves before the
first command. Ends after `laps` with 0, with 1 after a violation (a safe-set row of the bundle
negative on a true state), with 3 when the run could not be completed: nodes missing or no command
for `wait_limit` seconds.
"""

from __future__ import annotations

import math

import numpy as np
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from safe_rl_core.errors import PlantError
from safe_rl_core.loop import initial_state
from safe_rl_ros import diagnostics, qos, topics
from safe_rl_ros.convert import MessageFault, Numbers, codecs
from safe_rl_ros.node_base import StackNode, now_ns
from safe_rl_ros.process import run
from safe_rl_ros.stamps import SECOND, write_ns

from sim_bridge.flight import INCOMPLETE, Flight
from sim_bridge.simulated import make

RESEND_NS = SECOND // 2
AGE_PERIODS = 3
CLOCK_NS = SECOND // 50


class SimNode(StackNode):
    """Steps a plant with the shield's commands."""

    interrupted_code = INCOMPLETE

    def __init__(self) -> None:
        super().__init__("sim")
        self.declare_parameter("plant", "bullet")
        self.declare_parameter("seed", 0)
        self.declare_parameter("laps", 0)
        self.declare_parameter("realtime", False)
        self.declare_parameter("real_time_factor", 1.0)
        self.declare_parameter("gui", False)
        self.declare_parameter("noise", 0.0)
        self.declare_parameter("delay_steps", 0)
        self.declare_parameter("adversary", "corner")
        self.declare_parameter("exit_when_done", True)
        self.declare_parameter("wait_for", ["policy", "shield"])
        self.declare_parameter("wait_limit", 10.0)

    def configure(self) -> None:
        """Build the plant and the messages."""
        bundle = self.bundle
        names = ("seed", "gui", "noise", "delay_steps", "adversary")
        options = {name: self.param(name) for name in names}
        self._plant = make(bundle, self.param("plant"), **options)
        factor = self.param("real_time_factor")
        if not 0.0 < factor < math.inf:
            raise PlantError(f"real_time_factor must be > 0, got {factor}; 1.0 is real time")
        self._tick_s = bundle.period / factor
        self._states, self._inputs = codecs(bundle)
        self._state_wire, self._command_wire = self.wires()
        self._clock = Clock()
        self._topics = topics.commands_of(bundle.robot)
        self._odom_out = self.publisher(Odometry, topics.STATE, qos.reliable())
        self._truth_out = self.publisher(Odometry, topics.TRUE_STATE, qos.reliable())
        self._clock_out = self.publisher(Clock, topics.CLOCK, qos.reliable())
        self._shield = self.create_client(ChangeState, "shield/change_state")

    def activate(self) -> None:
        """Put the plant at its start and wait for the others."""
        seed = self.param("seed")
        start = initial_state(self.bundle, np.random.default_rng(seed))
        self._x = self._plant.reset(seed, start)
        self._flight = Flight(self.bundle, self.param("laps"))
        self._flight.add(self._plant.state)
        self._command: tuple[int, Numbers] | None = None  # stamp, numbers
        self._command_ns = self._sent_ns = self._clock_ns = self._tick_ns = 0
        self._command_step = 0
        self._started = self._over = False
        self._landing: Future | None = None
        self._since_ns = now_ns()
        command = self._topics.command
        self.listen(TwistStamped, command, self._on_command, qos.reliable(), raw=True)
        self.every(0.05, self._watch)
        self._paced = self.param("realtime") or not self.lockstep
        if self._paced:
            self.every(self._tick_s, self._on_tick)

    def ros_ns(self) -> int:
        """Simulated time: this node is the clock."""
        return self._flight.step * self.period_ns if self.active else 0

    # ---- start

    def _missing(self) -> str:
        """What is not there yet, in words; empty when the run can start."""
        state = self.resolve_topic_name(topics.STATE)
        listeners = {end.node_name for end in self.get_subscriptions_info_by_topic(state)}
        absent = [name for name in self.param("wait_for") if name not in listeners]
        if absent:
            return f"{', '.join(absent)} not listening to {state}"
        if self._odom_out.get_subscription_count() < len(self.param("wait_for")):
            return f"not every listener of {state} is connected"
        if not self.count_publishers(self._topics.command):
            return f"nobody publishes {self.resolve_topic_name(self._topics.command)}"
        return ""

    def _watch(self) -> None:
        """Start when everybody is there; send a state again; give up when nobody answers."""
        now = now_ns()
        waited = (now - max(self._since_ns, self._command_ns)) / SECOND
        given_up = waited > self.param("wait_limit")
        if self._over:
            return
        if not self._started:
            missing = self._missing()
            if missing and given_up:
                self._end(
                    f"gave up after {waited:.0f} s: {missing}; start these nodes, with the same "
                    f"ROS_DOMAIN_ID, or shorten wait_for"
                )
            if missing:
                return
            self._started, self._since_ns = True, now
            self.diagnose()
            self._publish_state()
        elif given_up:
            self._end(
                f"no command on {self._topics.command} for {waited:.0f} s; is the shield active? "
                f"see shield/status and /diagnostics"
            )
        elif now - self._sent_ns > RESEND_NS and (self.lockstep or self._command is None):
            self.count("state_resent", "no command for it yet")
            self._publish_state()

    # ---- the loop

    def _publish_state(self) -> None:
        """State first: the others can work while the rest is written."""
        stamp, now = self._flight.step * self.period_ns, now_ns()
        pack = self._state_wire.pack
        self._odom_out.publish(pack(stamp, self._states.numbers(self._x)))
        self._truth_out.publish(pack(stamp, self._states.numbers(self._plant.state)))
        # Faster than real time, a clock message per period would cost the others more than the
        # state itself, and who works in lockstep takes the time from the state.
        if self._paced or now - self._clock_ns > CLOCK_NS or self._flight.done:
            write_ns(stamp, self._clock.clock)
            self._clock_out.publish(self._clock)
            self._clock_ns = now
        self._sent_ns = now

    def _on_command(self, data: bytes) -> None:
        if self._over:
            return
        try:
            stamp, numbers = self._command_wire.unpack(data)
        except MessageFault as fault:
            self.count(f"command_{fault.reason}", str(fault))
            return
        behind = self._flight.step * self.period_ns - stamp
        if behind < 0 or (self.lockstep and behind > 0):
            self.count("command_wrong_stamp", f"made {behind / SECOND:.3f} s before this state")
        elif behind > (AGE_PERIODS + self.bundle.horizon) * self.period_ns:
            self.count("command_older_than_plan", f"made {behind / SECOND:.3f} s ago")
        else:
            self._command, self._command_ns = (stamp, numbers), now_ns()
            self._command_step = self._flight.step
            if not self._paced:
                self._advance(self._input(numbers))
            elif self._flight.done and not self.lockstep:
                self._land()  # the last state is answered

    def _on_tick(self) -> None:
        if not self._started or self._command is None or self._over:
            return
        now, (stamp, numbers) = now_ns(), self._command
        if now - self._tick_ns < 0.5e9 * self._tick_s:
            return  # a burst after a pause of this process: the vehicle paused as well
        self._tick_ns = now
        if self._flight.done:
            if self._land():
                self._end("")
        elif self.lockstep:
            if stamp == self._flight.step * self.period_ns:
                self._advance(self._input(numbers))
        elif self._flight.step - self._command_step > AGE_PERIODS:
            self.count("command_aged_out", "stop action instead: the shield is silent")
            self._advance(self._stop_action())
        else:
            self._advance(self._input(numbers))

    def _input(self, numbers: Numbers) -> NDArray[np.float64]:
        """Input (m,) of a command; the stop action for one that is not a number."""
        u = self._inputs.input(numbers, self._x)
        if np.isfinite(u).all():
            return u
        self.count("command_not_finite", "stop action instead")
        return self._stop_action()

    def _stop_action(self) -> NDArray[np.float64]:
        return self._inputs.stop(self.bundle.stop_action, self._x)

    def _advance(self, u: NDArray[np.float64]) -> None:
        """One control period of the plant."""
        self._x = self._plant.step(u)
        line = self._flight.add(self._plant.state)
        if line:
            print(line, flush=True)
        self._publish_state()
        if self._flight.done and self.lockstep:
            self._end("")

    # ---- the end

    def _land(self) -> bool:
        """Have the shield deactivated; True when it is, or when it does not answer."""
        if self._landing is None:
            if not self._shield.service_is_ready():
                return True
            request = ChangeState.Request()
            request.transition.id = Transition.TRANSITION_DEACTIVATE
            self._landing = self._shield.call_async(request)
            self._land_by = now_ns() + SECOND
        return self._landing.done() or now_ns() > self._land_by

    def _end(self, problem: str) -> None:
        """Say how it went and, when asked to, end the process."""
        self._over = True
        code = self._flight.exit_code()
        if problem:
            self.get_logger().error(problem)
        words = {0: "completed, no violation", 1: "VIOLATED", INCOMPLETE: "not completed"}
        wall = (now_ns() - self._since_ns) / SECOND
        print(
            f"{self.bundle.name}: {words[code]}; worst margin {self._flight.worst:+.3f} "
            f"({self._flight.worst_row}); {self._flight.step} periods in {wall:.2f} s; "
            f"{dict(self.counts) or 'nothing odd'}",
            flush=True,
        )
        self.diagnose()
        for out in (self._odom_out, self._truth_out, self._clock_out):
            out.wait_for_all_acked(Duration(seconds=0.5))
        if problem or self.param("exit_when_done"):
            self.exit_code = code

    def health(self) -> tuple[bytes, str]:
        """STALE until the others are there."""
        if not self._started:
            return diagnostics.STALE, f"waiting: {self._missing() or 'nothing'}"
        if self.counts["command_aged_out"]:
            return diagnostics.ERROR, "commands aged out: the shield was silent"
        return diagnostics.OK, f"period {self._flight.step} of {self._flight.steps}"

    def details(self) -> dict[str, object]:
        """What is being simulated, how far it is, and the worst margin up to the last lap."""
        return {
            **{name: self.param(name) for name in ("plant", "seed", "noise", "delay_steps")},
            "laps": self._flight.laps,
            "t": self._flight.step * self.bundle.period,
            "worst_margin": self._flight.worst,
        }


def main() -> None:
    """Entry point of the executable `sim`."""
    run(SimNode)


if __name__ == "__main__":
    main()
