"""What the shield says about each answer, as the strings of `shield/status`."""

from __future__ import annotations

import math
from collections import Counter

from safe_rl_core.findings import MonitorResult
from safe_rl_core.shield import ShieldResult, Verdict

STATUS_KEYS = (
    "verdict",
    "reason",
    "margin",
    "critical_row",
    "intervention",
    "blend",
    "qp_used",
    "total_us",
    "kernel_us",
    "qp_us",
    "verify_us",
    "state_age_ms",
    "latency_us",
    "sigma",
    "premise_ratio",
    "bundle_hash",
    "certificate",
)


def status_values(result: ShieldResult, age_ms: float, latency_us: float) -> dict[str, str]:
    """Values of one answer. Age: state received to decision; latency: to command published."""
    times = result.times_us
    return {
        "verdict": result.verdict.value,
        "reason": result.reason.value,
        "margin": repr(float(result.margin)),
        "critical_row": result.critical_row,
        "intervention": repr(float(result.intervention)),
        "blend": repr(float(result.blend)),
        "qp_used": "true" if result.qp_used else "false",
        "total_us": f"{times.get('total', 0.0):.1f}",
        "kernel_us": f"{times.get('kernel', 0.0):.1f}",
        "qp_us": f"{times.get('qp', 0.0):.1f}",
        "verify_us": f"{times.get('verify', 0.0):.1f}",
        "state_age_ms": f"{age_ms:.3f}",
        "latency_us": f"{latency_us:.1f}",
        "sigma": "nan",
        "premise_ratio": "nan",
    }


def evidence_values(sigma: float, premises: MonitorResult | None) -> dict[str, str]:
    """Of a robust shield: the plan's sigma, and the largest residual as a share of its bound."""
    worst = math.nan if premises is None else premises.worst
    return {"sigma": f"{sigma:.4g}", "premise_ratio": f"{worst:.4g}"}


class VerdictLog:
    """One line per change of verdict, at most one in five seconds."""

    def __init__(self, interval_ns: int = 5_000_000_000) -> None:
        self._interval_ns = interval_ns
        self._said: Verdict | None = None
        self._said_ns = 0
        self._since: Counter[str] = Counter()
        self.last: ShieldResult | None = None

    def line(self, result: ShieldResult, now_ns: int) -> str | None:
        """Text to log now, or None."""
        self.last = result
        self._since[result.verdict.value] += 1
        if result.verdict == self._said:
            return None
        if self._said is not None and now_ns - self._said_ns < self._interval_ns:
            return None
        before = "start" if self._said is None else self._said.value
        tally = ", ".join(f"{count} {name}" for name, count in sorted(self._since.items()))
        self._said, self._said_ns = result.verdict, now_ns
        self._since.clear()
        return (
            f"{before} -> {result.verdict.value} ({result.reason.value}), margin "
            f"{result.margin:.3g} at {result.critical_row or '-'}; since the last line: {tally}"
        )
