"""The robust shield: commits plans that hold under every assumed disturbance, error and delay.

Every period, for x̃, the estimate moved by the pending inputs to where the answer takes effect: the
first candidate whose own plan [candidate, then the backup policy] is VALID (kernel/robust.c) is
sent and its plan committed. Candidates are the proposal, its projection, points on the way to the
backup action, and the backup action. If none is VALID, the committed plan goes on:

    u_j = ubar_j + K (x̃ [-] z_j)       element j of the plan, j = 1 .. N-1
    u   = u*     + K_B (x̃ [-] x*)      after its end, about the plan's own base point x*

Only VALID is trusted. The projection, the backup policy and the proposal can be anything: what is
wrong with them costs a candidate. docs/theory.md proves what follows under assumptions A1 to A6;
before the first VALID plan (A5) the backup action is sent and nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.chain import Kind, StepRecord
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.robust import RobustKernel, Valid
from safe_rl_core.shield import Shield
from safe_rl_core.shield_base import (
    Decision,
    Period,
    Reason,
    ShieldBase,
    ShieldResult,
    Verdict,
)

Array = NDArray[np.float64]

#: Bisections of the way between the backup action and the proposal.
HALVINGS = 4
#: How often the projection, and then the bisection, is repeated with what the last tube taught.
ROUNDS = 2

_VERDICTS = {Kind.ACCEPT: Verdict.PASSED} | dict.fromkeys(
    (Kind.PROJECTED, Kind.BLENDED), Verdict.PROJECTED
)
_REASONS = {
    Kind.ACCEPT: Reason.PROPOSAL_SAFE,
    Kind.PROJECTED: Reason.PROJECTED,
    Kind.BLENDED: Reason.BLENDED,
}


@dataclass(frozen=True)
class _Plan:
    """The committed plan: nodes z_j (N+1, n), inputs (N+1, m), base point x*, what VALID left."""

    states: Array
    inputs: Array
    base_point: Array
    slack: float
    critical: str


@dataclass(frozen=True)
class _Candidate:
    """A first input; `blend` is its share on the way from the backup action, 0 the backup."""

    kind: Kind
    action: Array
    blend: float


def make_shield(bundle: Bundle) -> Shield | RobustShield:
    """The shield that a bundle is made for: robust with a certificate, else nominal."""
    return Shield(bundle) if bundle.robust is None else RobustShield(bundle)


def record_of(stamp_ns: int, result: ShieldResult, sigma: float) -> StepRecord:
    """What the per-step record keeps of an answer of the robust shield."""
    decision = result.decision
    return StepRecord(
        stamp_ns=stamp_ns,
        kind=decision.kind,
        u_in_force=decision.u_in_force,
        u_next=result.action,
        index=max(decision.index, 0),
        slack=result.margin,
        sigma=sigma,
        x_hat=decision.x_hat,
        proposal=decision.proposal,
        z_0=decision.z_0,
        ubar=decision.inputs,
    )


class RobustShield(ShieldBase):
    """Stateful only in the committed plan. One instance serves one robot and thread."""

    kernel: RobustKernel

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, RobustKernel.of(bundle))
        self._certificate = self.kernel.certificate

    def reset(self) -> None:
        """Forget the committed plan: a new flight begins."""
        super().reset()
        self._plan: _Plan | None = None
        self._sigma = math.nan
        self._scale_required = 1.0
        self._judged_is_committed = False

    def require(self, scale: float) -> None:
        """Commit from now on only plans that hold for `scale` >= 1 times the certified bounds."""
        if not scale >= 1.0:
            raise ModelError(f"plans hold for the certified bounds at least: scale {scale} < 1")
        self._scale_required = scale

    def stop(self, x: Array) -> ShieldResult:
        """Answer with the stop action, which no plan covers; the committed plan is given up."""
        period = Period(x_hat=self._vector(x, self._n, "state"))
        self._plan, self._sigma = None, math.nan
        return self._stop(Reason.NO_PLAN_YET, period)

    def continue_plan(self, x: Array | None = None) -> ShieldResult:
        """Answer without judging: the committed plan goes on, tracked if the state x is known."""
        period = Period()
        if x is None:
            return self._continue(None, Reason.STATE_UNKNOWN, period)
        period.x_hat = x = self._vector(x, self._n, "state")
        if not np.isfinite(x).all():
            return self._continue(None, Reason.STATE_NOT_FINITE, period)
        return self._continue(self.predict(x), Reason.PLAN_CONTINUED, period)

    def sigma(self) -> float:
        """How many times worse than assumed disturbance and errors may be for the plan in hand.

        nan without a plan. Not for the time in which an answer is awaited: call it after `step`.
        """
        if self._plan is not None and math.isnan(self._sigma):
            if not self._judged_is_committed:
                self.kernel.replay(self._plan.states[0], self._plan.inputs)
            self._sigma = self.kernel.sigma()
            self._judged_is_committed = False
        return self._sigma

    def _decide(self, x: Array, period: Period) -> ShieldResult:
        if not np.isfinite(x).all():
            return self._continue(None, Reason.STATE_NOT_FINITE, period)
        self._judged_is_committed = False
        for candidate in self._candidates(x, period):
            begin = perf_counter_ns()
            judged = self.kernel.valid(x, candidate.action)
            holds = judged.holds and self._holds_for(self._scale_required)
            period.verify += perf_counter_ns() - begin
            if holds:
                return self._commit(candidate, judged, period)
        if self._plan is None:
            return self._without_plan(candidate, judged, period)
        return self._continue(x, Reason.PLAN_CONTINUED, period)

    def _holds_for(self, scale: float) -> bool:
        """The plan just found VALID, under bounds `scale` times as wide."""
        return scale == 1.0 or self.kernel.slack_at(scale) >= 0.0

    def _candidates(self, x: Array, period: Period) -> Iterator[_Candidate]:
        """In the order of preference; each is made when the ones before it were not VALID."""
        backup = self.bundle.compiled("backup_policy", x)
        proposal = period.proposal
        if proposal is not None:
            goal = self._clipped(proposal)
            inside = bool((goal == proposal).all())
            if self._possible(x, goal):
                kind = Kind.ACCEPT if inside else Kind.PROJECTED
                yield _Candidate(kind, proposal if inside else goal, 1.0)
            share = self._share(x, backup, goal, 1.0)
            about = backup + share * (goal - backup)
            for _ in range(ROUNDS):
                about = self._projected(x, about, proposal, period)
                if about is None or not self._possible(x, about):
                    break
                yield _Candidate(Kind.PROJECTED, about, 1.0)
            for _ in range(ROUNDS):
                share = self._share(x, backup, goal, share)
                if share == 0.0:
                    break
                yield _Candidate(Kind.BLENDED, backup + share * (goal - backup), share)
        yield _Candidate(Kind.BACKUP, backup, 0.0)

    def _possible(self, x: Array, u: Array) -> bool:
        return self.kernel.screen(x, u)[0] >= 0.0

    def _share(self, x: Array, backup: Array, goal: Array, most: float) -> float:
        """How far from the backup action to the goal plans seem to hold: at most `most`."""
        low, high = 0.0, most
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            if self.kernel.screen(x, backup + middle * (goal - backup))[1] >= 0.0:
                low = middle
            else:
                high = middle
        return low

    def _projected(self, x: Array, u: Array, proposal: Array, period: Period) -> Array | None:
        """The proposal on the rows about the plan of u; None if they do not restrict it."""
        begin = perf_counter_ns()
        rows = self.kernel.tightened_rows(x, u)
        period.kernel += perf_counter_ns() - begin
        nearest = self._nearest(rows, proposal, period)
        return None if nearest is proposal else nearest

    def _commit(self, candidate: _Candidate, judged: Valid, period: Period) -> ShieldResult:
        """Adopt a VALID plan; from now on it is the way out."""
        states, inputs = judged.states.copy(), judged.inputs.copy()
        base_point = self.bundle.compiled("base_point", states[-1])
        self._plan = _Plan(states, inputs, base_point, judged.slack, judged.critical)
        self._plan_states, self._plan_inputs = states, inputs
        self._index, self._sigma, self._judged_is_committed = 0, math.nan, True
        kind = candidate.kind
        reason = _REASONS.get(kind) or self._why_backup(period)
        return self._finish(
            inputs[0].copy(), kind, reason, period, blend=candidate.blend, new=True
        )

    def _why_backup(self, period: Period) -> Reason:
        return self._unusable(period) if period.proposal is None else Reason.NOT_VERIFIED

    def _without_plan(self, backup: _Candidate, judged: Valid, period: Period) -> ShieldResult:
        """A5 does not hold yet: the backup action, for which nothing is claimed."""
        if not np.isfinite(backup.action).all():
            return self._stop(Reason.NO_PLAN_YET, period)
        action = self._clipped(backup.action)
        return self._finish(action, Kind.BACKUP, Reason.NO_PLAN_YET, period, refused=judged)

    def _continue(self, x: Array | None, reason: Reason, period: Period) -> ShieldResult:
        """The next element of the committed plan, tracked if x is known; then its base point."""
        plan, bounds = self._plan, self._certificate
        self._index += 1
        if plan is None or (x is None and self._index >= self.bundle.horizon):
            return self._stop(reason, period)
        if self._index < self.bundle.horizon:
            kind, wanted, gain = Kind.CONTINUE, plan.inputs[self._index], bounds.tracking_gain
            about = plan.states[self._index]
        else:
            kind, wanted, gain = Kind.BASE, bounds.base.input, bounds.base.gain
            about = plan.base_point
            reason = Reason.BASE_CONTROLLER if reason is Reason.PLAN_CONTINUED else reason
        if x is not None:
            tracked = wanted + gain @ self.bundle.compiled("difference", x, about)
            if np.isfinite(tracked).all():
                wanted = tracked
            else:
                reason = Reason.STATE_NOT_FINITE
        action = self._clipped(wanted)
        if (action != wanted).any():
            reason = Reason.TRACKING_SATURATED
        return self._finish(action, kind, reason, period)

    def _stop(self, reason: Reason, period: Period) -> ShieldResult:
        return self._finish(self.bundle.stop_action.copy(), Kind.STOP, reason, period)

    def _finish(
        self,
        action: Array,
        kind: Kind,
        reason: Reason,
        period: Period,
        *,
        blend: float = 0.0,
        new: bool = False,
        refused: Valid | None = None,
    ) -> ShieldResult:
        """The answer, with what the per-step record keeps of it."""
        plan = self._plan
        decision = Decision(
            kind=kind,
            index=-1 if plan is None else self._index,
            u_in_force=self._send(action),
            x_hat=None if period.x_hat is None else period.x_hat.copy(),
            proposal=None if period.received is None else period.received.copy(),
            z_0=plan.states[0] if new else None,
            inputs=plan.inputs if new else None,
        )
        judged = plan or refused
        return self._answer(
            action,
            _VERDICTS.get(kind, Verdict.BACKUP),
            reason,
            period,
            margin=math.nan if judged is None else judged.slack,
            critical_row="none" if judged is None else judged.critical,
            blend=blend,
            decision=decision,
        )

    def _clipped(self, u: Array) -> Array:
        return np.minimum(np.maximum(u, self._low), self._high)
