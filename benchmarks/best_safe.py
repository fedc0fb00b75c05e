"""Which return can a safe controller reach at all?

The whole episode is optimised at once, from a given start and with everything known beforehand: no
policy and no feedback. `toolbox/shooting.py` says how. IPOPT finds local optima; it starts from
several guesses (the reference moved into the safe set, the same disturbed, the backup policy, the
shipped policy behind the shield), and the best is called "best found": nothing proves that there
is no better one. The column "without safe set" says what safety costs at least.

A shield that keeps its promise ends each episode where a way back exists. Without that condition
the optimum is at least as large, and so bounds the shielded policies too; `--recoverable` adds it:
after the last rewarded period, `horizon` further ones stay safe and end in the base set, with any
inputs, so not only those of the robot's own backup policy. "In the implicit set" is the share of
the samples from which the robot's own backup policy is a way out with the same margins: what is
missing to 1 is what the shield refuses, and what a better backup policy could open.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

from toolbox import machine

machine.one_thread()

import numpy as np  # noqa: E402
from safe_rl_systems.build import batch_kernel  # noqa: E402
from safe_rl_systems.robot import Robot  # noqa: E402
from safe_rl_training.robot_source import load_robot  # noqa: E402
from toolbox.report import Cell, Report, Table, run_script, say  # noqa: E402
from toolbox.shooting import (  # noqa: E402
    Best,
    Problem,
    Setting,
    best,
    fly,
    guesses,
    save,
    setting,
    shielded,
    starts,
)

NAMES = (
    "quadrotor_powerloop_paper",
    "quadrotor_powerloop",
    "unicycle_lane_paper",
    "unicycle_lane",
)
COLUMNS = (
    "robot, margins", "periods", "best found", "optima within 0.01 of it", "of guesses",
    "in the implicit set", "without safe set", "shipped policy behind the shield", "stop",
    "drawn starts: mean", "least", "largest",
)  # fmt: skip


def answer(args: argparse.Namespace, robot: Robot, margins: str, report: Report) -> list[Cell]:
    """One robot with one kind of margins; the trajectory from w = 0 is what is saved."""
    duration = robot.duration if args.laps is None else args.laps * robot.task.lap
    steps = math.ceil(duration / robot.system.period - 1e-6)
    case = setting(robot, steps, margins, args.recoverable)
    problem, begins = Problem(case, args.iterations), starts(case, args.starts, args.seed)
    first, *others = (
        best(problem, start, args.seed + i, args.guesses, say) for i, start in enumerate(begins)
    )
    label = f"{robot.name}_{margins}" + (f"_{args.laps}_laps" if args.laps else "")
    label += "_recoverable" if args.recoverable else ""
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        save(args.out / f"{label}.npz", case, first, report.machine)
        draw(args.out / f"{label}.png", case, first)
        say(f"  {args.out / label}.npz")
    start, flight, drawn = begins[0], first.flight, [a.flight.total for a in others]
    free = setting(robot, steps, "off")
    _, states, inputs = next(guesses(free, start, args.seed, 0))
    unsafe = fly(free, start, Problem(free, args.iterations).solve(start, states, inputs), "")
    shipped = shielded(case, start)
    still = fly(case, start, np.tile(robot.stop_action, (steps, 1)), "stop")
    kept = replace(robot, margins=dict(zip(robot.safe_set.names, case.margin, strict=True)))
    recoverable = float((batch_kernel(kept).way_out(flight.states) >= 0.0).mean())
    report.numbers[label] = {
        "steps": steps, "best": flight.total, "found": first.found, "guess": flight.label,
        "beyond_margin": flight.worst, "recoverable_share": recoverable, "drawn": drawn,
        "without_safe_set": unsafe.total, "stop": still.total, "seconds": first.seconds,
        "shipped": shipped.total if shipped else None,
    }  # fmt: skip
    agreeing = sum(value > flight.total - 0.01 for value in first.found.values())
    spread = (float(np.mean(drawn)), min(drawn), max(drawn)) if drawn else (math.nan,) * 3
    return [
        f"{robot.name}, {margins}", steps, flight.total, agreeing, len(first.found), recoverable,
        unsafe.total, shipped.total if shipped else math.nan, still.total, *spread,
    ]  # fmt: skip


def draw(path: Path, case: Setting, found: Best) -> None:
    """The way through the plane that the task uses, the safe rows over time, the inputs."""
    from matplotlib.figure import Figure

    robot, flight, program = case.robot, found.flight, case.compiled.program
    names = [c.name for c in robot.system.states]
    seconds = np.append(0.0, case.times[:, 0])
    figure = Figure(figsize=(12, 7), layout="constrained")
    way, room, inputs = figure.subplot_mosaic([["way", "room"], ["way", "inputs"]]).values()
    up = "pz" if "pz" in names else "py"
    for data, style, label in (
        (program("reference", seconds[:, None]), {"ls": "--", "color": "0.6"}, "reference"),
        (flight.states, {"color": "C0"}, f"best found, return {flight.total:.1f}"),
    ):
        across = data[:, names.index("px")] if "px" in names else seconds
        way.plot(across, data[:, names.index(up)], label=label, **style)
    way.margins(0.1)
    grid = np.meshgrid(*(np.linspace(*limits, 300) for limits in (way.get_xlim(), way.get_ylim())))
    around = np.tile(flight.states.mean(0), (*grid[0].shape, 1))
    for name, values in (("px", grid[0]), (up, grid[1])):
        if name in names:
            around[..., names.index(name)] = values
    way.contour(*grid, program("safe_set", around).min(-1), levels=[0.0], colors="C3")
    way.set(xlabel="px in m" if "px" in names else "t in s", ylabel=f"{up} in m")
    way.set_aspect(
        "auto" if "px" not in names or np.ptp(grid[0]) > 5 * np.ptp(grid[1]) else "equal"
    )
    way.legend(loc="best")
    room.plot(seconds, program("safe_set", flight.states), label=robot.safe_set.names)
    room.axhline(0.0, color="k", lw=1)
    room.legend(fontsize=7, loc="upper right")
    room.set(ylabel="rows of the safe set")
    inputs.step(seconds[:-1], flight.inputs, where="post")
    inputs.legend([f"{c.name} in {c.unit}" for c in robot.system.inputs], fontsize=7)
    inputs.set(xlabel="t in s", ylabel="inputs as sent")
    figure.suptitle(f"{robot.name}: best safe trajectory found")
    figure.savefig(path, dpi=110)


def measure(args: argparse.Namespace) -> Report:
    """Every robot and kind of margins that was asked for."""
    if args.quick:
        args.robots, args.margins, args.guesses, args.starts = NAMES[2:3], ("none",), 0, 0
    about = machine.describe(("safe_rl_core", "casadi", "numpy"))
    report = Report("best_safe", "Which return can a safe controller reach at all?", about)
    found = [
        answer(args, robot, margins, report)
        for robot in map(load_robot, args.robots)
        for margins in args.margins
        # Without margins of its own a robot has only one answer.
        if margins == "none" or robot.margins
    ]
    report.tables.append(Table("Return from the task's start (w = 0)", COLUMNS, found))
    report.notes.append(
        "Local optima: nobody has proved that there is nothing better. Every figure is of a "
        "rollout by the compiled kernel that kept each margin at each sample."
    )
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which robots, how many starts and guesses, how long."""
    kinds = ("none", "bundle")
    parser.add_argument("--robots", nargs="+", default=NAMES, help="names or files")
    parser.add_argument("--margins", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--out", type=Path, help="folder for trajectories and pictures")
    parser.add_argument("--laps", type=int, help="instead of one episode")
    parser.add_argument("--starts", type=int, default=0, help="drawn starts beside w = 0")
    parser.add_argument("--guesses", type=int, default=3, help="disturbed guesses per start")
    parser.add_argument("--iterations", type=int, default=500, help="of IPOPT, per guess")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recoverable", action="store_true", help="see above")


if __name__ == "__main__":
    raise SystemExit(run_script("best_safe", __doc__ or "", measure, arguments))
