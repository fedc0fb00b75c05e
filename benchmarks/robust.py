"""Does the robust shield keep its theorem in the worst assumed world, and what does it cost?

Both robots fly thousands of runs on the edge of what their certificates assume: disturbance and
estimate error at every period on the edge of their boxes (a quarter of the runs uniform in them,
half on corners that switch at random times, a quarter on the corners that a gradient through the
model picks), one period of delay. Half of the runs have proposals that try to break out, half
those of the bundle's own policy. Every run is flown by each shield from the same start with the
same random numbers:

    robust           as shipped
    nominal          the same bundle behind the nominal shield with its empirical margins
    backup-CBF QP    of the published kind, solved exactly (peer/backup_cbf_qp.py)

Then the price of each margin: the share of the safe set from which the backup policy's plan holds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer.backup_cbf_qp import BackupCbfQp
from safe_rl_core import Bundle, Policy, Shield
from safe_rl_core.adversary import make_proposer
from safe_rl_core.assumed import AssumedPlant
from safe_rl_core.certificate import Certificate
from safe_rl_core.kernel.robust import RobustKernel
from safe_rl_core.loop import operating_state, run_episode
from safe_rl_core.metrics import safe_rows, wilson
from safe_rl_core.record import FlightLog
from safe_rl_core.robust_shield import RobustShield
from toolbox import machine
from toolbox.report import Cell, Report, Table, Target, run_script, say
from toolbox.starts import with_plan

Array = NDArray[np.float64]
#: By proposer and shield.
Scores = dict[tuple[str, str], dict[str, float]]

#: Periods per run: 5 s and 2 s.
STEPS = {"unicycle_robust": 100, "quadrotor_robust": 100}
SHIELDS = {"robust": RobustShield, "nominal": Shield, "backup-CBF QP": BackupCbfQp}
#: Adversary of run i: i modulo 4.
WORLDS = ("uniform", "corner", "corner", "gradient")
#: Proposer of run i: i // 4 modulo 2.
PROPOSERS = ("adversarial", "policy")
#: Runs per line of the file to resume from.
BLOCK = 50
QUANTILE_99 = 2.5758293035489004
#: Largest safe distance below zero that is still rounding, in the unit of h.
ROUNDING = 1e-9


class Runner:
    """Bundle, plants and shields of one process."""

    def __init__(self, name: str) -> None:
        self._bundle = Bundle.load(name)
        self._steps = STEPS[name]
        self._plants = {kind: AssumedPlant(self._bundle, kind) for kind in set(WORLDS)}
        self._shields = {name: make(self._bundle) for name, make in SHIELDS.items()}
        self._policy = Policy(self._bundle)

    def block(self, seeds: range) -> dict[str, Any]:
        """All shields on every seed: the scores by proposer and shield."""
        runs = [self.run(seed) for seed in seeds]
        scores = {
            proposer: {
                shield: added([r[proposer, shield] for r in runs if (proposer, shield) in r])
                for shield in SHIELDS
            }
            for proposer in PROPOSERS
        }
        return {"first": seeds[0], "runs": len(seeds), "scores": scores}

    def run(self, seed: int) -> Scores:
        """One run by every shield."""
        bundle, plant = self._bundle, self._plants[WORLDS[seed % len(WORLDS)]]
        proposer = PROPOSERS[seed // len(WORLDS) % len(PROPOSERS)]
        start = with_plan(self._shields["robust"], plant, seed, np.random.default_rng(seed))
        scores = {}
        for name, shield in self._shields.items():
            propose = self._policy.act
            if proposer != "policy":
                propose = make_proposer(proposer, bundle, np.random.default_rng([seed, 1]))
            log = run_episode(
                bundle, plant, propose, shield, steps=self._steps, seed=seed, x0=start
            )
            scores[proposer, name] = judge(bundle, log)
        return scores


def added(parts: list[dict[str, float]]) -> dict[str, float]:
    """Scores of several runs together: sums, and the smallest `worst`."""
    sums = {key: sum(part[key] for part in parts) for key in _SUMS}
    return sums | {"worst": min((part["worst"] for part in parts), default=np.inf)}


_SUMS = (
    *("runs", "unsafe", "unsafe_states", "states"),
    *("change", "proposals", "passed", "no_way_out"),
)


def judge(bundle: Bundle, log: FlightLog) -> dict[str, float]:
    """Scores of one run; `change` sums |action - proposal in the box| in input scales."""
    least = safe_rows(bundle, log).min(axis=1)
    usable = np.isfinite(log.u_proposed).all(axis=1)
    proposal = np.clip(log.u_proposed[usable], bundle.input_low, bundle.input_high)
    change = np.linalg.norm((log.u_safe[usable] - proposal) / bundle.input_scale, axis=1)
    below = least < -ROUNDING
    blind = ("no_plan_yet", "outside_implicit_set", "qp_infeasible")
    return {
        "runs": 1.0,
        "unsafe": float(below.any()),
        "unsafe_states": float(below.sum()),
        "states": float(len(least)),
        "worst": float(least.min()),
        "change": float(change.sum()),
        "proposals": float(usable.sum()),
        "passed": float((change < 1e-12).sum()),
        "no_way_out": float(np.isin(log.reason, blind).sum()),
    }


def fly(name: str, runs: int, first: int, jobs: int, memory: Path | None) -> Scores:
    """Scores over all runs; blocks that `memory` already holds are not flown again."""
    commit, known, digest = machine.describe(())["commit"], {}, Bundle.load(name).hash
    if memory is not None and memory.exists():
        for line in memory.read_text().splitlines():
            block = json.loads(line)
            if (block["bundle"], block["hash"]) == (name, digest):
                known[block["first"]] = block
    blocks = [range(i, min(i + BLOCK, first + runs)) for i in range(first, first + runs, BLOCK)]
    found = [known[b[0]] for b in blocks if b[0] in known]
    todo, started = [b for b in blocks if b[0] not in known], time.monotonic()
    for done, block in enumerate(_in_processes(name, todo, jobs), 1):
        found.append(block)
        if memory is not None:
            with memory.open("a") as file:
                about = {"bundle": name, "hash": digest, "commit": commit}
                file.write(json.dumps(about | block) + "\n")
        if done % 10 == 0 or done == len(todo):
            spent = time.monotonic() - started
            unsafe = {s: int(_total(found, s)["unsafe"]) for s in SHIELDS}
            left = spent / done * (len(todo) - done)
            say(f"{name}: {sum(b['runs'] for b in found)} runs, {left:.0f} s left, {unsafe}")
    return {(p, s): _total(found, s, (p,)) for p in PROPOSERS for s in SHIELDS}


def _total(
    blocks: list[dict[str, Any]], shield: str, proposers: tuple[str, ...] = PROPOSERS
) -> dict[str, float]:
    return added([b["scores"][p][shield] for b in blocks for p in proposers])


def _in_processes(name: str, blocks: list[range], jobs: int) -> Iterator[dict[str, Any]]:
    Runner(name)  # compiles the kernel once; errors come out plainly
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _start_worker, (name,)) as pool:
        yield from pool.imap_unordered(_fly_block, blocks)


_runner: Runner | None = None  # of a worker process


def _start_worker(name: str) -> None:
    global _runner
    _runner = Runner(name)


def _fly_block(seeds: range) -> dict[str, Any]:
    assert _runner is not None  # set by the pool's initializer
    return _runner.block(seeds)


def rungs(c: Certificate) -> dict[str, Certificate]:
    """Certificates with ever more of the bounds: what each margin costs."""
    exact = {
        "disturbance": 0.0 * c.disturbance,
        "prediction_error": 0.0 * c.prediction_error,
        "tracking_error": 0.0 * c.tracking_error,
    }
    disturbed = exact | {"disturbance": c.disturbance}
    return {
        "exact model, at the samples": replace(
            c, sampling_margin=0.0 * c.sampling_margin, **exact
        ),
        "+ between the samples": replace(c, **exact),
        "+ disturbance": replace(c, **disturbed),
        "+ estimate error and delay (robust)": c,
    }


def shares(name: str, draws: int) -> tuple[dict[str, int], int]:
    """From how many of `draws` states of the safe set the backup policy's plan is VALID."""
    bundle = Bundle.load(name)
    rng, states = np.random.default_rng(0), []
    while len(states) < draws:
        x = operating_state(bundle, rng)
        if (bundle.compiled("safe_set", x) >= 0.0).all():
            states.append(x)
    counts = {}
    for rung, certificate in rungs(bundle.robust).items():
        kernel = RobustKernel.of(replace(bundle, robust=certificate))
        counts[rung] = sum(
            kernel.valid(x, bundle.compiled("backup_policy", x)).holds for x in states
        )
    inside = bundle.program("base_set", np.array(states))[:, 0] >= 0.0
    counts["base set alone"] = int(inside.sum())
    return counts, draws


