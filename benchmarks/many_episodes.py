"""Is there an unsafe episode among very many, of the trained policy or of an adversary?

Every nominal bundle is flown in batches on its own equations behind the nominal shield: by its
policy from the task's starts, and by proposals that try to break out from anywhere in the
operating box with a way out. It goes in pieces that stay in --resume, so it can be stopped.

    python benchmarks/many_episodes.py --episodes 100000
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from safe_rl_core import Bundle
from safe_rl_training.montecarlo import pooled
from safe_rl_training.parts.policy_file import policy_function
from safe_rl_training.shielded_evaluation import evaluate_shielded
from toolbox import machine
from toolbox.kept import kept
from toolbox.report import Report, Table, Target, run_script, say

ROOT = Path(__file__).parents[1]
BUNDLES = (
    "unicycle_lane_paper", "unicycle_lane", "quadrotor_powerloop_paper", "quadrotor_powerloop",
)  # fmt: skip
#: Who proposes -> where the episodes begin.
FROM = {"its policy": "task", "adversary": "recoverable"}
COLUMNS = (
    "bundle", "proposals", "episodes", "steps", "unsafe episodes", "safety, 95 %",
    "least margin", "intervention rate", "fallback rate", "minutes",
)  # fmt: skip


def scores_of(args: argparse.Namespace, bundle: Bundle, who: str) -> dict[str, Any]:
    """All episodes of one row, from pieces; with the seconds that they took."""
    pieces = []
    for first in range(args.seed, args.seed + args.episodes, args.piece):
        count = min(args.piece, args.seed + args.episodes - first)
        asked = {"bundle": bundle.hash, "who": who, "seed": first, "episodes": count}
        file = f"{bundle.name}_{bundle.hash[:12]}_{who.split()[-1]}_{first}.json"
        pieces.append(kept(args.resume / file, asked, lambda a=asked: fly(args, bundle, a)))
    return {**pooled(pieces), "seconds": sum(piece["seconds"] for piece in pieces)}


def fly(args: argparse.Namespace, bundle: Bundle, asked: dict[str, Any]) -> dict[str, Any]:
    """The scores of one piece."""
    own, begun = asked["who"] == "its policy", time.monotonic()
    policy = policy_function(bundle.policy_path)[0] if own else "adversarial"
    scores = evaluate_shielded(
        bundle, policy, asked["episodes"], asked["seed"], args.jobs, starts=FROM[asked["who"]]
    )
    seconds = time.monotonic() - begun
    say(f"{bundle.name}, {asked['who']}, from seed {asked['seed']}: {seconds:.0f} s")
    return {**scores, "seconds": seconds}


def measure(args: argparse.Namespace) -> Report:
    """The report."""
    torch.set_num_threads(1)
    if args.quick:
        args.episodes, args.piece = min(args.episodes, 8), 4
    about = machine.describe(("safe_rl_core", "numpy", "torch"))
    report = Report("many_episodes", (__doc__ or "").splitlines()[0], about)
    table = Table("Behind the nominal shield, on the bundle's own equations", COLUMNS)
    for name in args.bundles:
        bundle = Bundle.load(args.models / name)
        for who in FROM:
            scores = scores_of(args, bundle, who)
            low, high = scores["safety_interval_95"]
            table.rows.append(
                [
                    name, who, scores["episodes"], scores["steps"], scores["unsafe_episodes"],
                    f"{low:.6f} to {high:.6f}",
                    f"{scores['worst_margin']:+.2g} ({scores['worst_row']})",
                    f"{100 * scores['intervention_rate']:.1f} %",
                    f"{100 * scores['fallback_rate']:.2f} %", scores["seconds"] / 60.0,
                ]
            )  # fmt: skip
            report.numbers[f"{name}/{who}"] = {**scores, "bundle_hash": bundle.hash}
    report.tables.append(table)
    unsafe = sum(row["unsafe_episodes"] for row in report.numbers.values())
    report.targets.append(Target("unsafe episodes, all rows", unsafe, "<=", 0))
    report.notes.append(
        f"Seeds from {args.seed} on. Unsafe: some true state at a sample outside of the safe set; "
        "Wilson interval. Least margin: the smallest value of a row of the safe set at any "
        "sample, in the row's unit. The shield has no slack variables. That no state is unsafe is "
        "what its rollout guarantees as long as these equations are the robot's; the count is "
        "there to find a mistake in the code."
    )
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to fly, how often, and where it is kept."""
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="shipped bundles")
    parser.add_argument("--bundles", nargs="+", default=BUNDLES, metavar="NAME")
    parser.add_argument("--episodes", type=int, default=100_000, help="per row")
    parser.add_argument("--piece", type=int, default=10_000, help="episodes kept at once")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    folder = ROOT / "runs" / "many_episodes"
    parser.add_argument("--resume", type=Path, default=folder, metavar="DIR", help="its pieces")


if __name__ == "__main__":
    raise SystemExit(run_script("many_episodes", __doc__ or "", measure, arguments))
