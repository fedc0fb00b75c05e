"""The shield node: the only publisher that the vehicle listens to. It always answers.

Subscribes  odom (nav_msgs/Odometry), cmd_*_nominal (geometry_msgs/TwistStamped)
Publishes   cmd_ctbr or cmd_vel (TwistStamped), shield/status (one per answer), shield/markers,
            /diagnostics; with a robust bundle shield/certificate (UInt8MultiArray, one per answer)

Every message and a steady timer of a quarter control period ask the schedule (schedule.py, where
the rules stand) whether an answer is due. So a healthy chain is answered the moment the proposal
is in, whatever the phase between the processes, and a dead policy, a dead estimator or a silent
network is still answered once in each period, by the timer. Order of work per answer: command
out first, then record and premise test (evidence.py), status, markers; nothing is drawn between
two safety decisions.

States with a wrong frame, not-finite numbers, or a repeated, old or future stamp stop at the door
and are counted. A not-finite proposal goes to the shield, which refuses it by name. A PASSED
command carries the very numbers of the proposal.

`proposal_timeout` (s, lockstep only): how long the policy may take before it counts as dead.
`signing_key`: file with the Ed25519 seed that signs the record; "" draws one for this flight.
No parameter lets a proposal through unshielded.
"""

from __future__ import annotations

import math
import traceback

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from safe_rl_core.chain import Kind
from safe_rl_core.findings import Status
from safe_rl_core.robust_shield import make_shield
from safe_rl_core.shield import Reason, ShieldResult, Verdict
from safe_rl_ros import diagnostics, qos, topics
from safe_rl_ros.convert import MessageFault, codecs
from safe_rl_ros.node_base import StackNode, now_ns
from safe_rl_ros.process import run
from safe_rl_ros.stamps import SECOND, StampGate
from std_msgs.msg import UInt8MultiArray
from visualization_msgs.msg import MarkerArray

from backup_shield_node.evidence import Evidence, read_key
from backup_shield_node.markers import Markers
from backup_shield_node.schedule import CHECK, PATIENCE, Schedule, Tick
from backup_shield_node.status import STATUS_KEYS, VerdictLog, evidence_values, status_values

STALE_PERIODS = 3
MARKER_NS = SECOND // 10


