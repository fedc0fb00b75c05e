"""How fast is the ROS chain: steps per second in lockstep, latencies in real time?

Lockstep: the quadrotor's stack as `make run` starts it (policy, shield, PyBullet, with and without
recorder), one OS process per node, unpaced; and the chain alone: three processes with the same
topics, messages and executor that compute nothing.
Real time: policy, shield and recorder as shipped, clock-driven, behind a vehicle that steps the
model and measures (chain/probe.py), at several rates. Round trip: state published by the vehicle
to command received by the vehicle. State to command: the shield's own account, from the state's
arrival to its command, the policy's answer being in between. Beside each run a process that only
sleeps and wakes tells what the machine itself adds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from safe_rl.runner import ros_environment, run_stack
from safe_rl.stack import NodeSpec, stack
from toolbox import machine
from toolbox.report import Report, Table, Target, run_script, say
from toolbox.timing import quantiles

HERE = Path(__file__).parent
PACKAGES = ("safe_rl_core", "safe_rl_ros", "numpy", "onnxruntime", "pybullet", "ros-rclpy")
BUNDLE = HERE.parent / "models" / "quadrotor_powerloop"
RATES = (50, 100, 200, 500)
#: Name, plant and recorder of the stacks that run in lockstep.
STACKS = (
    ("whole stack, PyBullet, recorder", "sim", True),
    ("whole stack, PyBullet, no recorder", "sim", False),
    ("whole stack, model, recorder", "model", True),
)
#: How long the nodes take to come up, for the process that runs beside them.
STARTING_S = 3.0
#: The rate whose latency was asked for.
ACCEPTED_RATE = 100
#: What the simulation says when it ends.
ENDED = re.compile(r"(\d+) periods in ([\d.]+) s")


class Failed(Exception):
    """A stack did not run to its end."""


def run(specs: tuple[NodeSpec, ...]) -> list[str]:
    """Run a stack to its end; what its nodes said."""
    lines: list[str] = []
    paths = [str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = ros_environment() | {"PYTHONPATH": os.pathsep.join(paths)}
    code = run_stack(specs, env=env, echo=lines.append)
    if code:
        said = "\n".join(lines[-20:])
        raise Failed(f"the stack ended with code {code}; its last lines:\n{said}")
    return lines


def full_stack(laps: int, plant: str, record: Path | None) -> float:
    """Lockstep steps per second of the shipped stack."""
    specs = stack("quadrotor", plant=plant, bundle=str(BUNDLE), laps=laps, record=record)
    for line in run(specs):
        found = ENDED.search(line)
        if found:
            return int(found[1]) / float(found[2])
    raise Failed("the simulation did not say how long it took")


def probe(output: Path, others: tuple[NodeSpec, ...], **parameters: Any) -> dict[str, Any]:
    """Run nodes behind the measuring vehicle; its result."""
    values = {"bundle": str(BUNDLE), "output": str(output), "listeners": len(others), **parameters}
    vehicle = NodeSpec("benchmarks", "sim", "chain.probe", values, ends_stack=True)
    run((*others, vehicle))
    return json.loads(output.read_text())


def echoes() -> tuple[NodeSpec, ...]:
    """Policy and shield that compute nothing."""
    return tuple(NodeSpec("benchmarks", name, "chain.echo") for name in ("policy", "shield"))


def shipped(record: Path) -> tuple[NodeSpec, ...]:
    """Policy, shield and recorder, driven by the clock."""
    specs = stack("quadrotor", plant="model", bundle=str(BUNDLE), lockstep=False, record=record)
    return tuple(replace(spec, required=True) for spec in specs if not spec.ends_stack)


def real_time(folder: Path, rate: int, periods: int) -> tuple[dict[str, Any], list[float]]:
    """One rate: the vehicle's result, and the lateness of a process that only sleeps."""
    seconds = str(periods / rate + STARTING_S)
    with subprocess.Popen(
        [sys.executable, str(HERE / "chain" / "jitter.py"), str(rate), seconds],
        stdout=subprocess.PIPE, text=True,
    ) as sleeper:  # fmt: skip
        result = probe(
            folder / f"{rate}.json", shipped(folder / f"record{rate}"),
            rate=float(rate), periods=periods, lockstep=False, plant=True,
        )  # fmt: skip
        late, _ = sleeper.communicate()
    return result, json.loads(late)


