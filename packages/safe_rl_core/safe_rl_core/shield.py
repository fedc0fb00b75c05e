"""The shield: every control period, one action that keeps a way back to the base set.

Notation (see kernel/rollout.c): u_b = pi_b(x) is the backup action, and the plan of an action u is
u followed by N periods of the backup policy from F(x, u). A plan is *verified* when every node of
it keeps every safe row's margin and its last node lies in the base set.

An action takes effect `delay_steps` periods after the state it was computed from, so the state is
first moved by the actions that are still pending (`predict`); x below is that predicted state.

Guarantee (nominal): if the plant is exactly x⁺ = F(x, u) with that delay, the state is known
exactly, the base set is invariant under the base controller, and the first predicted state has a
verified backup plan, then every action that `step` returns leads to a state that again has one,
whatever is proposed and whatever the solver answers; so from then on the sampled states never
leave the safe set. Nothing is claimed between the samples, nor under disturbance or model error:
there the margins in the bundle are empirical.

Why: the returned action is one whose own plan was verified. One step later that plan, continued by
the base controller, is the backup plan of the new state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel import Rollout, Rows
from safe_rl_core.projection import TOLERANCE, Projection

Array = NDArray[np.float64]

#: Shares of the way from the backup action to the candidate that are tried in turn.
BLENDS = (0.75, 0.5, 0.25)
#: A verified plan may miss a margin by rounding only; bundle.NUMERICAL_MARGIN is 1000 times that.
ROUNDING = 1e-9


class Verdict(str, Enum):
    """What became of the proposal."""

    PASSED = "PASSED"
    PROJECTED = "PROJECTED"
    BACKUP = "BACKUP"


class Reason(str, Enum):
    """Why: a stable code for logs and diagnostics."""

    PROPOSAL_SAFE = "proposal_safe"
    PROJECTED = "projected"
    BLENDED = "blended"
    NO_PROPOSAL = "no_proposal"
    PROPOSAL_NOT_FINITE = "proposal_not_finite"
    QP_INFEASIBLE = "qp_infeasible"
    NOT_VERIFIED = "not_verified"
    OUTSIDE_IMPLICIT_SET = "outside_implicit_set"
    PLAN_CONTINUED = "plan_continued"
    STATE_NOT_FINITE = "state_not_finite"
    STATE_UNKNOWN = "state_unknown"


@dataclass(frozen=True)
class ShieldResult:
    """One answer of the shield.

    `action` (m,) SI units. `margin`: the smallest h - margin over the verified plan (negative: the
    plan is not verified; nan: no state), reached at `critical_row` ("<row>@<node>").
    `intervention`: norm of (action - proposal) / input_scale; nan without a proposal.
    `lateness_slope`: d margin / d t in 1/s, what one second of extra latency costs to first order.
    `plan_states` (N+1, n), `plan_inputs` (N+1, m): the committed plan, its first input the action.
    `times_us`: kernel, qp, verify and total time of the step.
    """

    action: Array
    verdict: Verdict
    reason: Reason
    margin: float
    critical_row: str
    intervention: float
    blend: float
    qp_used: bool
    lateness_slope: float
    plan_states: Array
    plan_inputs: Array
    times_us: dict[str, float] = field(default_factory=dict)


@dataclass
class _Clock:
    """Time spent per stage of one step, in ns."""

    start: int
    kernel: int = 0
    qp: int = 0
    verify: int = 0

    def stages(self) -> dict[str, float]:
        total = perf_counter_ns() - self.start
        return {
            "kernel": self.kernel / 1e3,
            "qp": self.qp / 1e3,
            "verify": self.verify / 1e3,
            "total": total / 1e3,
        }


@dataclass(frozen=True)
class _Candidate:
    """An action with its rolled-out plan; `blend` 1 is the candidate itself, 0 the backup."""

    action: Array
    plan: Rows | Rollout
    reason: Reason
    blend: float

    @property
    def verified(self) -> bool:
        return self.plan.least >= -ROUNDING


class Shield:
    """Stateful only in the plan it last committed to. One instance serves one robot and thread."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.kernel = bundle.kernel()
        self._scale = bundle.input_scale
        self._low, self._high = bundle.input_low, bundle.input_high
        self._projection = Projection(
            self.kernel, self._low / self._scale, self._high / self._scale
        )
        self._n, self._m = len(bundle.states), len(bundle.inputs)
        self.reset()

    def reset(self) -> None:
        """Forget the committed plan: a new flight begins."""
        self._plan_states = np.full((self.bundle.horizon + 1, self._n), math.nan)
        self._plan_inputs = np.zeros((0, self._m))
        self._index = 0
        self._pending = [self.bundle.stop_action] * self.bundle.delay_steps

    def step(self, x: Array, u_proposed: Array | None) -> ShieldResult:
        """Answer one control period for the state x (n,) and a proposal (m,) or None.

        Raises ModelError for arrays of the wrong shape, which is a wiring mistake. Everything else
        that can be wrong with them is answered with a verdict and a reason.
        """
        clock = _Clock(perf_counter_ns())
        x = self._vector(x, self._n, "state")
        proposal = None if u_proposed is None else self._vector(u_proposed, self._m, "proposal")
        if not np.isfinite(x).all():
            return self._continue(None, Reason.STATE_NOT_FINITE, proposal, clock)

        x = self.predict(x)
        rows = self._timed_rows(x, clock)
        backup = _Candidate(rows.inputs[0], rows, Reason.NOT_VERIFIED, 0.0)
        slope = float(rows.timing[rows.worst]) if rows.worst >= 0 else math.nan

        if proposal is None:
            return self._fall_back(x, backup, Reason.NO_PROPOSAL, proposal, slope, clock)
        if not np.isfinite(proposal).all():
            return self._fall_back(x, backup, Reason.PROPOSAL_NOT_FINITE, None, slope, clock)

        nearest, reason = self._nearest(rows, proposal, clock)
        if nearest is None:
            return self._fall_back(x, backup, Reason.QP_INFEASIBLE, proposal, slope, clock)
        qp_used = reason is not Reason.PROPOSAL_SAFE
        verdict = Verdict.PROJECTED if qp_used else Verdict.PASSED
        candidate = self._verified(x, nearest, backup, reason, clock)
        if candidate is None:
            return self._fall_back(x, backup, Reason.NOT_VERIFIED, proposal, slope, clock, qp_used)
        if candidate.reason is Reason.BLENDED:
            verdict = Verdict.PROJECTED
        return self._commit(candidate, verdict, proposal, slope, clock, qp_used)

    def predict(self, x: Array) -> Array:
        """The state (n,) at which the coming action takes effect: x moved by the pending ones."""
        for u in self._pending:
            x = self.bundle.compiled("step", x, u)
        return x

    def continue_plan(self, x: Array | None = None) -> ShieldResult:
        """Answer without a usable state (x None) or without judging: the committed plan goes on.

        After the plan's last element: the base controller if x is known, else the stop action.
        """
        return self._continue(x, Reason.STATE_UNKNOWN, None, _Clock(perf_counter_ns()))

    def _nearest(self, rows: Rows, proposal: Array, clock: _Clock) -> tuple[Array | None, Reason]:
        """The proposal itself if it meets every row and the box, else its projection."""
        begin = perf_counter_ns()
        v_d = proposal / self._scale
        row, slack = self.kernel.scan(v_d)
        nearest, reason = proposal, Reason.PROPOSAL_SAFE
        if slack < -TOLERANCE or (proposal < self._low).any() or (proposal > self._high).any():
            v = self._projection(rows, v_d, row)
            reason = Reason.PROJECTED
            nearest = None if v is None else np.clip(v * self._scale, self._low, self._high)
        clock.qp = perf_counter_ns() - begin
        return nearest, reason

    def _verified(
        self, x: Array, u: Array, backup: _Candidate, reason: Reason, clock: _Clock
    ) -> _Candidate | None:
        """The candidate if its plan holds, else the largest blend with the backup that does."""
        begin = perf_counter_ns()
        found = None
        for blend in (1.0, *BLENDS):
            action = u if blend == 1.0 else backup.action + blend * (u - backup.action)
            plan = self.kernel.verify(x, action)
            if plan.least >= -ROUNDING:
                why = reason if blend == 1.0 else Reason.BLENDED
                found = _Candidate(action, plan, why, blend)
                break
        clock.verify += perf_counter_ns() - begin
        return found

    def _fall_back(
        self,
        x: Array,
        backup: _Candidate,
        reason: Reason,
        proposal: Array | None,
        slope: float,
        clock: _Clock,
        qp_used: bool = False,
    ) -> ShieldResult:
        """The backup action. If even its plan does not hold, the better of it and the old plan."""
        if backup.verified:
            chosen = _Candidate(backup.action, backup.plan, reason, 0.0)
            return self._commit(chosen, Verdict.BACKUP, proposal, slope, clock, qp_used)
        begin = perf_counter_ns()
        following = self._next_element(x)
        options = (
            _Candidate(backup.action.copy(), backup.plan, Reason.OUTSIDE_IMPLICIT_SET, 0.0),
            _Candidate(following, self.kernel.verify(x, following), Reason.PLAN_CONTINUED, 0.0),
        )
        clock.verify += perf_counter_ns() - begin
        self._index += 1
        chosen = max(options, key=lambda candidate: candidate.plan.least)
        return self._result(chosen, Verdict.BACKUP, proposal, slope, clock, qp_used)

    def _commit(
        self,
        candidate: _Candidate,
        verdict: Verdict,
        proposal: Array | None,
        slope: float,
        clock: _Clock,
        qp_used: bool,
    ) -> ShieldResult:
        """Adopt a verified plan; from now on it is the way out."""
        self._plan_states = candidate.plan.states.copy()
        self._plan_inputs = candidate.plan.inputs.copy()
        self._index = 0
        return self._result(candidate, verdict, proposal, slope, clock, qp_used)

    def _continue(
        self, x: Array | None, reason: Reason, proposal: Array | None, clock: _Clock
    ) -> ShieldResult:
        action = self._next_element(x)
        self._index += 1
        self._remember(action)
        return ShieldResult(
            action=action,
            verdict=Verdict.BACKUP,
            reason=reason,
            margin=math.nan,
            critical_row="none",
            intervention=self._intervention(action, proposal),
            blend=0.0,
            qp_used=False,
            lateness_slope=math.nan,
            plan_states=self._plan_states,
            plan_inputs=self._plan_inputs,
            times_us=clock.stages(),
        )

    def _next_element(self, x: Array | None) -> Array:
        """The next input of the committed plan; after it the base controller, or the stop."""
        if self._index + 1 < len(self._plan_inputs):
            return self._plan_inputs[self._index + 1].copy()
        if x is None:
            return self.bundle.stop_action.copy()
        return self.bundle.compiled("base_controller", x)

    def _result(
        self,
        candidate: _Candidate,
        verdict: Verdict,
        proposal: Array | None,
        slope: float,
        clock: _Clock,
        qp_used: bool,
    ) -> ShieldResult:
        action = candidate.action.copy()
        self._remember(action)
        return ShieldResult(
            action=action,
            verdict=verdict,
            reason=candidate.reason,
            margin=candidate.plan.least,
            critical_row=self.bundle.row_name(candidate.plan.worst),
            intervention=self._intervention(action, proposal),
            blend=candidate.blend,
            qp_used=qp_used,
            lateness_slope=slope,
            plan_states=self._plan_states,
            plan_inputs=self._plan_inputs,
            times_us=clock.stages(),
        )

    def _remember(self, action: Array) -> None:
        """The action joins those that are sent but have not taken effect."""
        if self._pending:
            self._pending = [*self._pending[1:], action]

    def _timed_rows(self, x: Array, clock: _Clock) -> Rows:
        begin = perf_counter_ns()
        rows = self.kernel.rows(x)
        clock.kernel = perf_counter_ns() - begin
        return rows

    def _intervention(self, action: Array, proposal: Array | None) -> float:
        if proposal is None:
            return math.nan
        return math.hypot(*((action - proposal) / self._scale))

    def _vector(self, value: Array, size: int, what: str) -> Array:
        vector = np.asarray(value, np.float64)
        if vector.shape != (size,):
            names = self.bundle.states if what == "state" else self.bundle.inputs
            raise ModelError(
                f"{what} must have shape ({size},) = ({', '.join(c.name for c in names)}), "
                f"got {vector.shape}"
            )
        return vector
