"""Derives a bundle's certificate again: every bound and the base set, in ball arithmetic.

    report = check(Path("models/unicycle_robust"))

reads certificate.json, certificate.npz, bundle.yaml and program.txt, and shares nothing else with
whoever wrote them. A claimed bound is accepted when balls over ever smaller boxes stay below it;
what cannot be shown is refused, true or not. Every finding says how it was settled: "proved" in
ball arithmetic, "checked" at random points (identities between formulas), "assumed", "refused".
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flint import ctx

from safe_rl_core.audit import base_check, bound_check, claims, formula_check
from safe_rl_core.audit.claims import Claims
from safe_rl_core.errors import SafeRLError

BITS, BUDGET = 96, 60_000
#: What a malformed file or an impossible number raises.
_ERRORS = (SafeRLError, OSError, ValueError, LookupError, TypeError, ArithmeticError)
_ASSUMED = ("A1: disturbance", "A2: estimate_error", "A3: delay_steps, jitter")


@dataclass(frozen=True)
class Finding:
    """One item of the certificate and how it was settled."""

    item: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Report:
    """`accepted`: nothing was refused."""

    accepted: bool
    findings: tuple[Finding, ...]


def check(
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    budget: int = BUDGET,
) -> Report:
    """Check the certificate in a bundle's folder; `progress(done, total)` counts pieces of work.

    `workers` processes (None: one per core; 1: only this one) find the same. After `budget` boxes
    a claim that is still open is refused. Call it under `if __name__ == "__main__"` when there is
    more than one worker.
    """
    try:
        _begin(Path(folder), budget)
        pieces = _pieces(_C)
    except _ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        return Report(False, (Finding("certificate", "refused", reason),))
    found: dict[str, list[Finding]] = {}
    for done, finding in enumerate(_results(Path(folder), budget, pieces, workers), start=1):
        found.setdefault(finding.item, []).append(finding)
        if progress is not None:
            progress(done, len(pieces))
    findings = [
        next((f for f in parts if f.verdict == "refused"), parts[0]) for parts in found.values()
    ]
    assumed = [
        Finding(item, "assumed", "a bound on reality, not on formulas") for item in _ASSUMED
    ]
    return Report(all(f.verdict != "refused" for f in findings), (*findings, *assumed))


#: The claims under check, in every process.
_C = Claims()


def _begin(folder: Path, budget: int) -> None:
    ctx.prec = BITS
    c = claims.read(folder)
    names = [channel["name"] for channel in c.bundle["states"]]
    unit = [names.index(name) for name in ("qw", "qx", "qy", "qz") if name in names]
    c.unit, c.budget = unit if len(unit) == 4 else [], budget
    base_check.prepare(c)
    vars(_C).update(vars(c))


def _results(
    folder: Path, budget: int, pieces: list[tuple[Any, ...]], workers: int | None
) -> Iterator[Finding]:
    count = workers or os.cpu_count() or 1
    if count == 1:
        yield from map(_work, pieces)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin, (folder, budget)) as pool:
        yield from pool.map(_work, pieces)


def _work(piece: tuple[Any, ...]) -> Finding:
    item, function, *arguments = piece
    try:
        return Finding(item, *function(_C, *arguments))
    except _ERRORS as error:
        return Finding(item, "refused", f"{type(error).__name__}: {error}")


def _pieces(c: Claims) -> list[tuple[Any, ...]]:
    """What is to be done: (item, function, arguments), the same whoever does it."""
    rest = np.concatenate((c.error_domain, c.input_domain, c.disturbance))
    shift = np.concatenate((c.base_extent, c.error_domain))
    low, high = np.r_[c.state_low, -c.error_domain], np.r_[c.state_high, c.error_domain]
    # A little wider, so that who computes the index of a cell in floats stays within the cell.
    edge = 1e-10 * (c.schedule_high - c.schedule_low)
    cells = claims.grid(c.schedule_low, c.schedule_high, c.schedule_cells)
    cells = [(a - edge, b + edge) for a, b in cells]
    table = bound_check.table
    return [
        ("agreement with bundle.yaml and program", claims.agreement),
        *(("formulas", formula_check.formulas, i) for i in range(formula_check.PIECES)),
        ("period", formula_check.flow),
        ("disturbance and jitter", bound_check.late_switching),
        ("sampling_margin", bound_check.sampling),
        ("tracking_error", bound_check.tracking),
        ("prediction_error", bound_check.prediction),
        ("shift_remainder", table, "shifted", 0, -shift, shift, c.shift_remainder),
        ("safe_remainder", table, "safe_at", 1, low, high, c.safe_remainder),
        ("base: inputs, extent, sum of norms", base_check.inputs),
        ("base: disturbance_norm", base_check.perturbation, "w"),
        ("base: estimate_norm", base_check.perturbation, "eta"),
        ("base: leaves cover the set, symmetries", base_check.cover),
        *(
            ("remainder", table, "error_map", 1, np.r_[a, -rest], np.r_[b, rest], claimed)
            for (a, b), claimed in zip(cells, c.remainder, strict=True)
        ),
        *(
            ("base: contraction", base_check.leaves, i)
            for i in range(0, len(c.base_leaves_low), base_check.LEAVES)
        ),
    ]
