"""What a flight leaves behind: one row per control period, as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import SafeRLError
from safe_rl_core.shield import ShieldResult, Verdict

Array = NDArray[np.float64]

VERDICTS = tuple(v.value for v in Verdict)
#: Index in `FlightLog.verdict` of a step that no shield judged.
UNSHIELDED = -1


@dataclass(frozen=True)
class FlightLog:
    """K control periods of one flight; n states, m inputs.

    t (K,) s; x_true (K+1, n); x_measured (K, n); u_proposed, u_safe (K, m), nan where none;
    verdict (K,) index into VERDICTS or UNSHIELDED; reason, critical_row (K,) text; margin (K,);
    intervention (K,); shield_us, latency_us (K,), nan where unknown; qp_used (K,) bool.
    """

    t: Array
    x_true: Array
    x_measured: Array
    u_proposed: Array
    u_safe: Array
    verdict: NDArray[np.int8]
    reason: NDArray[np.str_]
    margin: Array
    critical_row: NDArray[np.str_]
    intervention: Array
    shield_us: Array
    latency_us: Array
    qp_used: NDArray[np.bool_]

    @property
    def steps(self) -> int:
        """K, the number of control periods."""
        return len(self.t)

    def save(self, path: Path) -> None:
        """Write every array to a compressed .npz."""
        with path.open("wb") as file:
            np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})

    @staticmethod
    def load(path: Path) -> FlightLog:
        """Read what `save` wrote; SafeRLError names what is missing."""
        with np.load(path, allow_pickle=False) as archive:
            missing = [f.name for f in fields(FlightLog) if f.name not in archive.files]
            if missing:
                raise SafeRLError(f"{path} is not a flight log: it lacks {', '.join(missing)}")
            return FlightLog(**{f.name: archive[f.name] for f in fields(FlightLog)})


class FlightRecorder:
    """Fills a FlightLog period by period."""

    def __init__(self, bundle: Bundle, steps: int) -> None:
        n, m = len(bundle.states), len(bundle.inputs)
        self._k = 0
        self._t = np.zeros(steps)
        self._x_true, self._x_measured = np.zeros((steps + 1, n)), np.zeros((steps, n))
        self._proposed, self._safe = np.full((steps, m), math.nan), np.zeros((steps, m))
        self._verdict = np.full(steps, UNSHIELDED, np.int8)
        self._reason, self._row = [""] * steps, [""] * steps
        self._margin, self._shield_us = np.full(steps, math.nan), np.full(steps, math.nan)
        self._intervention = np.full(steps, math.nan)
        self._qp = np.zeros(steps, np.bool_)

    def start(self, x_true: Array) -> None:
        """The true state before the first period."""
        self._x_true[0] = x_true

    def shielded(
        self, t: float, x_measured: Array, proposal: Array | None, result: ShieldResult
    ) -> None:
        """One period's decision."""
        k = self._k
        self._common(t, x_measured, proposal, result.action)
        self._verdict[k] = VERDICTS.index(result.verdict.value)
        self._reason[k], self._row[k] = result.reason.value, result.critical_row
        self._margin[k], self._intervention[k] = result.margin, result.intervention
        self._shield_us[k], self._qp[k] = result.times_us["total"], result.qp_used

    def unshielded(
        self, t: float, x_measured: Array, proposal: Array | None, action: Array
    ) -> None:
        """One period without a shield."""
        self._common(t, x_measured, proposal, action)

    def moved(self, x_true: Array) -> None:
        """The true state at the end of the period; the next period begins."""
        self._k += 1
        self._x_true[self._k] = x_true

    def log(self) -> FlightLog:
        """The flight so far."""
        k = self._k
        return FlightLog(
            t=self._t[:k],
            x_true=self._x_true[: k + 1],
            x_measured=self._x_measured[:k],
            u_proposed=self._proposed[:k],
            u_safe=self._safe[:k],
            verdict=self._verdict[:k],
            reason=np.array(self._reason[:k], np.str_),
            margin=self._margin[:k],
            critical_row=np.array(self._row[:k], np.str_),
            intervention=self._intervention[:k],
            shield_us=self._shield_us[:k],
            latency_us=np.full(k, math.nan),
            qp_used=self._qp[:k],
        )

    def _common(self, t: float, x: Array, proposal: Array | None, action: Array) -> None:
        k = self._k
        self._t[k], self._x_measured[k], self._safe[k] = t, x, action
        if proposal is not None:
            self._proposed[k] = proposal
