"""How long does it take to prove a base set, and how large is it?

Every set is proved anew by the generator (slopes in intervals, cells, multipliers, Cholesky in
intervals), on one core. The independent check of a robust bundle's set is part of
`safe-rl verify` and not timed here.

    robust bundles     the sets that are shipped, under the assumptions of their certificates
    published plants   no disturbance, no estimate error: the published sets at the published
                       level, the largest level that can be proved of them, and sets for the same
                       plants from `python -m safe_rl_systems.verification.synthesis`

A proof ends as proved, as refuted with a state from which one step leads out of the set, or as
open when `--cells` or `--seconds` are used up: then nothing is known.
"""

from __future__ import annotations

import argparse
from functools import partial
from math import gamma, pi
from typing import Any

from toolbox import machine

machine.one_thread()

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from safe_rl_core import Bundle  # noqa: E402
from safe_rl_systems.robot import ROBOTS  # noqa: E402
from safe_rl_systems.verification.base_problem import BaseProblem  # noqa: E402
from safe_rl_systems.verification.base_set import BaseProof, Settings, prove  # noqa: E402
from safe_rl_systems.verification.certify import CELL_SPLITS  # noqa: E402
from safe_rl_systems.verification.levels import largest_level  # noqa: E402
from safe_rl_systems.verification.published import (  # noqa: E402
    published_problem,
    redesigned_problem,
)
from toolbox.report import Cell, Report, Table, Target, run_script, say  # noqa: E402

Array = NDArray[np.float64]
PACKAGES = ("safe_rl_core", "safe_rl_systems", "numpy")
#: The channels (py, theta, v) and (pz, v, tilt): what the volumes are taken over.
CHANNELS = {"unicycle": (0, 1, 2), "quadrotor": (2, 3, 4, 5, 6, 7, 8)}
#: Robot with the published regulator, its levels (the published one first; 5 is what
#: `quadrotor_powerloop_paper` flies with), and the levels to search between.
PUBLISHED = {
    "unicycle": ("unicycle_lane_paper", (0.3,), 0.3, 1.4),
    "quadrotor": ("quadrotor_powerloop_paper", (8.0, 5.0), 5.0, 8.0),
}
QUICK_LOW = {"unicycle": 0.3, "quadrotor": 0.5}


def volume(factor: Array, channels: tuple[int, ...]) -> float:
    """Of the projection of {|L'e| <= 1} onto some channels."""
    spread = np.linalg.inv(factor @ factor.T)[np.ix_(channels, channels)]
    k = len(channels)
    return float(pi ** (k / 2) / gamma(k / 2 + 1) * np.sqrt(np.linalg.det(spread)))


def shipped_problem(name: str) -> BaseProblem:
    """The base set of a robust bundle under the bounds of its certificate."""
    bundle = Bundle.load(name)
    given, base = bundle.robust, bundle.robust.base
    return BaseProblem(
        program=bundle.program,
        schedule=base.schedule,
        input=base.input,
        input_low=bundle.input_low,
        input_high=bundle.input_high,
        gain=base.gain,
        factor=base.factor,
        disturbance=given.disturbance,
        tracking_error=given.tracking_error,
        cell_directions=base.cell_directions,
        symmetries=tuple(tuple(int(s) for s in row) for row in base.symmetries),
    )


def settings(problem: BaseProblem, args: argparse.Namespace) -> Settings:
    """One process, the limits of the command line."""
    return Settings(
        cell_splits=(CELL_SPLITS,) * len(problem.cell_directions),
        max_cells=args.cells,
        max_seconds=args.seconds,
        workers=1,
        samples=5_000 if args.quick else 100_000,
    )


def measure(args: argparse.Namespace) -> Report:
    """Prove everything."""
    report = Report("certification", __doc__.splitlines()[0], machine.describe(PACKAGES))
    if args.quick:
        args.cells = min(args.cells, 3_000)
    _shipped(report, args)
    for robot in PUBLISHED:
        _published(report, args, robot)
    report.notes.append(
        "Contraction, disturbance and estimate error are shares of the set's radius; a set is "
        "invariant when they add up to at most 1. Furthest: the longest step that a search found, "
        "without disturbance and error (with them, where it refutes), on that scale. Volumes: "
        "(py, θ, v) in m·rad·m/s for the unicycle, (pz, v, tilt) in m (m/s)³ rad³ for the "
        "quadrotor; a robust quadrotor set has (px, py) too and is projected, because those are "
        "free in the published sets. The "
        "robust sets belong to other plants (exact flow, other input limits) and to an adversary; "
        "the published plants know neither disturbance nor error nor delay. Cells: all "
        "that were bounded; leaves: those that make up the proof. Seconds: search for "
        f"counterexamples and proof, one core, at most {args.cells} cells and "
        f"{args.seconds:.0f} s of cells per proof."
    )
    return report