def measure(args: argparse.Namespace) -> Report:
    """Lockstep first, then each rate."""
    report = Report("ros_round_trip", (__doc__ or "").split("\n")[0], machine.describe(PACKAGES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _lockstep(report, folder, args.quick)
        _real_time(report, folder, args)
    return report


def _lockstep(report: Report, folder: Path, quick: bool) -> None:
    laps, steps, runs = (2, 500, 1) if quick else (20, 5_000, 3)
    table = Table(
        "Lockstep, steps per second", ("what", "best run", "runs", "round trip median, µs")
    )
    chains = []
    for i in range(runs):
        say(f"lockstep, chain alone, run {i + 1} of {runs} …")
        chains.append(
            probe(folder / "chain.json", echoes(), periods=steps, lockstep=True, plant=False)
        )
    best = max(chains, key=lambda result: result["steps_per_s"])
    alone = best["steps_per_s"]
    table.rows.append(
        ["chain alone: three processes that compute nothing", alone, runs,
         quantiles(best["round_trip_us"])["p50"]]
    )  # fmt: skip
    figures = {"chain alone": alone}
    for what, plant, recorded in STACKS[:1] if quick else STACKS:
        rates = []
        for i in range(runs):
            say(f"lockstep, {what}, run {i + 1} of {runs} …")
            record = folder / f"{plant}{recorded}{i}" if recorded else None
            rates.append(full_stack(laps, plant, record))
        figures[what] = max(rates)
        table.rows.append([what, max(rates), runs, "–"])
    report.tables.append(table)
    report.numbers["lockstep"] = figures
    report.targets += [
        Target("whole stack in lockstep, recorder on",
               figures["whole stack, PyBullet, recorder"], ">=", 500.0, "steps/s"),
        Target("chain alone in lockstep", alone, ">=", 1200.0, "steps/s"),
    ]  # fmt: skip


def _real_time(report: Report, folder: Path, args: argparse.Namespace) -> None:
    table = Table(
        "Real time, ms: median / p99 / max",
        ("rate", "periods", "state to command (shield)", "round trip (vehicle)",
         "unanswered", "vehicle's timer late", "sleeping process late"),
    )  # fmt: skip
    for rate in (ACCEPTED_RATE,) if args.quick else RATES:
        accepted = rate == ACCEPTED_RATE
        periods = 300 if args.quick else args.periods if accepted else min(10 * rate, args.periods)
        say(f"real time, {rate} Hz, {periods} periods …")
        result, late = real_time(folder, rate, periods)
        columns = {
            "state_to_command_us": quantiles(result["shield_latency_us"]),
            "round_trip_us": quantiles(result["round_trip_us"]),
            "timer_late_us": quantiles(result["timer_late_us"]),
            "sleeper_late_us": quantiles(late),
        }
        cells = [_three(q) for q in columns.values()]
        table.rows.append(
            [f"{rate} Hz", periods, cells[0], cells[1], result["unanswered"], cells[2], cells[3]]
        )
        report.numbers[f"{rate} Hz"] = columns | {"unanswered": result["unanswered"]}
        if accepted:
            p99 = columns["state_to_command_us"]["p99"] / 1e3
            report.targets.append(
                Target("state received to command published, p99 at 100 Hz", p99, "<=", 5.0, "ms")
            )
    report.tables.append(table)


def _three(q: dict[str, float]) -> str:
    return " / ".join(f"{q[name] / 1e3:.2f}" for name in ("p50", "p99", "max"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This script's own options."""
    parser.add_argument(
        "--periods", type=int, default=10_000,
        help="control periods at 100 Hz (other rates: ten seconds at most)",
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run_script("ros_round_trip", __doc__ or "", measure, add_arguments))
