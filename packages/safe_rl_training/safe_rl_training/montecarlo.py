"""The final evaluation in pieces on many machines: the same episodes as in one go, pooled.

An episode is decided by its seed alone (`shielded_evaluation.py`), so pieces of consecutive seeds
are jobs of `cluster.py`: a piece that was lost flies again and is counted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safe_rl_core.bundle import file_hash
from safe_rl_core.metrics import wilson

from safe_rl_training.cluster import Jobs, run_jobs
from safe_rl_training.parts.policy_file import policy_function
from safe_rl_training.parts.tally import LISTED
from safe_rl_training.phase_one import stored_backup
from safe_rl_training.robot_source import load_robot
from safe_rl_training.shielded_evaluation import evaluate_shielded

POLICY = Path("phase2") / "policy.onnx"
PIECE = 250


def evaluate_in_pieces(
    out: Path,
    source: str,
    backup: str,
    proposals: Mapping[str, tuple[str, bool]],
    *,
    episodes: int,
    seed: int,
    threads: int,
    cluster: str | None,
    piece: int = PIECE,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Scores by name of the finished run in `out`.

    `proposals`: name -> (what `evaluate_shielded` takes, or "policy" for the run's own; shielded).
    """
    policy = file_hash(out / POLICY)
    jobs = {
        f"{name},seed={first}": {
            "name": name,
            "proposal": proposal,
            "shielded": shielded,
            "source": source,
            "backup": backup,
            "policy": policy,
            "seed": first,
            "episodes": min(piece, seed + episodes - first),
            "threads": threads,
        }
        for name, (proposal, shielded) in proposals.items()
        for first in range(seed, seed + episodes, piece)
    }
    work = Jobs(partial(fly_piece, str(out.resolve())), jobs, out / "evaluation", cpus=threads)
    results = run_jobs(work, cluster, say=say)
    return {
        name: pooled([results[key] for key, job in jobs.items() if job["name"] == name])
        for name in proposals
    }


def fly_piece(folder: str, job: dict[str, Any]) -> dict[str, Any]:
    """The scores of one piece, on whatever machine."""
    out = Path(folder)
    robot = stored_backup(load_robot(job["source"]), job["backup"], out / "phase1").robot
    own = job["proposal"] == "policy"
    policy = policy_function(out / POLICY)[0] if own else job["proposal"]
    return evaluate_shielded(
        robot, policy, job["episodes"], job["seed"], job["threads"], shielded=job["shielded"]
    )


def pooled(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of all episodes from those of pieces, all but `steps_per_s`."""
    first = pieces[0]
    counts = [piece["episodes"] for piece in pieces]
    total = sum(counts)

    def mean(values: Sequence[float], weights: Sequence[float] = counts) -> float:
        pairs = zip(values, weights, strict=True)
        return math.fsum(v * w for v, w in pairs) / math.fsum(weights)

    def each(name: str) -> list[Any]:
        return [piece[name] for piece in pieces]

    unsafe = sum(each("unsafe_episodes"))
    worst = min(pieces, key=lambda piece: piece["worst_margin"])
    safe = [(p["safe_return_mean"], p["episodes"] - p["unsafe_episodes"]) for p in pieces]
    safe = [(value, count) for value, count in safe if count]
    average = mean(each("return_mean"))
    squares = math.fsum(
        (n - 1) * p["return_std"] ** 2 + n * (p["return_mean"] - average) ** 2
        for n, p in zip(counts, pieces, strict=True)
    )
    drawn = sum(p["episodes"] / (1.0 - p["share_of_starts_rejected"]) for p in pieces)
    rates = ("intervention_rate", "fallback_rate", "mean_intervention", "chatter_per_s")
    return {
        "episodes": total,
        "steps": sum(each("steps")),
        "shielded": first["shielded"],
        "unsafe_episodes": unsafe,
        "unsafe_seeds": [seed for piece in pieces for seed in piece["unsafe_seeds"]][:LISTED],
        "safety_probability": (total - unsafe) / total,
        "safety_interval_95": list(wilson(total - unsafe, total)),
        "violations": sum(each("violations")),
        **{name: worst[name] for name in ("worst_margin", "worst_row", "worst_seed")},
        "return_mean": average,
        "return_std": math.sqrt(squares / (total - 1)) if total > 1 else 0.0,
        "return_min": min(each("return_min")),
        "return_max": max(each("return_max")),
        "safe_return_mean": mean(*zip(*safe, strict=True)) if safe else None,
        "rmse": {
            axis: math.sqrt(mean([piece["rmse"][axis] ** 2 for piece in pieces]))
            for axis in first["rmse"]
        },
        "interventions": {
            name: sum(piece["interventions"][name] for piece in pieces)
            for name in first["interventions"]
        },
        **{name: mean(each(name)) for name in rates},
        "slack_variables": 0,
        "share_of_starts_rejected": 1.0 - total / drawn,
    }
