"""Proof that a base set is invariant: cells of z = C e, halved where the bound is not yet enough.

    proof = prove(problem, settings)

ends "proved" (leaves that an independent checker can follow, see `tiling`), "refuted" (with a
concrete state) or "open" (with the cells that are left, and advice). The bounds are proved with
outward rounding; the search decides nothing but where they are evaluated.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.cells import bound_cells
from safe_rl_systems.verification.falsifier import Step, saturating_step, worst_step
from safe_rl_systems.verification.interval import Array, down
from safe_rl_systems.verification.search_state import SearchState, fingerprint
from safe_rl_systems.verification.tiling import Tiling

_CHUNK = 1500
#: omega and nu are stored larger by this share, for a checker that divides the set otherwise.
_SPARE = 5e-3
#: For omega and nu: how often, and how many of the cells with the largest, are halved; it ends
#: when that has helped by less than 1 % for so many rounds.
_ROUNDS, _HALVED, _PATIENCE = 24, 100, 4

_Bounds = tuple[NDArray[np.bool_], Array, Array]
_Bound = Callable[[Array, Array], Iterator[_Bounds]]


@dataclass(frozen=True)
class Settings:
    """How hard to try. `cell_splits` (q): the parts of the root box per direction.

    `margin` is what a leaf keeps from rho, so that another arithmetic accepts it too. The search
    gives up after `max_cells` cells or `max_seconds`, at the end of the batch that it is at;
    `workers` None means all cores, 1 no further process. `samples` is where hill climbing for a
    counterexample starts from.
    """

    cell_splits: tuple[int, ...]
    margin: float = 1e-3
    max_cells: int = 400_000
    max_seconds: float = math.inf
    workers: int | None = None
    samples: int = 100_000
    save_every_s: float = 20.0


@dataclass(frozen=True)
class Progress:
    """Where the search stands: cells bounded so far, leaves, open cells, seconds."""

    cells: int
    leaves: int
    open: int
    seconds: float


@dataclass(frozen=True)
class BaseProof:
    """The result. `contraction` + `disturbance_norm` + `estimate_norm` <= 1.

    The leaves of `state` prove the contraction; its open cells could not be proved. `worst` is
    the furthest step that was found (where an input saturates, a step that shows it), `nominal`
    the furthest without disturbance and measurement error, a lower bound of the contraction.
    """

    status: str
    problem: BaseProblem
    settings: Settings
    contraction: float
    disturbance_norm: float
    estimate_norm: float
    state: SearchState
    worst: Step
    nominal: Step
    seconds: float
    advice: str

    @property
    def proved(self) -> bool:
        """True when the set is invariant under everything that was assumed."""
        return self.status == "proved"


def prove(
    problem: BaseProblem,
    settings: Settings,
    progress: Callable[[Progress], None] | None = None,
    state_file: Path | None = None,
) -> BaseProof:
    """Prove, refute, or say what is open. With `state_file` an interrupted run is taken up again.

    More than one worker means new processes: call it from under `if __name__ == "__main__"`.
    """
    started = time.monotonic()
    tiling = Tiling(problem)
    if len(settings.cell_splits) != len(tiling.reach) or min(settings.cell_splits) < 1:
        raise CertificateError(
            f"cell_splits needs {len(tiling.reach)} numbers >= 1, got {settings.cell_splits}"
        )
    low, high = tiling.grid(settings.cell_splits)
    omega, nu = perturbation_norms(problem, tiling, low, high)
    contraction = float(down(down(np.float64(1.0 - omega)) - nu))
    nominal = worst_step(problem, perturbed=False, samples=settings.samples)
    worst = worst_step(problem, samples=settings.samples)
    state = SearchState.start(low, high)
    obstacle = _obstacle(problem, contraction - settings.margin, omega, nu, worst, nominal)
    if obstacle:
        status = "refuted" if worst.value > 1.0 else "open"
        if status == "open" and np.any(problem.input_slack() < 0.0):
            worst = saturating_step(problem)
    else:
        key = fingerprint(problem, settings.cell_splits, settings.margin)
        if state_file is not None:
            state = SearchState.load(state_file, key) or state
        report = _Reporter(state, progress, state_file, key, settings.save_every_s)
        _search(problem, settings, tiling, contraction - settings.margin, state, report)
        status = "open" if len(state.open_low) else "proved"
        obstacle = _open_cells(state, contraction - settings.margin, nominal)
    took = time.monotonic() - started
    return BaseProof(
        status, problem, settings, contraction, omega, nu, state, worst, nominal, took, obstacle
    )


def perturbation_norms(
    problem: BaseProblem, tiling: Tiling, low: Array, high: Array
) -> tuple[float, float]:
    """(omega, nu) over the cells [low, high]; those with the largest are halved a few times."""
    value = _norms(problem, low, high)
    tops = [value.max(0)]
    for _ in range(_ROUNDS):
        if len(tops) > _PATIENCE and np.all(tops[-1] > 0.99 * tops[-1 - _PATIENCE]):
            break
        relative = (value / np.maximum(value.max(0), 1e-300)).max(1)
        large = np.argsort(-relative)[:_HALVED]
        rest = np.setdiff1d(np.arange(len(low)), large)
        new = tiling.halves(low[large], high[large])
        low, high = np.concatenate((low[rest], new[0])), np.concatenate((high[rest], new[1]))
        value = np.concatenate((value[rest], _norms(problem, *new)))
        tops.append(value.max(0))
    omega, nu = value.max(0) * (1.0 + _SPARE)
    return float(omega), float(nu)


def _norms(problem: BaseProblem, low: Array, high: Array) -> Array:
    parts = [slice(first, first + _CHUNK) for first in range(0, len(low), _CHUNK)]
    found = [problem.perturbation_norms(low[part], high[part]) for part in parts]
    return np.concatenate([np.column_stack(norms) for norms in found])


def _search(
    problem: BaseProblem,
    settings: Settings,
    tiling: Tiling,
    target: float,
    state: SearchState,
    report: _Reporter,
) -> None:
    """Bound the open cells, halve those that are not proved, until none is open or too many."""
    deadline = time.monotonic() + settings.max_seconds
    with _pool(problem, settings.workers, target) as bound:
        while len(state.open_low) and state.cells < settings.max_cells:
            if time.monotonic() >= deadline:
                break
            batch = 8 * _CHUNK * _cores(settings.workers)
            low, high = state.open_low[:batch], state.open_high[:batch]
            results = list(bound(low, high))
            proved = np.concatenate([r[0] for r in results])
            multipliers = np.concatenate([r[2] for r in results])
            state.add_leaves(low[proved], high[proved], multipliers[proved])
            left = tiling.halves(low[~proved], high[~proved])
            state.open_low = np.concatenate((state.open_low[batch:], left[0]))
            state.open_high = np.concatenate((state.open_high[batch:], left[1]))
            state.cells += len(low)
            report()


class _Reporter:
    """Calls back, and saves now and then."""

    def __init__(
        self,
        state: SearchState,
        progress: Callable[[Progress], None] | None,
        file: Path | None,
        key: str,
        every: float,
    ) -> None:
        self.state, self.progress, self.file, self.key = state, progress, file, key
        self.every, self.before = every, state.seconds
        self.started = self.saved = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        self.state.seconds = self.before + now - self.started
        finished = not len(self.state.open_low)
        if self.file is not None and (finished or now - self.saved > self.every):
            self.state.save(self.file, self.key)
            self.saved = now
        if self.progress is not None:
            leaves, still_open = len(self.state.leaves_low), len(self.state.open_low)
            self.progress(Progress(self.state.cells, leaves, still_open, self.state.seconds))


@contextmanager
def _pool(problem: BaseProblem, workers: int | None, target: float) -> Iterator[_Bound]:
    """A function that bounds cells chunk by chunk, in this process or in several."""

    def chunks(low: Array, high: Array) -> Iterator[tuple[Array, Array]]:
        for first in range(0, len(low), _CHUNK):
            yield low[first : first + _CHUNK], high[first : first + _CHUNK]

    if _cores(workers) == 1:
        yield lambda low, high: (bound_cells(problem, *c, target) for c in chunks(low, high))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        _cores(workers), context, initializer=_start_worker, initargs=(problem, target)
    ) as executor:
        yield lambda low, high: executor.map(_work, chunks(low, high))


def _cores(workers: int | None) -> int:
    return workers or os.cpu_count() or 1


_task: tuple[BaseProblem, float] | None = None


def _start_worker(problem: BaseProblem, target: float) -> None:
    global _task
    _task = (problem, target)


def _work(cells: tuple[Array, Array]) -> _Bounds:
    if _task is None:
        raise CertificateError("a worker was called before it was given its problem")
    problem, target = _task
    return bound_cells(problem, *cells, target)


def _obstacle(
    problem: BaseProblem, target: float, omega: float, nu: float, worst: Step, nominal: Step
) -> str:
    """Why cells need not be tried, with what would help; empty if they should be."""
    if worst.value > 1.0:
        return (
            f"not invariant: from |e|_P = {worst.before:.6f} one step leads to {worst.value:.6f}; "
            "take a smaller level, or smaller bounds on disturbance and measurement error"
        )
    slack = problem.input_slack()
    if np.any(slack < 0.0):
        j = int(slack.argmin())
        known = not np.any(problem.tracking_error)
        share = "" if known else f" ({problem.reserve[j]:.4g} of it for the measurement error)"
        return (
            f"input {j} can be asked for {-slack[j]:.4g} more than its box allows{share}; "
            "take a smaller level or a lower gain"
        )
    if nominal.value <= target:
        return ""
    shares = {"disturbance (omega)": omega, "measurement error through the gain (nu)": nu}
    largest = max(shares, key=lambda name: shares[name])
    return (
        f"no proof is possible: the loop itself only contracts to {nominal.value:.4f}, which with "
        f"omega {omega:.4f} and nu {nu:.4f} leaves less than the margin; the largest share is "
        f"the {largest}. A lower level lets the nonlinearity contract more but weighs omega and "
        "nu more; a lower gain reduces nu"
    )


def _open_cells(state: SearchState, target: float, nominal: Step) -> str:
    if not len(state.open_low):
        return ""
    low, high = state.open_low.min(0), state.open_high.max(0)
    box = ", ".join(f"[{a:.3g}, {b:.3g}]" for a, b in zip(low, high, strict=True))
    return (
        f"{len(state.open_low)} cells are open after {state.cells}, all in z = {box}; the bound "
        f"needed is {target:.4f}, the worst that was found {nominal.value:.4f}. The number of "
        "cells grows with a power of that gap: buy gap (a smaller level, a design with more "
        "contraction, smaller assumed bounds) rather than raise max_cells"
    )
