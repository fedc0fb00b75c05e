"""When the shield answers, with which state and which proposal. ROS-free; steady clock, ns.

One answer per control period T, whatever the others do:

    state k and its proposal are in          -> answer at once (the usual case: T does not matter)
    state k is in, its proposal is not       -> answer after `patience`, with the proposal of the
                                                state before if that is not older than 1.5 T,
                                                else without one
    ... and the policy missed the last one   -> answer at once, without one
    no state for 1.5 T after the last one    -> the next element of the verified plan, then one
                                                more every T, until a state comes
    no state ever                            -> nothing: no command is safe for an unknown robot

So a dead policy is answered by the backup in the second period after its last word, and a dead
estimator by the plan that was verified from its last state. An answered state is not stepped
again: the robot has left it, and a command verified for it would be verified for nothing.

In lockstep the state's stamp is the clock: exactly one answer per state, with exactly its own
proposal, or without one after `patience`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Numbers of a command message, as they came.
Numbers = Sequence[float]

# Shares of the control period.
PROPOSAL_AGE = 1.5
FIRST_GAP = 1.5
EARLY = 0.25
PATIENCE = 0.5
CHECK = 0.25


@dataclass(frozen=True)
class Tick:
    """One answer that is due: `x` None means that no state has come for this period."""

    stamp_ns: int
    received_ns: int
    x: NDArray[np.float64] | None
    proposal: Numbers | None


class Schedule:
    """Pairs states with proposals and says when an answer is due."""

    def __init__(self, period_ns: int, lockstep: bool, patience_ns: int) -> None:
        self.period_ns, self.lockstep, self.patience_ns = period_ns, lockstep, patience_ns
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next state is the first."""
        self._state: Tick | None = None
        self._pending = False
        self._first = True
        self._due_stamp = self._answered = 0
        self._next_ns = 0
        self._proposals: deque[tuple[int, Numbers]] = deque(maxlen=8)

    def add_state(self, stamp_ns: int, x: NDArray[np.float64], now_ns: int) -> None:
        """A new state; the caller has checked that its stamp moves forward."""
        self._state = Tick(stamp_ns, now_ns, x, None)
        # A source faster than the period is thinned to it, on average exactly.
        early = 0 if self.lockstep else int(EARLY * self.period_ns)
        self._pending |= self._first or stamp_ns >= self._due_stamp - early

    def add_proposal(self, stamp_ns: int, proposal: Numbers) -> None:
        """A proposal and the stamp of the state that it was made for."""
        self._proposals.append((stamp_ns, proposal))

    def due(self, now_ns: int) -> Tick | None:
        """The answer to give now, if any; calling it takes it."""
        state = self._state
        if state is None:
            return None
        if self._pending:
            return self._answer(state, now_ns)
        if self.lockstep or now_ns < self._next_ns:
            return None
        self._next_ns += self.period_ns
        if self._next_ns <= now_ns:  # the whole process paused: one answer, not a burst of them
            self._next_ns = now_ns + self.period_ns
        return Tick(state.stamp_ns, state.received_ns, None, None)

    def _answer(self, state: Tick, now_ns: int) -> Tick | None:
        stamp = state.stamp_ns
        made_for, proposal = self._newest_proposal(stamp)
        waited = now_ns - state.received_ns
        if made_for != stamp and waited < self.patience_ns and self._policy_alive():
            return None
        if made_for != stamp and self.lockstep:
            proposal = None
        period, self._answered = self.period_ns, stamp
        self._due_stamp = max(self._due_stamp + period, stamp + int((1.0 - EARLY) * period))
        self._next_ns = max(state.received_ns + int(FIRST_GAP * period), now_ns + period)
        self._pending = self._first = False
        return Tick(stamp, state.received_ns, state.x, proposal)

    def _newest_proposal(self, stamp_ns: int) -> tuple[int, Numbers | None]:
        """The newest proposal made for this state or one up to 1.5 periods before it."""
        oldest = stamp_ns - int(PROPOSAL_AGE * self.period_ns)
        fitting = [item for item in self._proposals if oldest <= item[0] <= stamp_ns]
        return max(fitting, key=lambda item: item[0], default=(-1, None))

    def _policy_alive(self) -> bool:
        """Worth waiting for: it has spoken about the last answered state, or may just start."""
        return self._first or any(made_for >= self._answered for made_for, _ in self._proposals)
