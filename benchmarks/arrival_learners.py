"""Which learner of phase I opens the largest implicit set on the same budget?

The gradient through the rollout of the soft reach-avoid margin, and TD3 with each of two value
functions: the published safe-arrival one and the sign-exact reach-avoid one, both finite-horizon.
Each gets the same CPU time: the time of one iteration is measured first, and the learner is told
how many it has, because its schedules depend on that. Ten times in between its network is scored
on held-out states, and the best is kept. Beside them the analytic law, and its gains tuned by
cross-entropy on the same measure. All shares are of the same fresh states, saved by the kernel of
the nominal shield at the robot's own horizon.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from typing import Any

from toolbox import machine

if __name__ == "__main__":
    machine.one_thread()

import torch
from safe_rl_systems.backup.learned import with_backup
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_training.arrival_rollout import RolloutArrival, RolloutSettings
from safe_rl_training.arrival_td3 import TdArrival, TdSettings
from safe_rl_training.arrival_tuning import with_tuning
from safe_rl_training.parts.arrival import safe_states
from safe_rl_training.parts.arrival_measures import published_grid, saved, saver, share
from safe_rl_training.safe_arrival import ArrivalSettings, Learner, baseline
from toolbox.report import Cell, Report, Table, run_script, say

BUDGETS = {"unicycle_lane_paper": 120.0, "quadrotor_powerloop_paper": 480.0}
LEARNERS = ("gradient", "TD3, safe-arrival value", "TD3, reach-avoid value")
HELD_OUT, FRESH = 8192, 40_000
#: Apart from every seed that a learner draws with.
HELD_OUT_SEED, FRESH_SEED = 10**9, 2 * 10**9
SELECTIONS, TIMED = 10, 3
COLUMNS = (
    "robot, backup policy", "CPU s", "iterations", "saved, share of the safe set", "99 % interval",
    "published grid",
)  # fmt: skip


def made(name: str, robot: Robot, iterations: int | None, seed: int) -> Learner:
    """A learner with that many iterations; None: with those of its settings."""
    if name == "gradient":
        rollout = RolloutSettings(compiled=False)
        updates = rollout.updates if iterations is None else iterations * rollout.block
        return RolloutArrival(robot, replace(rollout, updates=updates), seed)
    td = TdSettings(value="reach_avoid" if "reach-avoid" in name else "safe_arrival")
    return TdArrival(robot, td if iterations is None else replace(td, iterations=iterations), seed)


def iterations_for(name: str, robot: Robot, budget: float) -> int:
    """How many iterations take `budget` CPU seconds."""
    learner = made(name, robot, None, 0)
    for _ in range(SELECTIONS * TIMED):  # TD3 only collects at first
        begun = time.process_time()
        learner.iterate()
        spent = time.process_time() - begun
        if getattr(learner, "env_steps", math.inf) >= getattr(learner.settings, "warmup", 0):
            break
    begun = time.process_time()
    for _ in range(TIMED):
        learner.iterate()
    spent = (time.process_time() - begun) / TIMED
    return max(SELECTIONS, round(budget / spent))


def learned(name: str, robot: Robot, budget: float, seed: int) -> tuple[Robot, int, float]:
    """The robot with the best network, its iterations and CPU seconds without scoring."""
    count = iterations_for(name, robot, budget)
    learner, best, score, spent = made(name, robot, count, seed), robot, -1.0, 0.0
    held_out = states(robot, HELD_OUT, HELD_OUT_SEED)
    for k in range(count):
        begun = time.process_time()
        learner.iterate()
        spent += time.process_time() - begun
        if (k + 1) % math.ceil(count / SELECTIONS) == 0 or k + 1 == count:
            found = with_backup(robot, learner.layers)
            value = float(saved(found, held_out, None).mean())
            say(f"{robot.name}, {name}: {k + 1} of {count}, {spent:.0f} s, saves {value:.4f}")
            if value > score:
                best, score = found, value
    return best, count, spent


def states(robot: Robot, count: int, seed: int) -> Any:
    """Uniform over the safe set within the operating box (count, n)."""
    return safe_states(robot, count, torch.Generator().manual_seed(seed)).double().numpy()


def row(label: str, robot: Robot, spent: float, count: int, report: Report) -> list[Cell]:
    """One line of the table."""
    found = share(saved(robot, states(robot, FRESH, FRESH_SEED), None))
    grid = math.nan
    if robot.name == "unicycle_lane_paper":
        grid = published_grid(robot, saver(robot, None), robot.horizon)["share"]
    report.numbers[f"{robot.name}/{label}"] = {**found, "cpu_s": spent, "grid": grid}
    interval = f"{found['low']:.3f} to {found['high']:.3f}"
    return [f"{robot.name}, {label}", spent, count, found["share"], interval, grid]


def measure(args: argparse.Namespace) -> Report:
    """The report."""
    torch.set_num_threads(1)
    settings = ArrivalSettings()
    if args.quick:
        settings, args.robots, args.share = ArrivalSettings.quick(), ["unicycle_lane_paper"], 0.01
    about = machine.describe(("safe_rl_core", "numpy", "torch"))
    report = Report("arrival_learners", (__doc__ or "").splitlines()[0], about)
    table = Table("Implicit sets on the same budget, one thread", COLUMNS)
    for name in args.robots:
        robot, budget = ROBOTS[name](), args.share * BUDGETS[name]
        table.rows.append(row("analytic", robot, 0.0, 0, report))
        begun = time.process_time()
        _, tuning = baseline(robot, settings, args.seed, None, say)
        if tuning is not None:
            tuned = with_tuning(robot, tuning)
            generations = settings.tuning.generations
            spent = time.process_time() - begun
            table.rows.append(row("tuned gains", tuned, spent, generations, report))
        for learner in LEARNERS:
            found, count, spent = learned(learner, robot, budget, args.seed)
            table.rows.append(row(learner, found, spent, count, report))
    report.tables.append(table)
    report.notes.append(
        f"Seed {args.seed}. Saved: the plan of the backup policy keeps every margin over the "
        "horizon and ends in the base set. Published grid: 201 x 201 x 121 states of the "
        "unicycle, without margins; its optimum is that of arrival_optimum.py. "
        "CPU s: of the learner alone, without scoring its networks; eager, so that no budget goes "
        "into compiling, which the shipped runs do."
    )
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to learn, how long."""
    parser.add_argument("--robots", nargs="+", choices=tuple(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--share", type=float, default=1.0, help="of the budgets")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(run_script("arrival_learners", __doc__ or "", measure, arguments))
