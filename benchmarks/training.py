"""What does training behind the shield bring, against a shield that is only put in front?

Rows: the tracker that phase II may begin with (models/trackers), without a shield, behind it with
the analytic backup policy and with the shipped one; every trained PS2 policy that lies in --models
or --runs; the backup policies alone; and "stop". The scores are those of docs/benchmark.md.
`paper` and `model` are flown in batches on the bundle's own equations, from starts with a way out;
`bullet` in full physics as `safe-rl simulate --plant bullet` does it, from the task's starts, by
policies only.

    python benchmarks/training.py --runs runs --resume runs/comparison --best best_safe.json

The safe reward needs the best known safe returns: the JSON of best_safe.py. An unfinished
comparison goes on by --resume: it holds a JSON file per row, found again by the bundle's hash.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safe_rl.episodes import Episode, Scenario, fly_all
from safe_rl.scores import aggregate
from safe_rl_core import Bundle
from safe_rl_systems.build import BACKUP
from safe_rl_training.parts.policy_file import policy_function
from safe_rl_training.shielded_evaluation import evaluate_shielded, safe_reward
from toolbox import machine
from toolbox.kept import kept
from toolbox.report import Cell, Report, Table, run_script, say, text
from toolbox.trackers import tracker_bundle

ROOT = Path(__file__).parents[1]
ROBOTS = ("quadrotor_powerloop", "unicycle_lane")
PLANTS = ("paper", "model", "bullet")
COLUMNS = (
    "who flies", "unsafe episodes", "safety, 95 %", "safe reward", "return", "worst margin",
    "RMSE", "intervention rate", "moved by", "verdict changes, 1/s", "fallback rate",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One row: who proposes ("onnx", "backup" or "stop"), in which bundle, and its name."""

    name: str
    folder: Path
    policy: str
    shielded: bool = True


@dataclass(frozen=True)
class Asked:
    """What a stored row must have been flown with to be used again."""

    plant: str
    bundle_hash: str
    policy: str
    shielded: bool
    episodes: int
    seed: int
    noise: float


def entries(name: str, models: Path, runs: Path, kept: Path) -> Iterator[Entry]:
    """The rows of one bundle's name, in the order of the table."""
    shipped = models / name
    trackers = kept / "trackers"
    analytic = tracker_bundle(shipped, trackers / "analytic", analytic=True).path
    yield Entry("tracker, unshielded", analytic, "onnx", shielded=False)
    yield Entry("tracker + shield, analytic backup", analytic, "onnx")
    if (shipped / BACKUP).is_file():
        behind = tracker_bundle(shipped, trackers / "shipped").path
        yield Entry("tracker + shield, shipped backup", behind, "onnx")
    if json.loads((shipped / "training.json").read_text()).get("algorithm") == "ps2":
        yield Entry("PS2, shipped", shipped, "onnx")
    learned = []
    for label, folder in trained(name, runs):
        yield Entry(label, folder, "onnx")
        if (folder / BACKUP).is_file():
            learned.append(Entry(f"backup alone ({label})", folder, "backup"))
    yield Entry("backup alone, shipped", shipped, "backup")
    yield from learned
    yield Entry("stop", shipped, "stop")


def trained(name: str, runs: Path) -> list[tuple[str, Path]]:
    """Row name and bundle of every finished run of `safe-rl train ps2` for this bundle."""
    found = []
    for account in sorted(runs.rglob("training.json")):
        folder = account.parent / name
        if not (folder / "bundle.yaml").is_file():
            continue
        record = json.loads(account.read_text())
        if record.get("algorithm") == "ps2" and not record["quick"]:
            learner, backup = (record[key] for key in ("learner", "backup"))
            seed = int(record["provenance"]["seed"])
            found.append((backup, learner, seed, folder))
    several = len({learner for _, learner, _, _ in found} - {"published"}) > 1
    who = {"published": "published recipe"} | ({} if several else {"staged": "PS2"})
    return [
        (f"{who.get(learner, f'PS2 ({learner})')}, {backup} backup, seed {seed}", folder)
        for backup, learner, seed, folder in sorted(found)
    ]


def scores_of(args: argparse.Namespace, plant: str, entry: Entry) -> dict[str, Any]:
    """A row's scores, from --resume if it was flown before."""
    bundle = Bundle.load(entry.folder)
    episodes, noise = (args.flights, args.noise) if plant == "bullet" else (args.episodes, 0.0)
    asked = Asked(plant, bundle.hash, entry.policy, entry.shielded, episodes, args.seed, noise)
    shield = "shielded" if entry.shielded else "bare"
    file = f"{plant}_{bundle.name}_{bundle.hash[:12]}_{entry.policy}_{shield}.json"

    def fly() -> dict[str, Any]:
        begun = time.monotonic()
        scores = (in_physics if plant == "bullet" else on_equations)(bundle, entry, episodes, args)
        say(f"{plant}, {bundle.name}, {entry.name}: {time.monotonic() - begun:.0f} s")
        return scores

    return kept(args.resume / file, asdict(asked), fly)


