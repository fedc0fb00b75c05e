"""What may still fly once an assumption is known to be broken: a ladder that only a person resets.

    NORMAL         no proof against the assumptions; proposals pass through the shield
    FINISH_PLAN    no proposals, no new plans: the committed plan is flown to its end
    BACKUP_ONLY    no proposals; new plans from the backup policy only, which must hold for bounds
                   INFLATION times as wide as what was observed; else the committed plan goes on
    MINIMAL_RISK   nothing is covered by a plan any more: `bundle.stop_action`

FINISH_PLAN keeps a guarantee of its own: the residuals bound the disturbances of the last windows,
and a plan with factor sigma holds for disturbances up to sigma times the assumed ones. If the
bound is below that, if A2 and A3 hold, and if nothing worse came before, since the plan was made,
or comes after, it ends in the base set. A lost
estimate (not finite, frozen) also leads to FINISH_PLAN, without any guarantee: its recorded inputs
are the best that is known. From BACKUP_ONLY on everything is best effort, and is named so.

This decides only what may pass. Whoever calls it obeys.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.findings import MonitorResult, Status
from safe_rl_core.monitor import certified

Array = NDArray[np.float64]

#: Observed disturbance times this is assumed for plans made after the proof.
INFLATION = 1.5


class Level(IntEnum):
    """The rungs; higher is worse."""

    NORMAL = 0
    FINISH_PLAN = 1
    BACKUP_ONLY = 2
    MINIMAL_RISK = 3


@dataclass(frozen=True)
class Decision:
    """What may pass in this period.

    `proposals`: the policy is heard; `new_plans`: a plan of the backup policy may be committed;
    `tracking`: the committed plan is corrected by the estimate (False: its inputs as recorded);
    `stop`: send `bundle.stop_action`. `scale`: new plans must hold for this multiple of the
    certificate's bounds.
    `guaranteed`: the theorem, or the argument of FINISH_PLAN, still covers the flight.
    """

    level: Level
    proposals: bool
    new_plans: bool
    tracking: bool
    stop: bool
    scale: float
    guaranteed: bool
    reason: str


class Response:
    """Stateful in the rung reached and in the largest disturbance seen since the proof."""

    def __init__(self, bundle: Bundle) -> None:
        self._assumed = certified(bundle).disturbance
        self.reset()

    def reset(self) -> None:
        """A person has found the cause: proposals may pass again. Reset the monitor too."""
        self._level = Level.NORMAL
        self._seen, self._known = np.zeros_like(self._assumed), True

    @property
    def level(self) -> Level:
        """The rung reached."""
        return self._level

    def update(self, result: MonitorResult, sigma: float, covered: bool) -> Decision:
        """Decide for this period.

        `sigma`: what is left of the committed plan holds for this multiple of the assumed bounds
        (behind its end stands the base set, which holds for 1), nan if unknown;
        `covered`: there is a valid plan to go on with, a new one or the rest of the committed one
        with its base controller.
        """
        if result.status is not Status.BROKEN and self._level is Level.NORMAL:
            return self._decision(True, guaranteed=True, reason="")
        usable = result.estimate_usable
        if usable:
            self._known = self._known and bool(np.isfinite(result.disturbance).all())
            self._seen = np.fmax(self._seen, result.disturbance)
        within = usable and self._known and bool((self._seen <= sigma * self._assumed).all())
        if not covered:
            level, reason = Level.MINIMAL_RISK, "no valid plan is left"
        elif within:
            level, reason = Level.FINISH_PLAN, f"observed disturbance within {sigma:.2f} × assumed"
        elif not usable:
            level, reason = Level.FINISH_PLAN, "the estimate is lost: inputs as recorded"
        else:
            level, reason = Level.BACKUP_ONLY, "the committed plan is not known to hold"
        self._level = max(self._level, level)
        kept = within and self._level is Level.FINISH_PLAN
        return self._decision(usable, guaranteed=kept, reason=reason)

    def _decision(self, usable: bool, guaranteed: bool, reason: str) -> Decision:
        level, scale = self._level, 1.0
        if level is not Level.NORMAL:
            worse = self._seen > self._assumed
            with np.errstate(divide="ignore"):
                scale = INFLATION * np.max(self._seen[worse] / self._assumed[worse], initial=1.0)
        return Decision(
            level=level,
            proposals=level is Level.NORMAL,
            new_plans=usable and level in (Level.NORMAL, Level.BACKUP_ONLY),
            tracking=usable,
            stop=level is Level.MINIMAL_RISK,
            scale=float(scale),
            guaranteed=guaranteed,
            reason=reason,
        )
