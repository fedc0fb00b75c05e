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
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flint import ctx

from safe_rl_core.checker import base_check, bound_check, claims, formula_check
from safe_rl_core.checker.claims import Claims
from safe_rl_core.errors import SafeRLError

BITS, BUDGET = 64, 60_000
#: What a malformed file or an impossible number raises.
_ERRORS = (SafeRLError, OSError, ValueError, LookupError, TypeError, ArithmeticError)
_C = Claims()  # the claims under check, in every process
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
    found: dict[int, Finding] = {}
    for done, (n, finding) in enumerate(_results(Path(folder), budget, pieces, workers), start=1):
        found[n] = finding
        if progress is not None:
            progress(done, len(pieces))
    items: dict[str, Finding] = {}
    for finding in (found[n] for n in sorted(found)):  # of an item's pieces a refused one counts
        if finding.item not in items or finding.verdict == "refused":
            items[finding.item] = finding
    for item in _ASSUMED:
        items[item] = Finding(item, "assumed", "a bound on reality, not on formulas")
    return Report(all(f.verdict != "refused" for f in items.values()), tuple(items.values()))


def _begin(folder: Path, budget: int) -> None:
    ctx.prec = BITS
    c = claims.read(folder)
    names = [channel["name"] for channel in c.bundle["states"]]
    unit = [names.index(name) for name in ("qw", "qx", "qy", "qz") if name in names]
    c.unit, c.budget = unit if len(unit) == 4 else [], budget
    base_check.prepare(c)
    bound_check.prepare(c)
    vars(_C).update(vars(c))


def _results(
    folder: Path, budget: int, pieces: list[tuple[Any, ...]], workers: int | None
) -> Iterator[tuple[int, Finding]]:
    """What was found of each piece, by its number, in any order."""
    count = workers or os.cpu_count() or 1
    if count == 1:
        yield from enumerate(map(_work, pieces))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin, (folder, budget)) as pool:
        tasks = {pool.submit(_work, piece): n for n, piece in enumerate(pieces)}
        yield from ((tasks[task], task.result()) for task in as_completed(tasks))


def _work(piece: tuple[Any, ...]) -> Finding:
    item, function, *arguments = piece
    try:
        return Finding(item, *function(_C, *arguments))
    except _ERRORS as error:
        return Finding(item, "refused", f"{type(error).__name__}: {error}")


def _pieces(c: Claims) -> list[tuple[Any, ...]]:
    """What is to be done: (item, function, arguments), the same whoever does it."""
    shift = np.r_[c.base_extent, c.error_domain]
    wide = np.maximum(c.error_domain, c.base_extent)
    low, high = np.r_[c.state_low, -wide], np.r_[c.state_high, wide]
    table, leaves = bound_check.table, range(0, len(c.base_leaves_low), base_check.LEAVES)
    return [
        ("agreement with bundle.yaml and program", claims.agreement),
        *(("formulas", formula_check.formulas, i) for i in range(formula_check.PIECES)),
        ("period", formula_check.flow),
        ("sampling_margin", bound_check.sampling),
        ("tracking_error", bound_check.tracking),
        ("prediction_error", bound_check.prediction),
        ("shift_remainder", table, "shifted", 0, -shift, shift, c.shift_remainder),
        ("safe_remainder", table, "safe_at", 1, low, high, c.safe_remainder),
        ("base: inputs, extent, sum of norms", base_check.inputs),
        ("base: disturbance_norm", base_check.perturbation, "w"),
        ("base: estimate_norm", base_check.perturbation, "eta"),
        ("base: leaves cover the set, symmetries", base_check.cover),
        *(("remainder", bound_check.remainder, i) for i in range(bound_check.PIECES)),
        *(("base: contraction", base_check.leaves, i) for i in leaves),
    ]
