"""Many runs of the pipeline at once: seeds, a grid of settings, and what they come to.

    OUT/<key>/         one run, as pipeline.py leaves it
    OUT/jobs/<key>.json   its result; what is there is neither run nor counted again
    OUT/summary.json   mean and standard deviation over the seeds, per point of the grid

A sweep is a YAML file of lists, for instance

    learner: [staged, sac]
    actor_rate: [1.0e-4, 3.0e-4]

`backup` and `learner` are the options of these names, the rest are settings of the learner. On a
cluster every machine must see OUT under the same path (and a robot's own file, too).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from safe_rl_core.errors import ModelError

from safe_rl_training.cluster import Jobs, run_jobs
from safe_rl_training.pipeline import train
from safe_rl_training.plan import Plan
from safe_rl_training.robot_source import load_robot

_OPTIONS = ("backup", "learner")
#: name in the summary -> where it stands in a job's result
FIGURES = {
    "return": ("evaluation", "ps2", "return_mean"),
    "unsafe episodes": ("evaluation", "ps2", "unsafe_episodes"),
    "episodes": ("evaluation", "ps2", "episodes"),
    "intervention rate": ("evaluation", "ps2", "intervention_rate"),
    "backup alone": ("evaluation", "backup", "return_mean"),
    "unshielded": ("evaluation", "unshielded", "return_mean"),
    "training steps": ("phase2", "env_steps"),
    "training violations": ("phase2", "violations"),
    "minutes": ("minutes",),
}


def read_sweep(path: Path) -> dict[str, list[Any]]:
    """The grid of a YAML file."""
    if not path.is_file():
        raise ModelError(f"no sweep file {path}")
    try:
        grid = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ModelError(f"{path} is no YAML: {error}") from error
    if not isinstance(grid, dict) or not grid:
        raise ModelError(f"{path}: expected `name: [value, …]` per line")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ModelError(
                f"{path}: {name} must be a list of at least one value, got {values!r}"
            )
    return {str(name): values for name, values in grid.items()}


def points(plan: Plan, grid: Mapping[str, Sequence[Any]]) -> dict[str, Plan]:
    """The plans of a grid by name; without a grid the plan alone, under the robot's name."""
    robot = load_robot(plan.source)
    if not grid:
        return {robot.name: plan}
    found = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        options = {name: chosen.pop(name) for name in _OPTIONS if name in chosen}
        point = replace(plan, **options, changes={**plan.changes, **chosen})
        point.learner_settings(robot)  # refuses early
        found[",".join(f"{k}={_short(v)}" for k, v in (options | chosen).items())] = point
    return found


def run_study(
    plan: Plan,
    out: Path,
    *,
    seeds: int,
    grid: Mapping[str, Sequence[Any]],
    cluster: str | None = None,
    processes: int = 1,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """All points with seeds `plan.seed` and the following; the summary."""
    if out.exists() and any(out.iterdir()) and not resume:
        raise ModelError(f"{out} exists; go on with it by --resume, or name another --out")
    plans = points(plan, grid)
    jobs = {
        f"{name},seed={seed}" if grid else f"seed={seed}": {
            "point": name,
            "plan": asdict(replace(each, seed=seed)),
        }
        for name, each in plans.items()
        for seed in range(plan.seed, plan.seed + seeds)
    }
    keyed = {key: {**job, "key": key} for key, job in jobs.items()}
    say(f"{len(plans)} setting(s) x {seeds} seed(s) = {len(jobs)} runs, in {out}")
    # The folder is no part of the job: a study may be moved and then resumed.
    work = Jobs(partial(run_one, str(out.resolve())), keyed, out / "jobs", cpus=plan.threads)
    results = run_jobs(work, cluster, processes, say)
    summary = {
        "seeds": list(range(plan.seed, plan.seed + seeds)),
        "points": {
            name: summarise([results[key] for key, job in keyed.items() if job["point"] == name])
            for name in plans
        },
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for line in table(summary):
        say(line)
    return summary


def run_one(folder: str, job: dict[str, Any]) -> dict[str, Any]:
    """One run of the pipeline, on whatever machine; goes on where a lost worker was."""
    out = Path(folder) / job["key"]
    plan = Plan(**job["plan"])
    record = train(plan, out, resume=(out / "run.json").is_file(), say=_quiet)
    minutes = sum(record["seconds"].values()) / 60.0
    kept = ("evaluation", "phase1", "phase2", "seconds")
    return {"minutes": minutes, **{name: record[name] for name in kept if name in record}}


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation (of a sample) and the values of every figure that is there."""
    found = {}
    for name, path in FIGURES.items():
        values = [float(value) for value in (_at(r, path) for r in results) if value is not None]
        if values:
            mean = sum(values) / len(values)
            spread = sum((value - mean) ** 2 for value in values)
            std = math.sqrt(spread / (len(values) - 1)) if len(values) > 1 else None
            found[name] = {"mean": mean, "std": std, "values": values}
    return found


def table(summary: Mapping[str, Any]) -> list[str]:
    """The summary as lines for people."""
    lines = []
    for name, figures in summary["points"].items():
        lines += ["", f"{name}, {len(summary['seeds'])} seed(s)"]
        for figure, value in figures.items():
            spread = "" if value["std"] is None else f" ± {value['std']:.4g}"
            lines.append(f"  {figure:<20} {value['mean']:>12.6g}{spread}")
    return lines


def _at(result: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = result
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _quiet(text: str) -> None:
    """Runs beside one another say nothing; their TensorBoard logs do."""
