"""The nominal shield: every control period, one action that keeps a way back to the base set.

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
from dataclasses import dataclass, replace
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.kernel import Rollout, Rows
from safe_rl_core.shield_base import BLENDS, Period, Reason, ShieldBase, ShieldResult, Verdict

__all__ = ["Reason", "Shield", "ShieldResult", "Verdict"]

Array = NDArray[np.float64]

#: A verified plan may miss a margin by rounding only; bundle.NUMERICAL_MARGIN is 1000 times that.
ROUNDING = 1e-9


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


class Shield(ShieldBase):
    """Stateful only in the plan it last committed to. One instance serves one robot and thread."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, bundle.kernel())

    def _decide(self, x: Array, period: Period) -> ShieldResult:
        rows = self._rows(x, period)
        backup = _Candidate(rows.inputs[0], rows, Reason.NOT_VERIFIED, 0.0)
        if period.proposal is None:
            return self._fall_back(x, backup, self._unusable(period), period)
        nearest = self._nearest(rows, period.proposal, period)
        if nearest is None:
            return self._fall_back(x, backup, Reason.QP_INFEASIBLE, period)
        candidate = self._verified(x, nearest, backup, period)
        if candidate is None:
            return self._fall_back(x, backup, Reason.NOT_VERIFIED, period)
        passed = candidate.reason is Reason.PROPOSAL_SAFE
        return self._commit(candidate, Verdict.PASSED if passed else Verdict.PROJECTED, period)

    def continue_plan(self, x: Array | None = None) -> ShieldResult:
        """Answer without a usable state (x None) or without judging: the committed plan goes on.

        After the plan's last element: the base controller if x is known, else the stop action.
        """
        return self._continue(x, Reason.STATE_UNKNOWN, Period())

    def _rows(self, x: Array, period: Period) -> Rows:
        begin = perf_counter_ns()
        rows = self.kernel.rows(x)
        period.kernel = perf_counter_ns() - begin
        period.slope = float(rows.timing[rows.worst])
        return rows

    def _verified(
        self, x: Array, u: Array, backup: _Candidate, period: Period
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
        self, x: Array, backup: _Candidate, reason: Reason, period: Period
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

    def _commit(self, candidate: _Candidate, verdict: Verdict, period: Period) -> ShieldResult:
        """Adopt a verified plan; from now on it is the way out."""
        self._plan_states = candidate.plan.states.copy()
        self._plan_inputs = candidate.plan.inputs.copy()
        self._index = 0
        return self._result(candidate, verdict, period)

    def _continue(self, x: Array | None, reason: Reason, period: Period) -> ShieldResult:
        action = self._next_element(x)
        self._index += 1
        self._send(action)
        return self._answer(action, Verdict.BACKUP, reason, period)

    def _result(self, candidate: _Candidate, verdict: Verdict, period: Period) -> ShieldResult:
        plan, action = candidate.plan, candidate.action.copy()
        self._send(action)
        return self._answer(
            action,
            verdict,
            candidate.reason,
            period,
            margin=plan.least,
            critical_row=self.bundle.row_name(plan.worst),
            blend=candidate.blend,
        )

    def _next_element(self, x: Array | None) -> Array:
        """The next input of the committed plan; after it the base controller, or the stop."""
        if self._index + 1 < len(self._plan_inputs):
            return self._plan_inputs[self._index + 1].copy()
        if x is None:
            return self.bundle.stop_action.copy()
        return self.bundle.compiled("base_controller", x)