def measure(args: argparse.Namespace) -> Report:
    """The report."""
    about = machine.describe(("safe_rl_core", "numpy", "osqp"))
    report = Report("robust", __doc__.splitlines()[0], about)
    runs, draws = (40, 100) if args.quick else (args.runs, args.draws)
    report.numbers = {"runs": runs, "first_seed": args.seed, "draws": draws}
    for name in args.bundles:
        scores = fly(name, runs, args.seed, args.jobs, args.resume)
        report.tables.append(_flights(name, scores))
        report.targets += _targets(name, scores)
        report.numbers[name] = {" / ".join(key): value for key, value in scores.items()}
    price = Table(
        "Share of the safe set from which a plan holds (99 % interval)",
        ("bounds", *args.bundles),
    )
    columns = {name: shares(name, draws) for name in args.bundles}
    for rung in next(iter(columns.values()))[0]:
        cells: list[Cell] = [rung]
        for counts, total in columns.values():
            low, high = wilson(counts[rung], total, QUANTILE_99)
            cells.append(f"{counts[rung] / total:.3f} ({low:.3f} to {high:.3f})")
        price.rows.append(cells)
    report.tables.append(price)
    report.notes.append(
        f"Runs of {_lengths(args.bundles)} periods from starts at which the robust shield finds a "
        f"plan (A5), seeds {args.seed} to {args.seed + runs - 1}. Unsafe: "
        "h < 0 at a true state at a sample. Change: mean of |action - proposal| in input scales, "
        "the proposal first clipped to the input box. No way out seen: periods in which the "
        "shield sent an action for which it saw no plan. "
        f"Shares: {draws} states, uniform in the operating box's safe part, the same for all rows."
    )
    return report


