"""What is counted of episodes that fly side by side, and the scores that it comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.kernel.batch import BACKUP, PASSED
from safe_rl_core.metrics import wilson
from safe_rl_core.record import VERDICTS

from safe_rl_training.parts.case import Case

Array = NDArray[np.float64]
#: Seeds of unsafe episodes that are named.
LISTED = 100


class Tally:
    """What is counted of each of B episodes, as arrays (B, ...)."""

    def __init__(self, case: Case, seeds: Sequence[int], drawn: NDArray[np.int64]) -> None:
        count = len(seeds)
        self.case, self.seeds, self.drawn = case, np.array(seeds), drawn
        self.returns, self.moved = np.zeros(count), np.zeros(count)
        self.squares = np.zeros((count, len(case.tracked)))
        self.worst, self.row = np.full(count, math.inf), np.zeros(count, np.int64)
        self.violations, self.changes, self.proposals = np.zeros((3, count), np.int64)
        self.verdicts = np.zeros((count, len(VERDICTS)), np.int64)
        self._last: NDArray[np.int8] | None = None

    def look(self, x: Array, reference: Array) -> None:
        """A true state (B, n) per episode."""
        rows = self.case.kernel.evaluate("safe_set", x)
        least = rows.min(axis=1)
        self.violations += ~(least >= 0.0)
        self.row = np.where(least < self.worst, rows.argmin(axis=1), self.row)
        self.worst = np.minimum(self.worst, least)
        axes = list(self.case.tracked.values())
        self.squares += (x[:, axes] - reference[axes]) ** 2

    def judged(self, proposed: Array, action: Array, verdict: NDArray[np.int8]) -> None:
        """One decision of the shield per episode."""
        there = np.isfinite(proposed).all(axis=1)
        move = (action[there] - proposed[there]) / self.case.input_scale
        self.moved[there] += np.linalg.norm(move, axis=1)
        self.proposals += there
        self.verdicts += verdict[:, None] == np.arange(len(VERDICTS))
        self.changes += 0 if self._last is None else verdict != self._last
        self._last = verdict


def tallied_scores(case: Case, tallies: list[Tally], shielded: bool) -> dict[str, Any]:
    """The scores of docs/benchmark.md over all episodes, ready for JSON, SI units."""

    def all_of(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(tally, name) for tally in tallies])

    returns, seeds, drawn, worst = map(all_of, ("returns", "seeds", "drawn", "worst"))
    total, safe = len(returns), all_of("violations") == 0
    steps, verdicts = total * case.steps, all_of("verdicts").sum(axis=0)
    moved = all_of("moved") / np.maximum(all_of("proposals"), 1)
    pooled = np.sqrt(all_of("squares").sum(axis=0) / (total * (case.steps + 1)))
    at = int(worst.argmin())
    return {
        "episodes": total,
        "steps": steps,
        "shielded": shielded,
        "unsafe_episodes": int((~safe).sum()),
        "unsafe_seeds": seeds[~safe][:LISTED].tolist(),
        "safety_probability": float(safe.mean()),
        "safety_interval_95": list(wilson(int(safe.sum()), total)),
        "violations": int(all_of("violations").sum()),
        "worst_margin": float(worst[at]),
        "worst_row": case.rows[all_of("row")[at]],
        "worst_seed": int(seeds[at]),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(ddof=1)) if total > 1 else 0.0,
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "safe_return_mean": float(returns[safe].mean()) if safe.any() else None,
        "rmse": dict(zip(case.tracked, pooled.tolist(), strict=True)),
        "interventions": dict(zip(VERDICTS, verdicts.tolist(), strict=True)),
        "intervention_rate": float(1.0 - verdicts[PASSED] / steps) if shielded else 0.0,
        "fallback_rate": float(verdicts[BACKUP] / steps),
        "mean_intervention": float(moved.mean()),
        "chatter_per_s": float(all_of("changes").mean() / (case.steps * case.period)),
        "slack_variables": 0,
        "share_of_starts_rejected": float(1.0 - total / drawn.sum()),
    }
