"""What the nominal and the robust shield share: the form of an answer, and the pending actions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from enum import Enum
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.chain import Kind
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel import Kernel, Rows
from safe_rl_core.projection import TOLERANCE, Projection

Array = NDArray[np.float64]

#: Shares of the way from the backup action to the candidate that are tried in turn.
BLENDS = (0.75, 0.5, 0.25)


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
    BASE_CONTROLLER = "base_controller"
    TRACKING_SATURATED = "tracking_saturated"
    NO_PLAN_YET = "no_plan_yet"
    STATE_NOT_FINITE = "state_not_finite"
    STATE_UNKNOWN = "state_unknown"


@dataclass(frozen=True)
class Decision:
    """What the per-step record keeps of a robust shield's answer.

    `kind`: where the action comes from. `index`: which element of the committed plan it is (0: the
    plan was committed now; the horizon and beyond: the base controller; -1: there is no plan).
    `u_in_force` (m,): the input that acts while the answer is computed. `x_hat` (n,) and
    `proposal` (m,) as received, None if there was none. `z_0` (n,) and `inputs` (N+1, m): the plan
    if one was committed now. The answer itself and the plan's slack are the result's `action` and
    `margin`.
    """

    kind: Kind
    index: int
    u_in_force: Array
    x_hat: Array | None
    proposal: Array | None
    z_0: Array | None
    inputs: Array | None


@dataclass(frozen=True)
class ShieldResult:
    """One answer of a shield.

    `action` (m,) SI units. `margin`: the smallest h - margin over the verified plan (negative: the
    plan is not verified; nan: no state), reached at `critical_row` ("<row>@<node>"); of a robust
    shield: the slack of the plan in hand and its critical condition.
    `intervention`: norm of (action - proposal) / input_scale; nan without a proposal.
    `lateness_slope`: d margin / d t in 1/s, what one second of extra latency costs to first order.
    `plan_states` (N+1, n), `plan_inputs` (N+1, m): the committed plan, its first input the action.
    `times_us`: kernel, qp, verify and total time of the step.
    `decision`: for the record of a robust shield; None of a nominal one.
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
    decision: Decision | None = None


@dataclass
class Period:
    """What one call has learned so far; times in ns. `proposal`: what was received, if usable."""

    start: int = field(default_factory=perf_counter_ns)
    x_hat: Array | None = None
    received: Array | None = None
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


class ShieldBase(ABC):
    """A shield without its decision: `_decide` and `_continue` are the two shields' own."""

    def __init__(self, bundle: Bundle, kernel: Kernel) -> None:
        self.bundle = bundle
        self.kernel = kernel
        self._scale = bundle.input_scale
        self._low, self._high = bundle.input_low, bundle.input_high
        self._projection = Projection(kernel, self._low / self._scale, self._high / self._scale)
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
        period = Period()
        period.x_hat = x = self._vector(x, self._n, "state")
        if u_proposed is not None:
            period.received = self._vector(u_proposed, self._m, "proposal")
        if not np.isfinite(x).all():
            return self._continue(None, Reason.STATE_NOT_FINITE, period)
        if period.received is not None and np.isfinite(period.received).all():
            period.proposal = period.received
        return self._decide(self.predict(x), period)

    @abstractmethod
    def continue_plan(self, x: Array | None = None) -> ShieldResult:
        """Answer without a state (x None) or without judging: the committed plan goes on."""

    @abstractmethod
    def _decide(self, x: Array, period: Period) -> ShieldResult:
        """The answer for the predicted state x (n,)."""

    @abstractmethod
    def _continue(self, x: Array | None, reason: Reason, period: Period) -> ShieldResult:
        """The committed plan goes on, from the state x (n,) if it is known."""

    def predict(self, x: Array) -> Array:
        """The state (n,) at which the coming action takes effect: x moved by the pending ones."""
        for u in self._pending:
            x = self.bundle.compiled("step", x, u)
        return x

    def _nearest(self, rows: Rows, proposal: Array, period: Period) -> Array | None:
        """The proposal itself if it meets every row and the box, else its projection, if any."""
        begin = perf_counter_ns()
        v_d = proposal / self._scale
        row, slack = self.kernel.scan(v_d)
        nearest: Array | None = proposal
        if slack < -TOLERANCE or (proposal < self._low).any() or (proposal > self._high).any():
            period.qp_used = True
            v = self._projection(rows, v_d, row)
            nearest = None if v is None else np.clip(v * self._scale, self._low, self._high)
        period.qp += perf_counter_ns() - begin
        return nearest

    def _unusable(self, period: Period) -> Reason:
        """Why there is no proposal to judge."""
        return Reason.NO_PROPOSAL if period.received is None else Reason.PROPOSAL_NOT_FINITE

    def _send(self, action: Array) -> Array:
        """The action joins those that are sent but have not taken effect; the one in force."""
        in_force, *self._pending = [*self._pending, action]
        return in_force

    def sent_instead(self, result: ShieldResult, action: Array) -> ShieldResult:
        """The last answer with another action (m,): it is what goes out, and what acts later."""
        decision = result.decision
        if self._pending:
            self._pending[-1] = action
        elif decision is not None:
            decision = replace(decision, u_in_force=action)
        return replace(result, action=action, decision=decision)

    def _answer(
        self,
        action: Array,
        verdict: Verdict,
        reason: Reason,
        period: Period,
        *,
        margin: float = math.nan,
        critical_row: str = "none",
        blend: float = 0.0,
        decision: Decision | None = None,
    ) -> ShieldResult:
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
            decision=decision,
        )

    def _vector(self, value: Array, size: int, what: str) -> Array:
        vector = np.asarray(value, np.float64)
        if vector.shape != (size,):
            names = self.bundle.states if what == "state" else self.bundle.inputs
            raise ModelError(
                f"{what} must have shape ({size},) = ({', '.join(c.name for c in names)}), "
                f"got {vector.shape}"
            )
        return vector