def _shipped(report: Report, args: argparse.Namespace) -> None:
    table = Table(
        "Robust bundles as shipped",
        ("set", "answer", "contraction + disturbance + estimate error", "furthest", "cells",
         "leaves", "s", "volume"),
    )  # fmt: skip
    for robot, channels in CHANNELS.items():
        name = f"{robot}_robust"
        problem = shipped_problem(name)
        proof = prove(problem, settings(problem, args))
        say(f"{name}: {proof.status}, {proof.seconds:.1f} s")
        size = volume(problem.factor, channels)
        shares = (proof.contraction, proof.disturbance_norm, proof.estimate_norm)
        text = " + ".join(f"{share:.4f}" for share in shares)
        table.rows.append([name, proof.status, text, proof.nominal.value, *_effort(proof), size])
        report.numbers[name] = _numbers(proof, size)
        report.targets.append(
            Target(f"{name}: proved in", _seconds_if_proved(proof), "<=", 240.0, "s")
        )
    report.tables.append(table)


def _published(report: Report, args: argparse.Namespace, robot: str) -> None:
    name, levels, low, high = PUBLISHED[robot]
    at = partial(published_problem, ROBOTS[name]())
    limits = settings(at(low), args)
    proofs = {f"published, c = {level:g}": prove(at(level), limits) for level in levels}
    found = largest_level(
        at, limits, QUICK_LOW[robot] if args.quick else low, high,
        0.5 if args.quick else 0.01, lambda c, p: say(f"{robot}, c = {c:.3f}: {p.status}"),
    )  # fmt: skip
    proofs[f"published, largest level proved, c = {found.level:.3g}"] = found.proof
    ours = redesigned_problem(ROBOTS[name](), f"{robot}_paper")
    proofs["ours for the same plant"] = prove(ours, limits)
    table = Table(
        f"Published {robot}, no disturbance",
        ("set", "answer", "furthest", "cells", "leaves", "s", "volume", "of the largest proved"),
    )
    reference = found.proof.problem.volume
    for label, proof in proofs.items():
        size = proof.problem.volume
        table.rows.append(
            [label, proof.status, _furthest(proof), *_effort(proof), size,
             f"{size / reference:.3g} ×"]
        )  # fmt: skip
        report.numbers[f"{robot}: {label}"] = _numbers(proof, size)
    report.tables.append(table)
    report.notes.append(
        f"Published {robot}: c = {found.next_level:.3g} ended as {found.obstacle.status} "
        f"({found.obstacle.advice.partition(';')[0]}). " + (
            f"No level up to {high:g} is refuted." if np.isinf(found.refuted_level)
            else f"From c = {found.refuted_level:.3g} on, levels are refuted."
        )
    )  # fmt: skip
    proved = proofs["ours for the same plant"].proved
    ratio = ours.volume / reference if proved else np.nan
    what = f"{robot}: volume of ours, proved, to the largest level proved of the published"
    report.targets.append(Target(what, ratio, ">=", 1.0, "×"))


def _effort(proof: BaseProof) -> list[Cell]:
    return [proof.state.cells, len(proof.state.leaves_low), proof.seconds]


def _furthest(proof: BaseProof) -> float:
    return proof.worst.value if proof.status == "refuted" else proof.nominal.value


def _seconds_if_proved(proof: BaseProof) -> float:
    return proof.seconds if proof.proved else np.nan


def _numbers(proof: BaseProof, size: float) -> dict[str, Any]:
    problem = proof.problem
    return {
        "status": proof.status, "contraction": proof.contraction,
        "disturbance_norm": proof.disturbance_norm, "estimate_norm": proof.estimate_norm,
        "furthest": _furthest(proof), "cells": proof.state.cells,
        "leaves": len(proof.state.leaves_low), "seconds": proof.seconds, "volume": size,
        "half_widths": problem.extent.tolist(), "disturbance": problem.disturbance.tolist(),
        "tracking_error": problem.tracking_error.tolist(), "advice": proof.advice,
        "counterexample": proof.worst.e.tolist() if proof.status == "refuted" else None,
    }  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This script's own options."""
    parser.add_argument("--cells", type=int, default=200_000, help="most cells per proof")
    parser.add_argument("--seconds", type=float, default=600.0, help="most seconds per proof")


if __name__ == "__main__":
    raise SystemExit(run_script("certification", __doc__ or "", measure, add_arguments))
