"""What do a robust step, its record and the audit of a flight cost?

Both robots fly a minute on the edge of what their certificates assume, in one process: disturbance
and estimate error on corners that switch at random times, every proposal from a strategy that
tries to break out, drawn anew every three seconds. Every answer is recorded in a signed chain, as
the node does it. Then the chain is audited by as many processes as `safe-rl audit` takes by
default.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safe_rl.commands.audit import in_processes
from safe_rl_core import Bundle, RobustShield
from safe_rl_core.adversary import make_proposer
from safe_rl_core.assumed import AssumedPlant
from safe_rl_core.audit import audit
from safe_rl_core.chain import ChainWriter, header_of
from safe_rl_core.loop import Proposer
from safe_rl_core.robust_shield import record_of
from toolbox import machine
from toolbox.report import Cell, Report, Table, Target, run_script, say
from toolbox.starts import with_plan
from toolbox.timing import quantiles

Array = NDArray[np.float64]
BUNDLES = ("unicycle_robust", "quadrotor_robust")
#: Processes of the audit; seconds of one strategy; s that a step may take, p50 and p99.
JOBS, STRATEGY_S = 2, 3.0
LIMITS = {"unicycle_robust": (300.0, 300.0), "quadrotor_robust": (1000.0, 3000.0)}


@dataclass
class Flight:
    """Times in µs and sizes in bytes of every period, and the chain."""

    seconds: float
    chain: bytes = b""
    times: dict[str, list[float]] = field(
        default_factory=lambda: {"step": [], "sigma": [], "record": []}
    )
    plain: list[int] = field(default_factory=list)
    with_plan: list[int] = field(default_factory=list)
    plan_floats: int = 0


def fly(bundle: Bundle, seconds: float) -> Flight:
    """One flight with its record."""
    shield, plant = RobustShield(bundle), AssumedPlant(bundle, "corner")
    rng, flight, pieces = np.random.default_rng(0), Flight(seconds), []
    x = plant.reset(0, with_plan(shield, plant, 0, rng))
    writer = ChainWriter(header_of(bundle, "simulated"))
    propose: Proposer = make_proposer("adversarial", bundle, rng)
    for k in range(round(seconds / bundle.period)):
        if k % round(STRATEGY_S / bundle.period) == 0:
            propose = make_proposer("adversarial", bundle, rng)
        proposal = propose(x, plant.time)
        result = _timed(flight.times["step"], lambda x=x, u=proposal: shield.step(x, u))
        sigma = _timed(flight.times["sigma"], shield.sigma)
        record = record_of(round(plant.time * 1e9), result, sigma)
        piece = _timed(flight.times["record"], lambda record=record: writer.append(record))
        committed = result.decision.inputs is not None
        if k:  # the first piece carries the header
            (flight.with_plan if committed else flight.plain).append(len(piece))
        pieces.append(piece)
        x = plant.step(result.action)
    flight.chain = b"".join([*pieces, writer.close()])
    flight.plan_floats = len(bundle.states) + (bundle.horizon + 1) * len(bundle.inputs)
    return flight


def _timed(times: list[float], call: Callable[[], object]) -> object:
    begin = time.perf_counter()
    result = call()
    times.append((time.perf_counter() - begin) * 1e6)
    return result


def measure(args: argparse.Namespace) -> Report:
    """The report."""
    report = Report(
        "evidence", __doc__.splitlines()[0],
        machine.describe(("safe_rl_core", "numpy", "osqp", "pynacl", "python-flint")),
    )  # fmt: skip
    steps = Table("Each period, µs", ("what", "median", "p99", "max"))
    sizes = Table("Record and audit", ("robot", "bytes without plan", "bytes with plan",
                                       "of them the plan", "flight, s", "audit, s", "× real time",
                                       "accepted"))  # fmt: skip
    for name in BUNDLES:
        bundle = Bundle.load(name)
        flight = fly(bundle, 4.0 if args.quick else args.seconds)
        say(f"{name}: flown, audit")
        begin = time.perf_counter()
        found = audit(flight.chain, Path(bundle.path), spread=in_processes(JOBS))
        spent = time.perf_counter() - begin
        for what, times in flight.times.items():
            q = quantiles(times)
            steps.rows.append([f"{name}: {what}", q["p50"], q["p99"], q["max"]])
        plain, full = max(flight.plain, default=0), max(flight.with_plan, default=0)
        row: list[Cell] = [name, plain, full, 8 * flight.plan_floats, flight.seconds, spent]
        sizes.rows.append([*row, flight.seconds / spent, "yes" if found.accepted else "no"])
        report.numbers[name] = {"accepted": found.accepted, "audit_s": spent}
        p50, p99 = LIMITS[name]
        step, write = quantiles(flight.times["step"]), quantiles(flight.times["record"])
        report.targets += [
            Target(f"{name}: step, median", step["p50"], "<=", p50, "µs"),
            Target(f"{name}: step, p99", step["p99"], "<=", p99, "µs"),
            Target(f"{name}: record, median", write["p50"], "<=", 100.0, "µs"),
            Target(f"{name}: record without the plan's numbers",
                   full - 8 * flight.plan_floats, "<=", 1000, "bytes"),
            Target(f"{name}: audit", flight.seconds / spent, ">=", 5.0, "× real time"),
        ]  # fmt: skip
    report.tables += [steps, sizes]
    report.notes.append(
        "Step: RobustShield.step. Sigma and record come after the command is out. Bytes: the "
        f"largest, signatures included. The audit runs in {JOBS} processes and includes starting "
        "them; a plan is recorded where a new one is committed, in nearly every period."
    )
    return report


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="of flight per robot")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(run_script("evidence", __doc__, measure, _arguments))