class ShieldNode(StackNode):
    """Answers each control period with an action that has a way back."""

    def __init__(self) -> None:
        super().__init__("shield")
        self.declare_parameter("proposal_timeout", 2.0)
        self.declare_parameter("signing_key", "")

    def configure(self) -> None:
        """Load, compile and self-test the shield; build every message once."""
        bundle = self.bundle
        self._states, self._inputs = codecs(bundle)
        self._state_wire, self._command_wire = self.wires()
        self._shield = make_shield(bundle)
        self._key = read_key(self.param("signing_key"))
        k = bundle.program.functions["operating_state"].input_size("w")
        self._shield.step(bundle.program("operating_state", np.zeros(k)), None)  # warm caches
        self._model, self._stop = bundle.compiled, bundle.stop_action
        self._topics = topics.commands_of(bundle.robot)
        self._status = diagnostics.StatusMessage("shield: verdict", bundle.name, STATUS_KEYS)
        self._fixed = {"bundle_hash": bundle.hash, "certificate": bundle.certificate}
        self._markers = Markers(bundle, self.param("odom_frame"))
        offer = qos.command_offer(bundle.period, self.lockstep)
        self._command_out = self.publisher(TwistStamped, self._topics.command, offer)
        self._status_out = self.publisher(DiagnosticArray, topics.STATUS, qos.reliable())
        self._markers_out = self.publisher(MarkerArray, topics.MARKERS, qos.reliable())
        if bundle.robust is not None:
            depth = qos.reliable(qos.RECORDER_DEPTH)
            self._record_out = self.publisher(UInt8MultiArray, topics.RECORD, depth)

    def activate(self) -> None:
        """Start from nothing: no state, no proposal, no plan."""
        patience = PATIENCE * self.bundle.period
        if self.lockstep:
            patience = self.param("proposal_timeout")
        self._schedule = Schedule(self.period_ns, self.lockstep, round(patience * SECOND))
        self._gate = StampGate(STALE_PERIODS * self.period_ns)
        self._shield.reset()
        self._evidence = self._new_evidence()
        self._verdicts = VerdictLog()
        self._command: bytes | None = None
        self._state_ns = self._marker_stamp = 0
        self._latency_us = 0.0
        request = qos.state_request(self.lockstep)
        self.listen(Odometry, topics.STATE, self._on_state, request, raw=True)
        proposal = self._topics.proposal
        self.listen(TwistStamped, proposal, self._on_proposal, qos.reliable(), raw=True)
        self.every(CHECK * self.bundle.period, self._answer_if_due)

    def deactivate(self) -> None:
        """Close the record: what is not closed counts as cut off."""
        if self._evidence is not None:
            self._evidence.close()
            self._record_out.wait_for_all_acked(Duration(seconds=0.2))

    def _new_evidence(self) -> Evidence | None:
        """Record and premise monitor of this flight; a nominal bundle has neither."""
        if self.bundle.robust is None:
            return None
        publish = self._record_out.publish
        return Evidence(self.bundle, self._shield, publish, self.count, self._key)

    def _on_state(self, data: bytes) -> None:
        now = now_ns()
        try:
            stamp, numbers = self._state_wire.unpack(data)
            x = self._states.state(numbers)
        except MessageFault as fault:
            self.count(f"state_{fault.reason}", str(fault))
            return
        verdict = self._gate.check(stamp, now, None if self.lockstep else self.ros_ns())
        if verdict == "duplicate" and self.lockstep and self._command:
            self._command_out.publish(self._command)  # the simulation missed it and asks again
        elif verdict in ("ok", "restart"):
            if verdict == "restart":
                self.count("source_restarted", "stamps went back: the plan is void")
                self._schedule.reset()
                self._shield.reset()
            self._state_ns, self._command = now, None
            self._schedule.add_state(stamp, x, now)
            self._answer_if_due()
        else:
            self.count(
                f"state_{verdict}",
                f"stamp {stamp / SECOND:.3f} s, clocks must agree: "
                f"use_sim_time is {self.param('use_sim_time')} here",
            )

    def _on_proposal(self, data: bytes) -> None:
        try:
            self._schedule.add_proposal(*self._command_wire.unpack(data))
        except MessageFault as fault:
            self.count(f"proposal_{fault.reason}", str(fault))
            return
        self._answer_if_due()

    def _answer_if_due(self) -> None:
        now = now_ns()
        tick = self._schedule.due(now)
        if tick is None:
            return
        result = self._decide(tick)
        if result.verdict is Verdict.PASSED:
            numbers = self._inputs.own(tick.proposal)
        else:
            numbers = self._inputs.numbers(result.action, self._x)
        self._command = self._command_wire.pack(tick.stamp_ns, numbers)
        self._command_out.publish(self._command)
        self._latency_us = (now_ns() - tick.received_ns) * 1e-3 if tick.x is not None else math.nan
        self._tell(tick, result, (now - tick.received_ns) * 1e-6)

    def _decide(self, tick: Tick) -> ShieldResult:
        """The shield's answer; a fault inside it is answered by the plan it verified before."""
        if tick.x is None:
            self.count("state_missing", "no new state in this period: the verified plan goes on")
            self._x = self._model("step", self._x, self._action)  # where the model sees the robot
            return self._remember(self._shield.continue_plan(None))
        self._x, proposed = tick.x, None
        if tick.proposal is not None:
            proposed = self._inputs.input(tick.proposal, tick.x)
        decide = self._shield.step if self._evidence is None else self._evidence.decide
        try:
            return self._remember(decide(tick.x, proposed))
        except Exception:  # the vehicle needs an answer now, and the plan is still verified
            self.count("shield_error", traceback.format_exc())
            return self._remember(self._shield.continue_plan(tick.x))

    def _remember(self, result: ShieldResult) -> ShieldResult:
        if self._stops(result):
            result = self._shield.sent_instead(result, self._inputs.stop(self._stop, self._x))
        self._action = result.action
        return result

    def _stops(self, result: ShieldResult) -> bool:
        """Nothing is left but the stop action, which must not drive a vehicle backwards."""
        if result.decision is not None:
            return result.decision.kind is Kind.STOP
        return result.reason is Reason.STATE_UNKNOWN and (result.action == self._stop).all()

    def _tell(self, tick: Tick, result: ShieldResult, age_ms: float) -> None:
        """Record, status, log and markers: after the command, never before it."""
        evidence = self._evidence
        if evidence is not None:
            evidence.keep(tick.stamp_ns, result)
        verdict = result.verdict.value
        self.counts[verdict] += 1
        values = status_values(result, age_ms, self._latency_us) | self._fixed
        if evidence is not None:
            values |= evidence_values(evidence.sigma, evidence.premises)
        level = diagnostics.WARN if result.verdict is Verdict.BACKUP else diagnostics.OK
        self._status_out.publish(self._status.fill(tick.stamp_ns, level, values["reason"], values))
        line = self._verdicts.line(result, now_ns())
        if line:
            self.get_logger().info(line)
        due = abs(tick.stamp_ns - self._marker_stamp) >= MARKER_NS
        plan = result.plan_states
        if due and self._markers_out.get_subscription_count() and np.isfinite(plan).all():
            self._marker_stamp = tick.stamp_ns
            self._markers_out.publish(self._markers.fill(tick.stamp_ns, verdict, plan))

    def health(self) -> tuple[bytes, str]:
        """STALE without a state, ERROR for a second sender of commands, WARN for backup."""
        if not self._state_ns:
            return diagnostics.STALE, "no state yet: no command is sent, nothing moves"
        silent = now_ns() - self._state_ns
        if silent > max(STALE_PERIODS * self.period_ns, SECOND if self.lockstep else 0):
            return diagnostics.STALE, f"no state for {silent / SECOND:.2f} s: plan, then stop"
        if self.count_publishers(self._topics.command) > 1:
            return diagnostics.ERROR, f"a second node publishes {self._topics.command}; stop it"
        premises = self._evidence.premises if self._evidence is not None else None
        if premises is not None and premises.status is Status.BROKEN:
            return diagnostics.ERROR, premises.note
        if self.counts["shield_error"]:
            return diagnostics.ERROR, "the shield failed inside; see the log, do not fly"
        last = self._verdicts.last
        if last is not None and last.verdict is Verdict.BACKUP:
            return diagnostics.WARN, f"backup flies: {last.reason.value}"
        if premises is not None and premises.status is Status.WARN:
            return diagnostics.WARN, premises.note
        return diagnostics.OK, "answering"

    def details(self) -> dict[str, object]:
        """Which bundle, and the last latency from state to command."""
        return self._fixed | {"latency_us": round(self._latency_us, 1)}


def main() -> None:
    """Entry point of the executable `shield`."""
    run(ShieldNode)


if __name__ == "__main__":
    main()
