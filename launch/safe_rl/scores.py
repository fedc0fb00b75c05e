"""Scores over many episodes, and how they read in a table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from safe_rl_core.metrics import wilson

from safe_rl.episodes import Episode
from safe_rl.report.judgement import safety_statement
from safe_rl.report.text import Row, counts, percentiles, quantity, rmse


def aggregate(episodes: list[Episode]) -> dict[str, Any]:
    """Scores of episodes of one scenario, ready for JSON. Times in µs, the rest in SI units.

    An episode is unsafe when any true state in it lies outside the safe set. RMSE is pooled over
    all states; the return's standard deviation is that of the sample.
    """
    parts = [episode.summary for episode in episodes]
    total = len(parts)
    steps = sum(part["steps"] for part in parts)
    unsafe = [e.seed for e in episodes if e.summary["violations"]]
    worst = min(episodes, key=lambda episode: episode.summary["worst_margin"])
    verdicts = _sum(part["interventions"] for part in parts)
    returns = np.array([part["return"] for part in parts])
    low, high = wilson(total - len(unsafe), total)
    judged = sum(verdicts.values())
    return {
        "episodes": total,
        "steps": steps,
        "unsafe_episodes": len(unsafe),
        "unsafe_seeds": unsafe[:100],
        "safety_probability": (total - len(unsafe)) / total,
        "safety_interval_95": [low, high],
        "violations": sum(part["violations"] for part in parts),
        "worst_margin": worst.summary["worst_margin"],
        "worst_row": worst.summary["worst_row"],
        "worst_seed": worst.seed,
        "return": {
            "mean": float(returns.mean()),
            "std": float(returns.std(ddof=1)) if total > 1 else 0.0,
            "min": float(returns.min()),
            "max": float(returns.max()),
        },
        "rmse": {
            axis: float(np.sqrt(np.mean([part["rmse"][axis] ** 2 for part in parts])))
            for axis in parts[0]["rmse"]
        },
        "interventions": verdicts,
        "reasons": dict(_sum(part["reasons"] for part in parts).most_common()),
        "intervention_rate": 1.0 - verdicts["PASSED"] / judged if judged else 0.0,
        "fallback_rate": verdicts["BACKUP"] / judged if judged else 0.0,
        "mean_intervention": float(np.mean([part["mean_intervention"] for part in parts])),
        "chatter_per_s": float(np.mean([part["chatter_per_s"] for part in parts])),
        "qp_share": float(np.mean([part["qp_share"] for part in parts])),
        "shield_us": _times(episodes),
    }


def score_rows(scores: dict[str, Any]) -> list[Row]:
    """The table of `safe-rl simulate`."""
    total, steps, back = scores["episodes"], scores["steps"], scores["return"]
    rows = [
        Row("safety probability", safety_statement(scores["unsafe_episodes"], total)),
        Row(
            "violations",
            f"{scores['violations']} states in {scores['unsafe_episodes']} of {total} episodes, "
            f"{steps} steps",
        ),
        Row(
            "worst margin",
            f"{scores['worst_margin']:+.6f} ({scores['worst_row']}), seed {scores['worst_seed']}",
        ),
        Row("return", f"{quantity(back['mean'])} ± {quantity(back['std'])} (mean, std)"),
        Row("RMSE to the reference", rmse(scores["rmse"])),
    ]
    if not sum(scores["interventions"].values()):
        return rows
    return [
        *rows,
        Row("verdicts", counts(scores["interventions"], steps)),
        Row("reasons", counts(scores["reasons"], steps)),
        Row("fallback rate", f"{100.0 * scores['fallback_rate']:.2f} % of steps flew the backup"),
        Row(
            "actions moved by", f"{quantity(scores['mean_intervention'])} input scales on average"
        ),
        Row("changes of verdict", f"{scores['chatter_per_s']:.2f} per s"),
        Row("slack", "none: the projection has no slack variable"),
        Row("shield step", percentiles(scores["shield_us"], "µs")),
    ]


def _sum(parts: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def _times(episodes: list[Episode]) -> dict[str, float] | None:
    values = np.concatenate([episode.shield_us for episode in episodes])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    p50, p99, p999 = np.quantile(values, (0.5, 0.99, 0.999))
    return {"p50": float(p50), "p99": float(p99), "p99.9": float(p999), "max": float(values.max())}
