"""The policy node: one state in, one proposed action out.

Subscribes  odom (nav_msgs/Odometry)
Publishes   cmd_ctbr_nominal or cmd_vel_nominal (geometry_msgs/TwistStamped), /diagnostics

The proposal carries the stamp of the state it was computed from; that is how the shield knows its
age and pairs the two. The node knows no robot: observation, reference and network come from the
bundle. It clips nothing and guarantees nothing: that is the shield's work.

Task time is the state's stamp minus the start of the task, which is stamp 0 in simulation. With
`start_at_first_state:=true` (a vehicle, whose stamps are wall time) it is the first state's stamp.
"""

from __future__ import annotations

import math

from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from safe_rl_core.policy import Policy
from safe_rl_ros import diagnostics, qos, topics
from safe_rl_ros.convert import MessageFault, codecs
from safe_rl_ros.node_base import StackNode, now_ns
from safe_rl_ros.process import run
from safe_rl_ros.stamps import SECOND, StampGate


class PolicyNode(StackNode):
    """Proposes an action for each state."""

    def __init__(self) -> None:
        super().__init__("policy")
        self.declare_parameter("start_at_first_state", False)

    def configure(self) -> None:
        """Load the network and run it once, so that the first flown call is not the slow one."""
        bundle = self.bundle
        self._states, self._inputs = codecs(bundle)
        self._state_wire, self._command_wire = self.wires()
        self._policy = Policy(bundle)
        k = bundle.program.functions["operating_state"].input_size("w")
        self._policy.act(bundle.program("operating_state", [0.0] * k), 0.0)
        self._publisher = self.publisher(
            TwistStamped,
            topics.commands_of(bundle.robot).proposal,
            qos.command_offer(bundle.period, self.lockstep),
        )
        self._forget()

    def activate(self) -> None:
        """Listen to the state."""
        request = qos.state_request(self.lockstep)
        self.listen(Odometry, topics.STATE, self._on_state, request, raw=True)

    def deactivate(self) -> None:
        """The next activation starts without a past."""
        self._forget()

    def _forget(self) -> None:
        self._gate = StampGate(3 * self.period_ns)
        self._start_ns: int | None = None if self.param("start_at_first_state") else 0
        self._last_ns = 0
        self._act_us = 0.0

    def _on_state(self, data: bytes) -> None:
        received = now_ns()
        try:
            stamp, numbers = self._state_wire.unpack(data)
            x = self._states.state(numbers)
        except MessageFault as fault:
            self.count(f"state_{fault.reason}", str(fault))
            return
        verdict = self._gate.check(stamp, received, None if self.lockstep else self.ros_ns())
        # A repeated state gets its answer again: in lockstep the first one may have been lost.
        if verdict not in ("ok", "restart") and not (self.lockstep and verdict == "duplicate"):
            self.count(f"state_{verdict}", f"state stamped {stamp / SECOND:.3f} s ignored")
            return
        if self._start_ns is None or (verdict == "restart" and self._start_ns):
            self._start_ns = stamp
        u = self._policy.act(x, (stamp - self._start_ns) / SECOND)
        self._publisher.publish(self._command_wire.pack(stamp, self._inputs.numbers(u, x)))
        self._last_ns = now_ns()
        self._act_us = (self._last_ns - received) * 1e-3
        self.counts["proposals"] += 1
        if not all(map(math.isfinite, u)):
            self.count("proposal_not_finite", f"the network answered {u} to state {x}")

    def health(self) -> tuple[bytes, str]:
        """STALE when no state comes: then there is nothing to propose for."""
        if not self._last_ns:
            return diagnostics.STALE, f"no state yet on {self.resolve_topic_name(topics.STATE)}"
        silent = now_ns() - self._last_ns
        if silent > max(3 * self.period_ns, SECOND):
            return diagnostics.STALE, f"no usable state for {silent / SECOND:.1f} s"
        return diagnostics.OK, f"proposing for {self.bundle.task.name}"

    def details(self) -> dict[str, object]:
        """Time from message to proposal, and which network speaks."""
        return {"bundle_hash": self.bundle.hash, "act_us": round(self._act_us, 1)}


def main() -> None:
    """Entry point of the executable `policy`."""
    run(PolicyNode)


if __name__ == "__main__":
    main()
