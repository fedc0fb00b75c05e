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
from dataclasses import dataclass, field, replace
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
class _Period:
    """What one call has learned so far; times in ns."""

    start: int = field(default_factory=perf_counter_ns)
    proposal: Array | None = None
    slope: float = math.nan
    qp_used: bool = False
    kernel: int = 0
    qp: int = 0
    verify: int = 0

    def times_us(self) -> dict[str, float]:
        """Time per stage and in total, in microseconds."""
        total = perf_counter_ns() - self.start
        stages = {"kernel": self.kernel, "qp": self.qp, "verify": self.verify, "total": total}
        return {name: ns / 1e3 for name, ns in stages.items()}


@dataclass(frozen=True)
class _Candidate:
    """An action with its rolled-out plan; `blend` 1 is the candidate itself, 0 the backup."""

    action: Array
    plan: Rows | Rollout
    reason: Reason
    blend: float

    @property
    def verified(self) -> bool:
        """False as well where the plan's margin is not a number."""
        return self.plan.least >= -ROUNDING

    @property
    def rank(self) -> float:
        """The plan's margin; a plan without a number is the worst."""
        return -math.inf if math.isnan(self.plan.least) else self.plan.least


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
        period = _Period()
        x = self._vector(x, self._n, "state")
        proposal = None if u_proposed is None else self._vector(u_proposed, self._m, "proposal")
        if not np.isfinite(x).all():
            return self._continue(None, Reason.STATE_NOT_FINITE, period)

        x = self.predict(x)
        rows = self._rows(x, period)
        backup = _Candidate(rows.inputs[0], rows, Reason.NOT_VERIFIED, 0.0)

        if proposal is None:
            return self._fall_back(x, backup, Reason.NO_PROPOSAL, period)
        if not np.isfinite(proposal).all():
            return self._fall_back(x, backup, Reason.PROPOSAL_NOT_FINITE, period)
        period.proposal = proposal

        nearest = self._nearest(rows, proposal, period)
        if nearest is None:
            return self._fall_back(x, backup, Reason.QP_INFEASIBLE, period)
        candidate = self._verified(x, nearest, backup, period)
        if candidate is None:
            return self._fall_back(x, backup, Reason.NOT_VERIFIED, period)
        passed = candidate.reason is Reason.PROPOSAL_SAFE
        return self._commit(candidate, Verdict.PASSED if passed else Verdict.PROJECTED, period)

    def predict(self, x: Array) -> Array:
        """The state (n,) at which the coming action takes effect: x moved by the pending ones."""
        for u in self._pending:
            x = self.bundle.compiled("step", x, u)
        return x

    def continue_plan(self, x: Array | None = None) -> ShieldResult:
        """Answer without a usable state (x None) or without judging: the committed plan goes on.

        After the plan's last element: the base controller if x is known, else the stop action.
        """
        return self._continue(x, Reason.STATE_UNKNOWN, _Period())

    def _rows(self, x: Array, period: _Period) -> Rows:
        begin = perf_counter_ns()
        rows = self.kernel.rows(x)
        period.kernel = perf_counter_ns() - begin
        period.slope = float(rows.timing[rows.worst])
        return rows

    def _nearest(self, rows: Rows, proposal: Array, period: _Period) -> Array | None:
        """The proposal itself if it meets every row and the box, else its projection, if any."""
        begin = perf_counter_ns()
        v_d = proposal / self._scale
        row, slack = self.kernel.scan(v_d)
        nearest: Array | None = proposal
        if slack < -TOLERANCE or (proposal < self._low).any() or (proposal > self._high).any():
            period.qp_used = True
            v = self._projection(rows, v_d, row)
            nearest = None if v is None else np.clip(v * self._scale, self._low, self._high)
        period.qp = perf_counter_ns() - begin
        return nearest

    def _verified(
        self, x: Array, u: Array, backup: _Candidate, period: _Period
    ) -> _Candidate | None:
        """u if its plan holds, else the largest blend of it with the backup whose plan does."""
        begin = perf_counter_ns()
        found = None
        for blend in (1.0, *BLENDS):
            action = u if blend == 1.0 else backup.action + blend * (u - backup.action)
            reason = Reason.PROJECTED if period.qp_used else Reason.PROPOSAL_SAFE
            reason = reason if blend == 1.0 else Reason.BLENDED
            candidate = _Candidate(action, self.kernel.verify(x, action), reason, blend)
            if candidate.verified:
                found = candidate
                break
        period.verify += perf_counter_ns() - begin
        return found

    def _fall_back(
        self, x: Array, backup: _Candidate, reason: Reason, period: _Period
    ) -> ShieldResult:
        """The backup action. If even its plan does not hold, the better of it and the old plan."""
        if backup.verified:
            return self._commit(replace(backup, reason=reason), Verdict.BACKUP, period)
        begin = perf_counter_ns()
        following = self._next_element(x)
        options = (
            replace(backup, reason=Reason.OUTSIDE_IMPLICIT_SET),
            _Candidate(following, self.kernel.verify(x, following), Reason.PLAN_CONTINUED, 0.0),
        )
        period.verify += perf_counter_ns() - begin
        self._index += 1
        chosen = max(options, key=lambda candidate: candidate.rank)
        return self._result(chosen, Verdict.BACKUP, period)

    def _commit(self, candidate: _Candidate, verdict: Verdict, period: _Period) -> ShieldResult:
        """Adopt a verified plan; from now on it is the way out."""
        self._plan_states = candidate.plan.states.copy()
        self._plan_inputs = candidate.plan.inputs.copy()
        self._index = 0
        return self._result(candidate, verdict, period)

    def _continue(self, x: Array | None, reason: Reason, period: _Period) -> ShieldResult:
        action = self._next_element(x)
        self._index += 1
        return self._answer(action, Verdict.BACKUP, reason, period)

    def _result(self, candidate: _Candidate, verdict: Verdict, period: _Period) -> ShieldResult:
        plan = candidate.plan
        return self._answer(
            candidate.action.copy(),
            verdict,
            candidate.reason,
            period,
            margin=plan.least,
            critical_row=self.bundle.row_name(plan.worst),
            blend=candidate.blend,
        )

    def _answer(
        self,
        action: Array,
        verdict: Verdict,
        reason: Reason,
        period: _Period,
        *,
        margin: float = math.nan,
        critical_row: str = "none",
        blend: float = 0.0,
    ) -> ShieldResult:
        """The action joins those that are sent but have not taken effect."""
        if self._pending:
            self._pending = [*self._pending[1:], action]
        intervention = math.nan
        if period.proposal is not None:
            intervention = math.hypot(*((action - period.proposal) / self._scale))
        return ShieldResult(
            action=action,
            verdict=verdict,
            reason=reason,
            margin=margin,
            critical_row=critical_row,
            intervention=intervention,
            blend=blend,
            qp_used=period.qp_used,
            lateness_slope=period.slope,
            plan_states=self._plan_states,
            plan_inputs=self._plan_inputs,
            times_us=period.times_us(),
        )

    def _next_element(self, x: Array | None) -> Array:
        """The next input of the committed plan; after it the base controller, or the stop."""
        if self._index + 1 < len(self._plan_inputs):
            return self._plan_inputs[self._index + 1].copy()
        if x is None:
            return self.bundle.stop_action.copy()
        return self.bundle.compiled("base_controller", x)

    def _vector(self, value: Array, size: int, what: str) -> Array:
        vector = np.asarray(value, np.float64)
        if vector.shape != (size,):
            names = self.bundle.states if what == "state" else self.bundle.inputs
            raise ModelError(
                f"{what} must have shape ({size},) = ({', '.join(c.name for c in names)}), "
                f"got {vector.shape}"
            )
        return vector