def _flights(name: str, scores: Scores) -> Table:
    columns = ("proposals, shield", "unsafe runs", "99 % interval", "unsafe states", "worst h",
               "change", "passed", "no way out seen")  # fmt: skip
    runs = sum(scores[proposer, "robust"]["runs"] for proposer in PROPOSERS)
    table = Table(f"{name}: {runs:.0f} runs by each shield", columns)
    for (proposer, shield), s in scores.items():
        low, high = wilson(int(s["unsafe"]), int(s["runs"]), QUANTILE_99)
        row: list[Cell] = [f"{proposer}, {shield}", f"{s['unsafe']:.0f} of {s['runs']:.0f}"]
        row += [f"{100 * low:.3f} to {100 * high:.3f} %", int(s["unsafe_states"])]
        row += [f"{s['worst']:+.4f}", s["change"] / s["proposals"]]
        row += [f"{100 * s['passed'] / s['proposals']:.1f} %", int(s["no_way_out"])]
        table.rows.append(row)
    return table


def _targets(name: str, scores: Scores) -> Iterator[Target]:
    unsafe = sum(scores[proposer, "robust"]["unsafe"] for proposer in PROPOSERS)
    yield Target(f"{name}: unsafe runs, robust", unsafe, "<=", 0.0)
    for proposer in PROPOSERS:
        ours, theirs = (
            scores[proposer, s]["change"] / scores[proposer, s]["proposals"]
            for s in ("robust", "backup-CBF QP")
        )
        what = f"{name}, {proposer}: change, robust over backup-CBF QP"
        yield Target(what, ours / theirs, "<=", 1.0)


def _lengths(names: list[str]) -> str:
    return " and ".join(str(STEPS[name]) for name in names)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=20_000, help="per robot and shield")
    parser.add_argument("--draws", type=int, default=20_000, help="states for the shares")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--bundles", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="keep finished blocks there, and go on"
    )


if __name__ == "__main__":
    sys.exit(run_script("robust", __doc__, measure, _arguments))