def on_equations(
    bundle: Bundle, entry: Entry, episodes: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Batched episodes on the bundle's own equations."""
    policy = policy_function(bundle.policy_path)[0] if entry.policy == "onnx" else entry.policy
    return evaluate_shielded(
        bundle, policy, episodes, args.seed, args.jobs, shielded=entry.shielded, say=say
    )


def in_physics(
    bundle: Bundle, entry: Entry, episodes: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Flights in PyBullet, in the same words as the batched scores."""
    steps = round(bundle.task.duration_s / bundle.period)
    scenario = Scenario(
        str(bundle.path), "bullet", entry.policy, entry.shielded, steps, "task", args.noise,
        nominal=True,
    )  # fmt: skip
    found = fly_all(scenario, args.seed, episodes, args.jobs, _unheard)
    scores = aggregate(found)
    safe = [e.summary["return"] for e in found if not e.summary["violations"]]
    flat = {f"return_{key}": value for key, value in scores.pop("return").items()}
    return {**scores, **flat, "safe_return_mean": float(np.mean(safe)) if safe else None}


def _unheard(episode: Episode) -> None:
    """Nobody waits for single flights."""


def best_returns(path: Path | None) -> dict[str, float]:
    """Per bundle the best known safe return, with its own margins where they were tried."""
    if path is None:
        return {}
    numbers: Mapping[str, Any] = json.loads(path.read_text())["numbers"]
    found = {}
    for margins in ("none", "bundle"):
        for label, values in numbers.items():
            name, _, kind = label.rpartition("_")
            if kind == margins:
                found[name] = float(np.mean(values["drawn"] or [values["best"]]))
    return found


def cells(entry: Entry, scores: Mapping[str, Any], reward: float) -> list[Cell]:
    """A row of the table."""
    low, high = scores["safety_interval_95"]
    rmse = ", ".join(f"{axis} {text(value)}" for axis, value in scores["rmse"].items())
    row: list[Cell] = [
        entry.name,
        f"{scores['unsafe_episodes']} of {scores['episodes']}",
        f"{low:.5f} to {high:.5f}",
        reward,
        f"{text(scores['return_mean'])} ± {text(scores['return_std'])}",
        f"{scores['worst_margin']:+.4f} ({scores['worst_row']})",
        rmse,
    ]
    if not entry.shielded:
        return [*row, *["–"] * 4]
    return [
        *row,
        f"{100 * scores['intervention_rate']:.1f} %",
        scores["mean_intervention"],
        scores["chatter_per_s"],
        f"{100 * scores['fallback_rate']:.2f} %",
    ]


def table(args: argparse.Namespace, plant: str, robot: str, report: Report) -> Table:
    """All rows of one robot on one plant."""
    name = robot
    if plant == "paper":
        name = Bundle.load(args.models / robot).variants["paper"]
    rows = list(entries(name, args.models, args.runs, args.resume))
    if plant == "bullet":
        rows = [entry for entry in rows if entry.policy == "onnx"]
    found = {entry: scores_of(args, plant, entry) for entry in rows}
    stop = next((scores for entry, scores in found.items() if entry.policy == "stop"), None)
    best = best_returns(args.best).get(name)
    result = Table(f"{name}, plant {plant}", COLUMNS)
    for entry, scores in found.items():
        reward = math.nan
        if stop is not None and best is not None:
            reward = safe_reward(scores, stop["return_mean"], best)
        result.rows.append(cells(entry, scores, reward))
        numbers = {**scores, "safe_reward": None if math.isnan(reward) else reward}
        report.numbers[f"{plant}/{name}/{entry.name}"] = numbers
    return result


def measure(args: argparse.Namespace) -> Report:
    """The report."""
    torch.set_num_threads(1)
    if args.quick:
        args.episodes, args.flights = min(args.episodes, 16), min(args.flights, 2)
    about = machine.describe(("safe_rl_core", "numpy", "torch", "pybullet"))
    report = Report("training", (__doc__ or "").splitlines()[0], about)
    for robot in args.robots:
        for plant in args.plants:
            report.tables.append(table(args, plant, robot, report))
    if not any(key.split("/")[-1].startswith("PS2") for key in report.numbers):
        report.notes.append("No PS2 policy was found: its rows are missing.")
    report.notes.append(
        f"Seeds from {args.seed} on; {args.episodes} episodes per row, {args.flights} in full "
        f"physics (sensor noise {args.noise:g}), behind the nominal shield. Safety: share of "
        "episodes in which every true state at a sample is safe, Wilson interval. Safe reward: "
        '(return − that of "stop") / (best known safe return − that of "stop"), means over the '
        "episodes, 0 for an unsafe one; – without a best known return. Moved by: mean "
        "norm of (action − proposal) / input_scale. No row uses a slack variable."
    )
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to fly, how often, and where it is kept."""
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="shipped bundles")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="of safe-rl train ps2")
    parser.add_argument("--robots", nargs="+", choices=ROBOTS, default=ROBOTS)
    parser.add_argument("--plants", nargs="+", choices=PLANTS, default=PLANTS)
    parser.add_argument("--episodes", type=int, default=10_000, help="per row, paper and model")
    parser.add_argument("--flights", type=int, default=100, help="per row, bullet")
    parser.add_argument("--noise", type=float, default=1.0, help="of bullet's sensors")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--best", type=Path, metavar="FILE", help="the JSON of best_safe.py")
    kept = ROOT / "runs" / "comparison"
    parser.add_argument("--resume", type=Path, default=kept, metavar="DIR", help="a JSON per row")


if __name__ == "__main__":
    raise SystemExit(run_script("training", __doc__ or "", measure, arguments))
