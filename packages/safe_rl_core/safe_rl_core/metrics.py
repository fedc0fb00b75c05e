"""Scores of a flight: safety first, then what it cost."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.record import UNSHIELDED, VERDICTS, FlightLog

Array = NDArray[np.float64]


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a share, 95 % by default; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = share * (1 - share) / trials + z2 / (4 * trials * trials)
    half = z * math.sqrt(spread) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def quantiles(values: Array) -> dict[str, float] | None:
    """p50, p99 and max of the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    p50, p99 = np.quantile(finite, (0.5, 0.99))
    return {"p50": float(p50), "p99": float(p99), "max": float(finite.max())}


def safe_rows(bundle: Bundle, log: FlightLog) -> Array:
    """h(x) on every true state: (K+1, n_h); a state violates unless every entry is >= 0."""
    return bundle.program("safe_set", log.x_true)


def summarise(bundle: Bundle, log: FlightLog) -> dict[str, Any]:
    """Scores of one flight, ready for JSON; see docs/benchmark.md for their meaning."""
    rows = safe_rows(bundle, log)
    worst = np.unravel_index(np.argmin(rows), rows.shape)
    times = log.t[:, None] + bundle.period
    rewards = bundle.program("reward", log.x_true[1:], log.u_safe, times)
    verdicts = log.verdict[log.verdict != UNSHIELDED]
    counts = {name: int(np.sum(verdicts == i)) for i, name in enumerate(VERDICTS)}
    changes = int(np.sum(np.diff(verdicts) != 0)) if len(verdicts) else 0
    duration = log.steps * bundle.period
    shielded = len(verdicts) > 0
    return {
        "robot": bundle.robot,
        "bundle": bundle.name,
        "bundle_hash": bundle.hash,
        "policy_hash": bundle.hashes["policy.onnx"],
        "certificate": bundle.certificate,
        "shielded": shielded,
        "steps": log.steps,
        "duration_s": duration,
        "violations": int(np.sum(~np.all(rows >= 0.0, axis=1))),
        "worst_margin": float(rows[worst]),
        "worst_row": bundle.safe_set_names[int(worst[1])],
        "return": float(rewards.sum()),
        "rmse": rmse(bundle, log),
        "interventions": counts,
        "intervention_rate": 1.0 - counts["PASSED"] / len(verdicts) if shielded else 0.0,
        "mean_intervention": _mean(log.intervention),
        "chatter_per_s": changes / duration if duration else 0.0,
        "reasons": dict(Counter(str(r) for r in log.reason if r)),
        "qp_share": float(np.mean(log.qp_used)) if log.steps else 0.0,
        "shield_us": quantiles(log.shield_us),
        "latency_ms": quantiles(log.latency_us / 1e3),
    }


def rmse(bundle: Bundle, log: FlightLog) -> dict[str, float]:
    """Root mean square of (true state - reference) per tracked state, in its unit."""
    times = np.append(log.t, log.t[-1] + bundle.period if log.steps else 0.0)[:, None]
    error = log.x_true - bundle.program("reference", times)
    names = [c.name for c in bundle.states]
    return {
        name: float(np.sqrt(np.mean(error[:, names.index(name)] ** 2)))
        for name in bundle.task.tracked
    }


def _mean(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else 0.0
