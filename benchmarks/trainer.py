"""Where does the time of phase II go, and how fast is it beside the published runs?

Each learner runs some iterations behind the shield, one thread, after one that is not timed. What
the compiled kernel does is timed around its calls; of a decision, rolling out the backup policy
with its slopes is timed again by itself on the same states, and the rest is projection and judging
the plan of what is sent. What is left is the learner: networks, optimisers, replay.

The published runs took 4.6 h (unicycle, 1.0 million steps) and 13.6 h (quadrotor, 1.5 million) on
one V100 (arXiv 2606.14536). No such machine is at hand: the two columns are of two machines.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from toolbox import machine

if __name__ == "__main__":
    machine.one_thread()

import torch
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.build import batch_kernel, robot_of
from safe_rl_training import learners, projection_layer
from toolbox.report import Cell, Report, Table, run_script, say
from toolbox.shooting import ROOT

ROBOTS = (
    "unicycle_lane_paper",
    "quadrotor_powerloop_paper",
    "unicycle_lane",
    "quadrotor_powerloop",
)
LEARNERS = ("ppo", "gradient", "sac", "published")
#: Env steps per s of the published runs, by robot.
PUBLISHED = {"unicycle": 1.0e6 / (4.6 * 3600), "quadrotor": 1.5e6 / (13.6 * 3600)}
COLUMNS = (
    "robot, learner", "env steps/s", "published, env steps/s", "ratio", "simulation", "rollout",
    "projection and judging", "projection layer", "learner",
)  # fmt: skip


class Watch:
    """Seconds spent in the parts, and the states of the decisions timed."""

    def __init__(self) -> None:
        self.seconds = {"simulation": 0.0, "decision": 0.0, "layer": 0.0}
        self.decided: list[Any] = []

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - begun
                if part == "decision":
                    self.decided.append(arguments[1])

        return timed


@contextmanager
def watched() -> Iterator[Watch]:
    """Time everything that a learner asks of the kernel and of the layer."""
    watch = Watch()
    parts = (
        (BatchKernel, "evaluate", "simulation"),
        (BatchKernel, "decide", "decision"),
        (projection_layer.ProjectionLayer, "forward", "layer"),
    )
    before = [getattr(owner, name) for owner, name, _ in parts]
    for (owner, name, part), call in zip(parts, before, strict=True):
        setattr(owner, name, watch.around(part, call))
    try:
        yield watch
    finally:
        for (owner, name, _), call in zip(parts, before, strict=True):
            setattr(owner, name, call)


def profile(name: str, learner: str, seconds: float) -> tuple[dict[str, float], float]:
    """Shares of the time by part, and env steps per s."""
    robot = robot_of(ROOT / "models" / name)
    settings = learners.settings_of(learner, robot)
    kernel = batch_kernel(robot)
    made = learners.make(robot, settings, 0, 1, "cpu", kernel)
    filled = getattr(settings, "update_after", 0)
    while made.iteration < 1 or made.env_steps < filled:  # until it learns; what is compiled too
        made.iterate()
    made.iterate()
    steps, begun = made.env_steps, time.perf_counter()
    with watched() as watch:
        while time.perf_counter() - begun < seconds:
            made.iterate()
        total = time.perf_counter() - begun
    again = time.perf_counter()
    for x in watch.decided:
        kernel.rows(x)
    rollout = min(time.perf_counter() - again, watch.seconds["decision"])
    parts = {
        "simulation": watch.seconds["simulation"],
        "rollout": rollout,
        "projection and judging": watch.seconds["decision"] - rollout,
        "projection layer": watch.seconds["layer"],
    }
    parts["learner"] = total - sum(parts.values())
    return {part: value / total for part, value in parts.items()}, (made.env_steps - steps) / total


def measure(args: argparse.Namespace) -> Report:
    """The report."""
    torch.set_num_threads(1)
    if args.quick:
        args.robots, args.learners, args.seconds = ROBOTS[:1], ("ppo",), 0.1
    about = machine.describe(("safe_rl_core", "numpy", "torch"))
    report = Report("trainer", (__doc__ or "").splitlines()[0], about)
    table = Table("Time of phase II, one thread, shipped backup policies", COLUMNS)
    for name in args.robots:
        kind = robot_of(ROOT / "models" / name).robot
        for learner in args.learners:
            if learner == "published" and not name.endswith("_paper"):
                continue
            shares, speed = profile(name, learner, args.seconds)
            say(f"{name}, {learner}: {speed:.0f} env steps/s")
            published = PUBLISHED[kind]
            row: list[Cell] = [f"{name}, {learner}", speed, published, speed / published]
            table.rows.append([*row, *(f"{100 * share:.1f} %" for share in shares.values())])
            report.numbers[f"{name}/{learner}"] = {**shares, "steps_per_s": speed}
    report.tables.append(table)
    report.notes.append(
        "Simulation: dynamics, reward, observation and safe set. The layer's backward pass counts "
        "as the learner's. A run trains on as many threads as it is given; the kernel's part is "
        "split over them."
    )
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to run, how long."""
    parser.add_argument("--robots", nargs="+", choices=ROBOTS, default=ROBOTS)
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=LEARNERS)
    parser.add_argument("--seconds", type=float, default=20.0, help="per robot and learner")


if __name__ == "__main__":
    raise SystemExit(run_script("trainer", __doc__ or "", measure, arguments))
