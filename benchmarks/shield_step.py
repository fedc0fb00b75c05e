"""How long does the shield's step take, and how far is it from the flop limit?

Kernel: what the C library does in one step, called from Python: backup rollout with its m + 1
tangents, rows, look at every row (scan) and, where the proposal is not allowed, the exact
projection on the right active set with its check of every row. Beside it the verification rollout.
Limit: the floating-point operations of rollout, tangents, rows and scans (counted from the traced
program, rule in toolbox/flops.py) at the multiply-add rate that the same compiler reaches on this
machine in this run, on one thread.
Shield: `Shield.step` as a node calls it, over closed-loop states under the task policy and under
an adversary in turns, plant = the model.
All in float64. A row's violation is in units of v = u / input_scale, rows having unit length.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from toolbox import machine

machine.one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from safe_rl_core.kernel import Kernel, Rows  # noqa: E402
from safe_rl_core.projection import TOLERANCE  # noqa: E402
from safe_rl_core.shield import Reason, Shield  # noqa: E402
from toolbox.cases import EPISODE, Case, cases, episodes, shipped, training_steps  # noqa: E402
from toolbox.flops import rows_flops, scan_flops, verify_flops  # noqa: E402
from toolbox.peak import Peak  # noqa: E402
from toolbox.report import Report, Table, Target, run_script, say  # noqa: E402
from toolbox.timing import fastest, quantiles, undisturbed  # noqa: E402

Array = NDArray[np.float64]
PACKAGES = ("safe_rl_core", "numpy", "osqp", "onnxruntime", "torch")
#: Every so many steps the same work is done on the same numbers: what it varies by is the machine.
NOISE_EVERY = 5


@dataclass(frozen=True)
class Flown:
    """Measurements over closed-loop states, times in µs."""

    total: Array
    stages: dict[str, Array]
    qp: Array
    share_qp: float
    worst_violation: float
    noise: Array
    pairs: list[tuple[Array, Array, bool]]


def fly(case: Case, count: int) -> Flown:
    """Step the shield along `count` closed-loop states."""
    shield, other = Shield(case.bundle), case.bundle.kernel()
    scale, total, noise, pairs = case.bundle.input_scale, np.zeros(count), [], []
    stages = {name: np.zeros(count) for name in ("kernel", "qp", "verify", "total")}
    used, worst, done = np.zeros(count, bool), 0.0, 0
    fixed = None
    with undisturbed():
        for plant, propose, x in episodes(case.bundle, seed=1):
            shield.reset()
            fixed = x.copy() if fixed is None else fixed
            for _ in range(EPISODE):
                proposal = propose(x, plant.time)
                start = perf_counter_ns()
                result = shield.step(x, proposal)
                total[done] = (perf_counter_ns() - start) / 1e3
                for name, values in stages.items():
                    values[done] = result.times_us[name]
                used[done] = result.qp_used
                if result.reason in (Reason.PROPOSAL_SAFE, Reason.PROJECTED):
                    worst = min(worst, shield.kernel.scan(result.action / scale)[1])
                if done % 50 == 0 and proposal is not None and np.isfinite(proposal).all():
                    pairs.append((shield.predict(x), proposal / scale, result.qp_used))
                if done % NOISE_EVERY == 0:
                    start = perf_counter_ns()
                    other.rows(fixed)
                    noise.append((perf_counter_ns() - start) / 1e3)
                x = plant.step(result.action)
                done += 1
                if done == count:
                    qp = stages["qp"][used]
                    return Flown(
                        total, stages, qp, float(used.mean()), -worst, np.array(noise), pairs
                    )
    raise AssertionError("episodes never end")


def active_set(kernel: Kernel, rows: Rows, v_d: Array) -> list[int] | None:
    """Rows that the exact projection of v_d (m,) rests on; None if there is no projection."""
    v, _ = kernel.project(v_d)
    if v is None:
        return None
    slack = np.abs(rows.a.T @ v - rows.b)
    close = [int(r) for r in np.argsort(slack)[: 2 * kernel.m] if slack[r] < 1e-8]
    for size in range(1, kernel.m + 1):
        for choice in itertools.combinations(close, size):
            if kernel.repair(v_d, list(choice)) is not None:
                return list(choice)
    return None


def kernel_times(
    case: Case, pairs: list[tuple[Array, Array, bool]], repetitions: int
) -> dict[str, Any]:
    """Per state the fastest of some repetitions in µs; the median over the states is told."""
    kernel = case.bundle.kernel()
    times: dict[str, list[float]] = {"rows": [], "verify": [], "kernel": [], "projection": []}
    for x, v_d, _ in pairs:
        rows = kernel.rows(x)
        active = active_set(kernel, rows, v_d) if kernel.scan(v_d)[1] < -TOLERANCE else []
        if active is None:
            continue
        u = v_d * case.bundle.input_scale

        def whole(x: Array = x, v_d: Array = v_d, active: list[int] = active) -> None:
            kernel.rows(x)
            kernel.scan(v_d)
            if active:
                kernel.repair(v_d, active)

        times["rows"].append(fastest(lambda x=x: kernel.rows(x), repetitions))
        times["verify"].append(fastest(lambda x=x, u=u: kernel.verify(x, u), repetitions))
        times["kernel"].append(fastest(whole, repetitions))
        if active:
            repair = lambda v_d=v_d, active=active: kernel.repair(v_d, active)  # noqa: E731
            times["projection"].append(fastest(repair, repetitions))
    return {
        name: float(np.median(values)) if values else float("nan")
        for name, values in times.items()
    }


def measure(args: argparse.Namespace) -> Report:
    """All cases."""
    torch.set_num_threads(1)
    report = Report("shield_step", (__doc__ or "").split("\n")[0], machine.describe(PACKAGES))
    count, repetitions = (1_000, 5) if args.quick else (args.states, 30)
    say("peak multiply-add rate …")
    peak = Peak()
    peak.measure()
    results = []
    for case in [*cases(training_steps(args.quick), say), *shipped()]:
        if args.quick and case.bundle.horizon > 100:
            continue
        say(f"{case.label}: {count} closed-loop steps …")
        flown = fly(case, count)
        peak.measure(50)
        times = kernel_times(case, flown.pairs[:200], repetitions)
        results.append((case, flown, times))
    _tables(report, results, peak, count)
    return report


def _tables(report: Report, results: list[Any], peak: Peak, count: int) -> None:
    kernel = Table(
        f"Kernel, µs (peak {peak.flop_per_ns:.1f} Gflop/s, {8 * peak.vector_bytes}-bit vectors)",
        ("robot", "Mflop", "limit", "rollout + tangents + rows", "+ scan + projection", "× limit",
         "verification", "× its limit"),
    )  # fmt: skip
    step = Table(
        f"Shield.step, µs, over {count} closed-loop states",
        ("robot", "median", "p99", "p99.9", "max", "QP needed", "OSQP part when needed",
         "of it p99", "kernel", "verification", "rest", "worst row violation"),
    )  # fmt: skip
    noise = Table(
        "The machine's own tail, µs: rollout, tangents and rows of one and the same state",
        ("robot", "min", "median", "p99", "p99.9", "max"),
    )
    for case, flown, times in results:
        bundle = case.bundle
        flop = rows_flops(bundle) + 2 * scan_flops(bundle)
        limit, verify_limit = peak.microseconds(flop), peak.microseconds(verify_flops(bundle))
        ratio = times["kernel"] / limit
        kernel.rows.append(
            [case.label, flop / 1e6, limit, times["rows"], times["kernel"], ratio,
             times["verify"], times["verify"] / verify_limit]
        )  # fmt: skip
        q, s = quantiles(flown.total), flown.stages
        rest = np.median(s["total"] - s["kernel"] - s["qp"] - s["verify"])
        step.rows.append(
            [case.label, q["p50"], q["p99"], q["p999"], q["max"], f"{100 * flown.share_qp:.0f} %",
             float(np.median(flown.qp)), quantiles(flown.qp)["p99"], float(np.median(s["kernel"])),
             float(np.median(s["verify"])), float(rest), flown.worst_violation]
        )  # fmt: skip
        n = quantiles(flown.noise)
        noise.rows.append([case.label, n["min"], n["p50"], n["p99"], n["p999"], n["max"]])
        report.numbers[case.key] = {
            "flop": flop, "limit_us": limit, "times_us": times, "ratio": ratio,
            "shield_us": q, "qp_us": quantiles(flown.qp), "share_qp": flown.share_qp,
            "stages_us": {name: quantiles(v) for name, v in s.items()},
            "worst_violation": flown.worst_violation, "noise_us": n,
        }  # fmt: skip
        _targets(report, case, ratio, q["p50"], float(np.median(flown.qp)), flown.worst_violation)
    report.tables += [kernel, step, noise]
    report.notes.append(
        "The limit is the multiply-add rate, so it is out of reach for the analytic backups: "
        "their time goes into chains of divisions, roots and sines that no vector shortens, and "
        "into the calls from Python (1 to 2 µs each). Times are the fastest of 30 per state, "
        "then the median over 200 states (kernel), or quantiles over all states (Shield.step)."
    )


def _targets(
    report: Report, case: Case, ratio: float, median: float, qp: float, worst: float
) -> None:
    label = case.label
    if case.backup == "neural" and case.bundle.horizon <= 100:
        report.targets.append(Target(f"kernel: {label}", ratio, "<=", 2.5, "× limit"))
    if case.bundle.robot == "quadrotor" and case.backup != "neural":
        report.targets.append(Target(f"Shield.step median: {label}", median, "<=", 200.0, "µs"))
    report.targets.append(Target(f"OSQP part when needed: {label}", qp, "<=", 70.0, "µs"))
    report.targets.append(Target(f"worst row violation: {label}", worst, "<=", 1e-9))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This script's own options."""
    parser.add_argument("--states", type=int, default=30_000, help="closed-loop states per case")


if __name__ == "__main__":
    raise SystemExit(run_script("shield_step", __doc__ or "", measure, add_arguments))
