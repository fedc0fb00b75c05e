"""A backup-CBF quadratic programme of the published kind as a shield: solved, clipped, sent.

The rows are the relative-time rows of PS2-RL in discrete time without any margin, one for every
node of the backup rollout, and the programme is solved exactly over all of them. That is the best
the published kind can do: no tolerance of a solver, no slack variable (which lets constraints go
silently), and the state is moved by the pending input, which the published layer does not do. What
it lacks is what the comparison is about: nothing is verified after the solve, and the rows know
no disturbance, no estimate error and no time between samples. Where the rows contradict each other
the backup action is sent.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from safe_rl_core import Bundle
from safe_rl_core.bundle import NUMERICAL_MARGIN
from safe_rl_core.shield_base import Period, Reason, ShieldBase, ShieldResult, Verdict

Array = NDArray[np.float64]


class BackupCbfQp(ShieldBase):
    """Keeps nothing but the inputs that are pending."""

    def __init__(self, bundle: Bundle) -> None:
        margins = dict.fromkeys(bundle.margins, NUMERICAL_MARGIN)
        bare = replace(bundle, margins=margins)
        super().__init__(bare, bare.kernel())

    def continue_plan(self, x: Array | None = None) -> ShieldResult:
        """Without a state: the stop action."""
        return self._continue(x, Reason.STATE_UNKNOWN, Period())

    def _decide(self, x: Array, period: Period) -> ShieldResult:
        rows = self.kernel.rows(x)
        backup = np.clip(rows.inputs[0], self._low, self._high)
        if period.proposal is None:
            return self._sent(backup, Verdict.BACKUP, self._unusable(period), period)
        nearest = self._nearest(rows, period.proposal, period)
        if nearest is None:
            return self._sent(backup, Verdict.BACKUP, Reason.QP_INFEASIBLE, period)
        if period.qp_used:
            return self._sent(nearest.copy(), Verdict.PROJECTED, Reason.PROJECTED, period)
        return self._sent(nearest.copy(), Verdict.PASSED, Reason.PROPOSAL_SAFE, period)

    def _continue(self, x: Array | None, reason: Reason, period: Period) -> ShieldResult:
        return self._sent(self.bundle.stop_action.copy(), Verdict.BACKUP, reason, period)

    def _sent(
        self, action: Array, verdict: Verdict, reason: Reason, period: Period
    ) -> ShieldResult:
        self._send(action)
        return self._answer(action, verdict, reason, period)
