"""Derives a bundle's certificate again: every bound and the base set, in ball arithmetic.

    report = check(Path("models/unicycle_robust"))

reads certificate.json, certificate.npz, bundle.yaml and program.txt, and shares nothing else with
whoever wrote them; docs/theory.md defines the quantities. A claimed bound is accepted when balls
over ever smaller boxes stay below it; what cannot be shown is refused, true or not. Every finding
says how it was settled: "proved" in ball arithmetic, "checked" at seeded random points (identities
between formulas), "assumed", or "refused".
"""

from __future__ import annotations

import heapq
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from flint import arb, arb_mat, ctx
from numpy.typing import NDArray

from safe_rl_core.audit.ball import Jet, constants, evaluate, seeds, slope_seeds, square
from safe_rl_core.errors import CertificateError, SafeRLError
from safe_rl_core.program import Program

Array = NDArray[np.float64]
Verdict = tuple[str, str]
#: By which share of itself a claim is exceeded on a box; 0 where it is shown to hold.
Excess = Callable[[Array, Array], float]
BITS, TOLERANCE, BUDGET = 96, 1e-12, 60_000
SAMPLES, PARTS, LEAVES = 2000, 8, 200
#: Shapes: k errors, m inputs, n states, p schedule variables, C cells, d = k+m+k, b = 2k, x = p+d,
#: h safe rows, q split directions, l = 1+q, M leaves, g symmetries, a = k+m+p.
_SHAPES = {
    "disturbance": "k", "estimate_error": "k", "jitter": "", "input_low": "m", "input_high": "m",
    "tracking_gain": "mk", "error_domain": "k", "input_domain": "m", "state_low": "n",
    "state_high": "n", "schedule_low": "p", "schedule_high": "p", "schedule_cells": "p",
    "remainder_splits": "x", "remainder": "Ckdd", "shift_remainder": "kbb",
    "safe_remainder": "hkk", "prediction_error": "k", "tracking_error": "k",
    "sampling_margin": "h", "period": "", "delay_steps": "", "base_input": "m",
    "base_schedule": "p", "base_gain": "mk", "base_factor": "kk", "base_contraction": "",
    "base_disturbance_norm": "", "base_estimate_norm": "", "base_extent": "k",
    "base_cell_directions": "qk", "base_cell_splits": "q", "base_leaves_low": "Mq",
    "base_leaves_high": "Mq", "base_leaves_multipliers": "Ml", "base_symmetries": "ga",
}  # fmt: skip
_ANY_SIGN = ("_low", "_high", "gain", "_input", "base_schedule", "factor", "ions", "symmetries")
_ASSUMED = ("A1: disturbance", "A2: estimate_error", "A3: delay_steps and jitter")


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
        _begin(folder, budget)
        pieces = _pieces(_C)
    except (SafeRLError, OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        return Report(False, (Finding("certificate", "refused", f"malformed: {error}"),))
    found: dict[str, list[Finding]] = {}
    for done, finding in enumerate(_results(folder, budget, pieces, workers), start=1):
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
    item, function, *args = piece
    try:
        verdict, detail = function(_C, *args)
    except (SafeRLError, ValueError, LookupError, ZeroDivisionError) as error:
        verdict, detail = "refused", f"{type(error).__name__}: {error}"
    return Finding(item, verdict, detail)


#: The claims under check and what follows from them at once, in every process; see _begin.
_C = SimpleNamespace()


def _begin(folder: Path, budget: int) -> None:
    """Read the claims into this process; an error if they are not well-formed."""
    ctx.prec = BITS
    data = json.loads((folder / "certificate.json").read_text())
    with np.load(folder / "certificate.npz", allow_pickle=False) as archive:
        data |= {name: archive[name] for name in archive.files}
    c = SimpleNamespace(**{name: np.asarray(data[name], np.float64) for name in _SHAPES})
    _check_shapes(c)
    c.bundle = yaml.safe_load((folder / "bundle.yaml").read_text())
    c.program, c.hash, c.budget = Program.load(folder / "program.txt"), data["program"], budget
    k = len(c.disturbance)
    inverse = _matrix(c.base_factor).inv().transpose()
    c.factor, c.rows = _matrix(c.base_factor.T), np.vstack((np.eye(k), c.base_gain))
    c.in_ball, c.slabs = _matrix(c.rows) * inverse, _matrix(c.base_cell_directions) * inverse
    c.reach = np.array([_up(_norm(row)) for row in c.in_ball.tolist()])  # of (e, K e) on the set
    gain = _matrix(np.abs(c.base_gain)) * _column(c.tracking_error)
    c.reserve = np.array([_up(x) for x in gain.entries()])
    c.root = np.abs(np.concatenate((c.base_leaves_low, c.base_leaves_high))).max(0)
    c.shadow = _shadow(c)
    names = [channel["name"] for channel in c.bundle["states"]]
    c.unit = [names.index(q) for q in ("qw", "qx", "qy", "qz") if q in names]
    vars(_C).update(vars(c))


def _check_shapes(c: SimpleNamespace) -> None:
    sizes: dict[str, int] = {}
    for name, letters in _SHAPES.items():
        value = getattr(c, name)
        if value.ndim != len(letters):
            raise CertificateError(f"{name} has {value.ndim} axes, expected {len(letters)}")
        for letter, size in zip(letters, value.shape, strict=True):
            if sizes.setdefault(letter, size) != size or size == 0 and letter != "g":
                raise CertificateError(f"{name} has shape {value.shape}, which fits no other")
        finite = np.isfinite(value) | (name in ("state_low", "state_high"))
        if not np.all(finite) or (not name.endswith(_ANY_SIGN) and np.any(value < 0.0)):
            raise CertificateError(f"{name} must be finite, and not negative if it is a bound")
    k, m, p, q = (sizes[letter] for letter in "kmpq")
    sums = {"d": 2 * k + m, "b": 2 * k, "l": 1 + q, "a": k + m + p, "x": p + 2 * k + m}
    if any(sizes[x] != n for x, n in sums.items() if x in sizes):
        raise CertificateError(f"the sizes of the entries do not fit each other: {sizes}")
    if sizes["C"] != np.prod(c.schedule_cells) or np.any(
        c.schedule_cells != c.schedule_cells // 1
    ):
        raise CertificateError("remainder needs one table per schedule cell")
    for name in ("input", "schedule", "state", "base_leaves"):
        if not np.all(getattr(c, f"{name}_low") < getattr(c, f"{name}_high")):
            raise CertificateError(f"{name}_low must lie below {name}_high")


def _pieces(c: SimpleNamespace) -> list[tuple[Any, ...]]:
    """What is to be done: (item, function, arguments)."""
    rest = np.concatenate((c.error_domain, c.input_domain, c.disturbance))
    shift = np.concatenate((c.base_extent, c.error_domain))
    cells = list(_grid(c.schedule_low, c.schedule_high, c.schedule_cells))
    state_low = np.r_[c.state_low, -c.error_domain]
    state_high = np.r_[c.state_high, c.error_domain]
    return [
        ("entries", _entries),
        *(("formulas", _formulas, seed) for seed in range(PARTS)),
        ("period", _flow),
        ("disturbance", _jitter),
        *(
            ("remainder", _table, "error_map", 1, np.r_[a, -rest], np.r_[b, rest], table)
            for (a, b), table in zip(cells, c.remainder, strict=True)
        ),
        ("shift_remainder", _table, "shifted", 0, -shift, shift, c.shift_remainder),
        ("safe_remainder", _table, "safe_at", 1, state_low, state_high, c.safe_remainder),
        *(("prediction_error", _prediction, i, *cell) for i, cell in enumerate(cells)),
        ("tracking_error", _tracking),
        ("sampling_margin", _sampling),
        ("base inputs and extent", _inputs),
        ("base_disturbance_norm", _perturbation, "w"),
        ("base_estimate_norm", _perturbation, "v"),
        ("leaves cover the base set", _cover),
        *(("leaves", _leaves, i) for i in range(0, len(c.base_leaves_low), LEAVES)),
    ]


def _matrix(values: Any) -> arb_mat:
    return arb_mat([[arb(x) for x in row] for row in values])


def _column(values: Array) -> arb_mat:
    return _matrix(values[:, None])


def _norm(entries: Sequence[arb]) -> arb:
    return sum((square(x) for x in entries), arb(0)).sqrt()


def _up(x: arb) -> float:
    return float(np.nextafter(float(x.upper()), np.inf))


def _balls(low: Array, high: Array) -> list[arb]:
    return [arb(a).union(arb(b)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def _over(bound: arb, claim: float) -> float:
    """By which share the claim is exceeded; 0.0 only if the whole ball is at most the claim."""
    if bound <= arb(claim):
        return 0.0
    share = float(bound.upper()) / claim - 1.0 if claim > 0.0 else np.inf
    return max(share, 1e-15) if share == share else np.inf


def _shadow(c: SimpleNamespace) -> arb_mat:
    """F with |F'z| <= 1 for every z = C e of the base set: a box beyond needs no leaf.

    F F' is the inverse of C P⁻¹ C' in floats; that it does what it says is proved here.
    """
    slabs = np.array([[float(x) for x in row] for row in c.slabs.tolist()])
    root = np.linalg.cholesky(np.linalg.inv(slabs @ slabs.T)) * (1.0 - 1e-9)
    moved = _matrix(root.T) * c.slabs
    gap = _matrix(np.eye(slabs.shape[1])) - moved.transpose() * moved
    if not _positive(gap.tolist()):
        raise CertificateError("the base set's extent along cell_directions cannot be enclosed")
    return _matrix(root.T)


def _outside(c: SimpleNamespace, low: Array, high: Array) -> bool:
    """True only if no point of the base set has z in the box."""
    ball = arb_mat([[x] for x in _balls(low, high)])
    return sum((square(x) for x in (c.shadow * ball).entries()), arb(0)) > 1


def _positive(m: list[list[arb]]) -> bool:
    """True only if every symmetric matrix in m is positive definite (Cholesky, in place)."""
    size = len(m)
    for j in range(size):
        if not m[j][j] > 0:
            return False
        for i in range(j + 1, size):
            share = m[i][j] / m[j][j]
            for n in range(j + 1, i + 1):
                m[i][n] = m[i][n] - share * m[n][j]
    return True


def _prove(
    c: SimpleNamespace, low: Array, high: Array, excess: Excess, splits: Array | None = None
) -> Verdict:
    """Show a claim on a box, cut into `splits` first; the worst box is halved until none is left."""
    queue: list[tuple[float, int, Array, Array]] = []
    count, gain = 0, None
    fresh = _grid(low, high, np.ones(len(low)) if splits is None else splits)
    while True:
        for a, b in fresh:
            count, worst = count + 1, excess(a, b)
            if worst > 0.0:
                heapq.heappush(queue, (-worst, count, a, b))
        if not queue:
            return "proved", f"on {count} boxes"
        worst, _, a, b = heapq.heappop(queue)
        width = np.where(np.isfinite(b - a), b - a, 0.0)
        middle = np.where(width > 0.0, b - 0.5 * width, a)
        if count % 8 == 0 and excess(middle, middle) > 1e-9:
            return "refused", f"false: exceeded by {excess(middle, middle):.2%} at {middle}"
        if count >= c.budget:
            return "refused", f"open after {count} boxes, exceeded by up to {-worst:.2%}"
        if gain is None:
            gain = _gain(a, b, -worst, excess)
        i = int(np.argmax(gain * width))
        fresh = [_replaced(a, b, i, b=middle[i]), _replaced(a, b, i, a=middle[i])]


def _gain(low: Array, high: Array, worst: float, excess: Excess) -> Array:
    """How much the claim's excess shrinks per width of each variable."""
    gain = np.zeros(len(low))
    for i in np.flatnonzero((high > low) & np.isfinite(high - low)):
        middle = 0.5 * (low[i] + high[i])
        less = worst - excess(*_replaced(low, high, i, a=middle, b=middle))
        gain[i] = (less if 0.0 < less < np.inf else 1e-9) / (high[i] - low[i])
    return gain


def _replaced(
    low: Array, high: Array, i: int, a: float | None = None, b: float | None = None
) -> tuple[Array, Array]:
    low, high = low.copy(), high.copy()
    low[i], high[i] = low[i] if a is None else a, high[i] if b is None else b
    return low, high


def _grid(low: Array, high: Array, splits: Array) -> Iterator[tuple[Array, Array]]:
    """The boxes of a grid, row-major; neighbours share their edges to the last bit."""
    edges = [
        np.linspace(a, b, int(n) + 1) if n > 1 else np.array([a, b])
        for a, b, n in zip(low, high, splits, strict=True)
    ]
    for cell in itertools.product(*(range(len(x) - 1) for x in edges)):
        picked = [x[i : i + 2] for x, i in zip(edges, cell, strict=True)]
        yield np.array([x[0] for x in picked]), np.array([x[1] for x in picked])


def _arguments(c: SimpleNamespace, name: str, box: list[arb], fixed: int, order: int) -> list:
    """A box cut into a function's inputs: the first `fixed` constants, the others seeded."""
    parts, start, first = [], 0, 0
    for i, (_, size) in enumerate(c.program.functions[name].inputs):
        part = box[start : start + size]
        parts.append(constants(part) if i < fixed else seeds(part, first, order))
        start, first = start + size, first + size * (i >= fixed)
    return parts


def _jets(c: SimpleNamespace, name: str, *inputs: Sequence[Jet]) -> list[Jet] | None:
    """The outputs of a function, or None if one of them is undecided."""
    jets = evaluate(c.program, name, *inputs)
    return None if None in jets else jets


def _values(c: SimpleNamespace, name: str, *inputs: Any) -> list[arb]:
    """The outputs of a function of numbers or balls."""
    jets = _jets(c, name, *(constants(x) for x in inputs))
    if jets is None:
        raise CertificateError(f"'{name}' has no decided value at a point of its domain")
    return [jet.value for jet in jets]


def _possible(c: SimpleNamespace, low: Array, high: Array) -> bool:
    """False if no state with a unit quaternion lies in the box of states."""
    if not c.unit:
        return True
    norm = sum((square(x) for x in _balls(low[c.unit], high[c.unit])), arb(0))
    return bool(norm.overlaps(arb(1)))


def _table(
    c: SimpleNamespace, name: str, fixed: int, low: Array, high: Array, table: Array
) -> Verdict:
    """|second derivatives| of a function <= table on a box of its inputs."""
    claims = np.minimum(table, np.swapaxes(table, -1, -2))
    states = name == "safe_at"

    def excess(a: Array, b: Array) -> float:
        if states and not _possible(c, a, b):
            return 0.0
        jets = _jets(c, name, *_arguments(c, name, _balls(a, b), fixed, 2))
        if jets is None:
            return np.inf
        return max(
            (
                _over(x.abs_upper(), rows[i, j])
                for jet, rows in zip(jets, claims, strict=True)
                for (i, j), x in jet.hess.items()
            ),
            default=0.0,
        )

    return _prove(c, low, high, excess, c.remainder_splits if name == "error_map" else None)


def _rows_over(jets: list[Jet] | None, reach: Array, extra: Array, claim: Array) -> float:
    """Excess of sum_i |derivative to seed i| reach_i + extra over the claim, the worst row's."""
    if jets is None:
        return np.inf
    rows = [
        sum((abs(x) * arb(reach[i]) for i, x in jet.grad.items() if reach[i]), arb(more))
        for jet, more in zip(jets, extra.tolist(), strict=True)
    ]
    return max(_over(row, bound) for row, bound in zip(rows, claim.tolist(), strict=True))


def _at_reference(c: SimpleNamespace, low: Array, high: Array) -> list[Jet] | None:
    """error_map with gradient at zero error, for all schedules of a box."""
    size = 2 * len(c.disturbance) + len(c.input_low)
    box = _balls(low, high) + [arb(0)] * size
    return _jets(c, "error_map", *_arguments(c, "error_map", box, 1, 1))


def _jitter(c: SimpleNamespace) -> Verdict:
    """disturbance >= the assumed one + 3 jitter/period sup |B(s)| (input_high - input_low)."""
    k = len(c.disturbance)
    late = 3.0 * float(c.jitter) / float(c.period) * (c.input_high - c.input_low)
    reach = np.r_[np.zeros(k), late, np.zeros(k)]
    assumed = np.array([row["disturbance"] for row in c.bundle["assumptions"]["errors"]])
    if c.jitter == 0.0:
        same = bool(np.all(c.disturbance >= assumed))
        return ("proved", "as assumed") if same else ("refused", "below what bundle.yaml assumes")
    return _prove(
        c, c.schedule_low, c.schedule_high,
        lambda a, b: _rows_over(_at_reference(c, a, b), reach, assumed, c.disturbance),
    )  # fmt: skip


def _prediction(c: SimpleNamespace, cell: int, low: Array, high: Array) -> Verdict:
    """From estimate_error through one period of delay, for the schedules of a cell."""
    if c.delay_steps == 0:
        enough = bool(np.all(c.prediction_error >= c.estimate_error))
        return ("proved", "no delay") if enough else ("refused", "below estimate_error")
    if c.delay_steps > 1 or np.any(c.estimate_error > c.error_domain):
        return "refused", "only delays of at most one period, within error_domain, are known"
    size = np.r_[c.estimate_error, np.zeros(len(c.input_low)), c.disturbance]
    rest = [0.5 * float(x) * (1.0 + 1e-12) for x in size @ c.remainder[cell] @ size]
    return _prove(
        c, low, high,
        lambda a, b: _rows_over(_at_reference(c, a, b), size, np.array(rest), c.prediction_error),
    )  # fmt: skip


def _tracking(c: SimpleNamespace) -> Verdict:
    """|shifted(e, d) - e| for every d that |difference(x, x_hat)| <= prediction_error allows."""
    z = _values(c, "base_point", _values(c, "operating_state", np.zeros(_start(c))))
    moved = _values(c, "retract", z, _balls(-c.prediction_error, c.prediction_error))
    back = np.array([_up(x.abs_upper()) for x in _values(c, "difference", z, moved)])
    reach = np.maximum(c.error_domain, c.base_extent)
    none = np.zeros(len(back))

    def excess(a: Array, b: Array) -> float:
        displaced = seeds(_balls(-back, back), 0, 1)
        jets = _jets(c, "shifted", constants(_balls(a, b)), displaced)
        return _rows_over(jets, back, none, c.tracking_error)

    return _prove(c, -reach, reach, excess)


def _start(c: SimpleNamespace) -> int:
    return c.program.functions["operating_state"].inputs[0][1]


def _swept(c: SimpleNamespace) -> tuple[Array, Array]:
    """States that the flow may reach within a period from the state domain (Picard)."""
    width, u = np.zeros(len(c.state_low)), constants(_balls(c.input_low, c.input_high))
    for _ in range(30):
        low, high = c.state_low - width, c.state_high + width
        field = _jets(c, "dynamics", constants(_balls(low, high)), u)
        if field is None:
            break
        needed = np.array([float(c.period) * _up(jet.value.abs_upper()) for jet in field])
        if np.all(needed * (1.0 + 1e-12) <= width):
            return low, high
        width = np.where(needed >= width, 1.1 * needed + 1e-300, width)
    raise CertificateError("the flow over one period cannot be enclosed")


def _sampling(c: SimpleNamespace) -> Verdict:
    """period²/8 sup (d²h/dt²)⁺ + sup |grad h| disturbance, over state and input domain."""
    low, high = _swept(c)
    n, eighth = len(low), arb(float(c.period)) ** 2 / 8
    moved = seeds(_balls(-c.disturbance, c.disturbance), 0, 1)

    def excess(a: Array, b: Array) -> float:
        if not _possible(c, a[:n], b[:n]):
            return 0.0
        x, u = _balls(a[:n], b[:n]), constants(_balls(a[n:], b[n:]))
        speed = _jets(c, "dynamics", constants(x), u)
        along = speed and [Jet(y, y, {0: v.value}, None) for y, v in zip(x, speed, strict=True)]
        rates = along and _jets(c, "dynamics", along, u)
        jets = _jets(c, "safe_at", constants(x), moved)
        if rates is None or jets is None:
            return np.inf
        turn = [
            Jet(y, y, {0: v.value}, {(0, 0): r.grad.get(0, arb(0))})
            for y, v, r in zip(x, speed, rates, strict=True)
        ]
        rows = _jets(c, "safe_set", turn)
        if rows is None:
            return np.inf
        bend = [eighth * row.hess.get((0, 0), arb(0)).max(arb(0)) for row in rows]
        return max(
            _over(
                sag + sum((abs(g) * arb(c.disturbance[i]) for i, g in jet.grad.items()), arb(0)),
                claim,
            )
            for sag, jet, claim in zip(bend, jets, c.sampling_margin.tolist(), strict=True)
        )

    return _prove(c, np.r_[low, c.input_low], np.r_[high, c.input_high], excess)


def _inputs(c: SimpleNamespace) -> Verdict:
    """B1: u* + K (e + eta) stays in the box; the extent is right; the three norms fit."""
    k = len(c.disturbance)
    if not all(
        _norm(row) <= arb(x) for row, x in zip(c.in_ball.tolist(), c.base_extent, strict=False)
    ):
        return "refused", f"the set reaches {c.reach[:k]}, not {c.base_extent}"
    for j, (low, rest, high) in enumerate(
        zip(c.input_low, c.base_input, c.input_high, strict=True)
    ):
        used = arb(c.reach[k + j]) + arb(c.reserve[j])
        if not (arb(rest) - used >= arb(low) and arb(rest) + used <= arb(high)):
            return "refused", f"input {j} needs {rest} +- {used}, the box is [{low}, {high}]"
    total = arb(float(c.base_contraction)) + arb(float(c.base_disturbance_norm))
    if not total + arb(float(c.base_estimate_norm)) <= 1:
        return "refused", "contraction + disturbance_norm + estimate_norm exceeds 1"
    return "proved", f"inputs need at most {c.reach[k:] + c.reserve} about u*"


def _cell(c: SimpleNamespace, low: Array, high: Array, noisy: bool) -> tuple[list[arb], list[arb]]:
    """e and v = K e, or K (e + eta), over the part of the base set in a box of z = C e."""
    least, most = -c.reach, c.reach.copy()
    for row, a, b in zip(c.base_cell_directions, low, high, strict=True):
        same = (c.rows == row).all(1)
        least[same], most[same] = np.maximum(least[same], a), np.minimum(most[same], b)
    k = len(c.disturbance)
    e, v = _balls(least[:k], most[:k]), _balls(least[k:], most[k:])
    return e, [x + arb(0, r) for x, r in zip(v, c.reserve, strict=True)] if noisy else v


def _perturbation(c: SimpleNamespace, source: str) -> Verdict:
    """Norm of what the disturbance ("w") or the measured error (through v) adds to a step."""
    k, m = len(c.disturbance), len(c.base_input)
    size = c.disturbance if source == "w" else c.tracking_error
    claim = float(c.base_disturbance_norm if source == "w" else c.base_estimate_norm)
    through = np.eye(k) if source == "w" else c.base_gain
    signs = np.array([(1.0, *rest) for rest in itertools.product((-1.0, 1.0), repeat=k - 1)])
    corners = _matrix(through) * _matrix((signs * size).T)
    reach = (_matrix(np.abs(through)) * _column(size)).entries()
    zero = np.zeros(k)

    def excess(a: Array, b: Array) -> float:
        if _outside(c, a, b):
            return 0.0
        e, v = _cell(c, a, b, noisy=True)
        if source == "w":
            rest = constants(e), constants(v), seeds(_balls(-size, size), 0, 1)
        else:
            rest = constants(e), seeds(v, 0, 1), constants(zero)
        jets = _jets(c, "error_map", constants(c.base_schedule), *rest)
        if jets is None:
            return np.inf
        slopes = [[jet.grad.get(i, arb(0)) for i in range(len(reach))] for jet in jets]
        moved = (c.factor * arb_mat([[x.mid() for x in row] for row in slopes]) * corners).tolist()
        worst = arb(0)
        for column in zip(*moved, strict=True):
            worst = worst.max(sum((x * x for x in column), arb(0)))
        return _over(worst.sqrt() + _left(c, slopes, reach), claim)

    return _prove(c, -c.root, c.root, excess)


def _left(c: SimpleNamespace, slopes: list[list[arb]], reach: Sequence[arb]) -> arb:
    """Norm of what the slopes' radii can move, over |y| <= reach."""
    rest = [sum((x.rad() * y for x, y in zip(row, reach, strict=True)), arb(0)) for row in slopes]
    rows = c.factor.tolist()
    return _norm(
        [sum((abs(x) * y for x, y in zip(row, rest, strict=True)), arb(0)) for row in rows]
    )


def _leaves(c: SimpleNamespace, first: int) -> Verdict:
    """The S-procedure inequality of some leaves."""
    last = min(first + LEAVES, len(c.base_leaves_low))
    for i in range(first, last):
        leaf = c.base_leaves_low[i], c.base_leaves_high[i], c.base_leaves_multipliers[i]
        if not _leaf_holds(c, *leaf, halvings=4):
            return "refused", f"leaf {i} does not prove the contraction"
    return "proved", f"{len(c.base_leaves_low)} leaves"


def _leaf_holds(
    c: SimpleNamespace, low: Array, high: Array, multipliers: Array, halvings: int
) -> bool:
    """True only if |f(e, K e)|_P <= contraction follows on the leaf, or on both its halves."""
    if _contracts(c, low, high, multipliers):
        return True
    if halvings == 0:
        return False
    i = int(np.argmax((high - low) / c.root))
    middle = 0.5 * (low[i] + high[i])
    return all(
        _leaf_holds(c, a, b, multipliers, halvings - 1)
        for a, b in (_replaced(low, high, i, b=middle), _replaced(low, high, i, a=middle))
    )


def _contracts(c: SimpleNamespace, low: Array, high: Array, multipliers: Array) -> bool:
    """|A y|² <= t on the ball |y| <= 1 and the slabs |c_i'y - z_i| <= h_i, by multipliers.

    f = f(0) + S (e, K e) with slopes S; A = L' mid(S) (I; K) L⁻ᵀ, the rest of S only adds to the
    norm. With l0, lam_i >= 0, l0 (1 - |y|²) + sum lam_i (h_i² - (c_i'y - z_i)²) >= 0 on the leaf;
    t - |A y|² minus that is (y, 1)' M (y, 1).
    """
    k = len(c.disturbance)
    scale = np.where(c.reach > 0.0, c.reach, 1.0)
    e, v = _cell(c, low, high, noisy=False)
    moving = slope_seeds(e, scale[:k]), slope_seeds(v, scale[k:], k)
    jets = _jets(c, "error_map", constants(c.base_schedule), *moving, constants(np.zeros(k)))
    if jets is None:
        return False
    units = [arb(x) for x in scale]
    slopes = [[jet.grad.get(i, arb(0)) / x for i, x in enumerate(units)] for jet in jets]
    start = [
        sum((abs(a) * jet.centre.abs_upper() for a, jet in zip(row, jets, strict=True)), arb(0))
        for row in c.factor.tolist()
    ]
    room = (
        arb(float(c.base_contraction))
        - _norm(start)
        - _left(c, slopes, [x.abs_upper() for x in e + v])
    )
    if not room > 0:
        return False
    a = c.factor * arb_mat([[x.mid() for x in row] for row in slopes]) * c.in_ball
    square_a = a.transpose() * a
    weights = [arb(x) for x in multipliers.tolist()]
    centre = [(arb(x) + arb(y)) / 2 for x, y in zip(low, high, strict=True)]
    half = [(arb(y) - arb(x)) / 2 for x, y in zip(low, high, strict=True)]
    rows = [[*row, -z] for row, z in zip(c.slabs.tolist(), centre, strict=True)]
    slabs = arb_mat(rows)
    m = (
        slabs.transpose()
        * arb_mat([[w * x for x in row] for w, row in zip(weights[1:], rows, strict=True)])
    ).tolist()
    for i in range(k):
        for j in range(k):
            m[i][j] -= square_a[i, j]
        m[i][i] += weights[0]
    m[k][k] += (
        room * room
        - weights[0]
        - sum((w * h * h for w, h in zip(weights[1:], half, strict=True)), arb(0))
    )
    return _positive(m)


def _folded(c: SimpleNamespace) -> list[Array]:
    """The signs that the symmetries give to z = C e; CertificateError if the set breaks one."""
    k, m = len(c.disturbance), len(c.base_input)
    group = {(1.0,) * len(c.base_cell_directions)}
    for signs in c.base_symmetries:
        e, v, s = signs[:k], signs[k : k + m], signs[k + m :]
        sides = [set(e[row != 0.0]) for row in c.base_cell_directions]
        if (
            np.any(np.abs(signs) != 1.0)
            or np.any(v[:, None] * c.base_gain != c.base_gain * e)
            or np.any(c.base_factor[e[:, None] != e] != 0.0)
            or np.any(s * c.base_schedule != c.base_schedule)
            or any(len(side) != 1 for side in sides)
        ):
            raise CertificateError(f"the base set does not have the symmetry {signs}")
        turn = [side.pop() for side in sides]
        group |= {tuple(np.multiply(g, turn)) for g in group}
    return [np.array(g) for g in sorted(group)]


def _cover(c: SimpleNamespace) -> Verdict:
    """Every z of the base set lies in a leaf or in the mirror image of one."""
    lows, highs = [], []
    for signs in _folded(c):
        a, b = signs * c.base_leaves_low, signs * c.base_leaves_high
        lows.append(np.minimum(a, b))
        highs.append(np.maximum(a, b))
    leaf_low, leaf_high = np.concatenate(lows), np.concatenate(highs)
    if not all(_norm(row) <= arb(x) for row, x in zip(c.slabs.tolist(), c.root, strict=True)):
        return "refused", "the leaves do not reach the ends of the base set"
    queue = [(-c.root, c.root, np.arange(len(leaf_low)), 0)]
    count = 0
    while queue:
        low, high, near, bare = queue.pop()
        count += 1
        near = near[((leaf_low[near] < high) & (leaf_high[near] > low)).all(1)]
        inside = (leaf_low[near] <= low) & (leaf_high[near] >= high)
        if inside.all(1).any() or _outside(c, low, high):
            continue
        bare = 0 if len(near) else bare + 1
        if bare > 40:
            return "refused", f"no leaf covers z in {low}, {high}"
        faces = np.concatenate((leaf_low[near], leaf_high[near]))
        middle = 0.5 * (low + high)
        if not len(near):
            faces = middle[None]
        away = np.abs(faces - middle) / (high - low)
        away[(faces <= low) | (faces >= high)] = np.inf
        at, axis = np.unravel_index(int(np.argmin(away)), away.shape)
        if not len(near):
            axis = int(np.argmax((high - low) / c.root))
        cut = faces[at, axis]
        queue.append((*_replaced(low, high, axis, b=cut), near, bare))
        queue.append((*_replaced(low, high, axis, a=cut), near, bare))
    return "proved", f"in {count} boxes, {len(leaf_low)} leaves with their images"


def _entries(c: SimpleNamespace) -> Verdict:
    """The certificate speaks of this program, and assumes what bundle.yaml assumes."""
    if c.hash != c.program.hash:
        return "refused", f"certified for program {c.hash[:12]}, this is {c.program.hash[:12]}"
    given, claims = c.bundle["assumptions"], {"jitter": c.bundle["assumptions"]["jitter_s"]}
    claims |= {name: value for name, value in given.items() if name in _SHAPES}
    claims |= {f"base_{name}": value for name, value in given["base"].items()}
    claims |= {"period": c.bundle["period_s"], "delay_steps": c.bundle["delay_steps"]}
    claims["estimate_error"] = [row["estimate_error"] for row in given["errors"]]
    claims |= {f"input_{end}": [u[end] for u in c.bundle["inputs"]] for end in ("low", "high")}
    for name, value in claims.items():
        if not np.array_equal(getattr(c, name).ravel(), np.ravel(np.array(value, float))):
            return "refused", f"{name} is {getattr(c, name)}, bundle.yaml has {value}"
    return "proved", f"equal to bundle.yaml: {', '.join(sorted(claims))}"


def _formulas(c: SimpleNamespace, seed: int) -> Verdict:
    """The identities between the program's functions, at random states."""
    rng, worst = np.random.default_rng(seed), arb(0)
    for _ in range(SAMPLES // PARTS):
        for name, left, right in _identities(c, rng):
            gap = max(
                (abs(a - b).abs_upper() for a, b in zip(left, right, strict=True)), key=float
            )
            if not gap <= TOLERANCE:
                return "refused", f"{name}: off by {float(gap):.3g}"
            worst = worst.max(gap)
    return "checked", f"at {SAMPLES} states, to {float(worst):.1g}; not a proof"


def _identities(
    c: SimpleNamespace, rng: np.random.Generator
) -> Iterator[tuple[str, Sequence[arb], Sequence[arb]]]:
    def within(reach: Array) -> list[arb]:
        return list(map(arb, (rng.uniform(-1.0, 1.0, len(reach)) * reach).tolist()))

    def call(name: str, *inputs: Any) -> list[arb]:
        return _values(c, name, *inputs)

    k, m = len(c.disturbance), len(c.base_input)
    start = np.ones(_start(c))
    x, z = call("operating_state", within(start)), call("operating_state", within(start))
    reach = np.maximum(c.error_domain, c.base_extent)
    e, d, v, w = (
        within(reach),
        within(c.error_domain),
        within(c.input_domain),
        within(c.disturbance),
    )
    u = [arb(a) for a in rng.uniform(c.input_low, c.input_high).tolist()]
    none, still = [arb(0)] * k, [arb(0)] * m
    s, y = call("schedule", z, u), call("retract", z, e)
    yield "difference(retract(z, e), z) = e", call("difference", y, z), e
    moved = call("retract", call("step", y, [a + b for a, b in zip(u, v, strict=True)]), w)
    after = call("difference", moved, call("step", z, u))
    yield "error_map(schedule(z, u), e, v, w)", call("error_map", s, e, v, w), after
    yield "error_map(s, 0, 0, 0) = 0", call("error_map", s, none, still, none), none
    jets = _jets(c, "error_map", *map(constants, (s, none, still)), seeds(none, 0, 1))
    for i, jet in enumerate(jets or []):
        unit = [arb(i == j) for j in range(k)]
        yield "d error_map/dw = I", [jet.grad.get(j, arb(0)) for j in range(k)], unit
    yield "shifted(e, d)", call("shifted", e, d), call("difference", call("retract", y, d), z)
    yield "safe_at(z, e)", call("safe_at", z, e), call("safe_set", y)
    rest, other = call("base_point", z), call("base_point", x)
    back = call("difference", other, call("retract", other, d))
    yield (
        "retract is the same everywhere",
        call("difference", rest, call("retract", rest, d)),
        back,
    )
    onward = call("difference", call("step", rest, c.base_input), rest)
    yield "step(x*, u*) = x*", onward, none
    yield (
        "schedule(x*, u*) = s*",
        call("schedule", rest, c.base_input),
        list(map(arb, c.base_schedule)),
    )
    error = arb_mat([[a] for a in call("difference", z, rest)])
    drive = (_matrix(c.base_gain) * error).entries()
    wanted = [
        (arb(a) + b).max(arb(low)).min(arb(high))
        for a, b, low, high in zip(c.base_input, drive, c.input_low, c.input_high, strict=True)
    ]
    yield "base_controller(x)", call("base_controller", z), wanted
    size = sum((a * a for a in (c.factor * error).entries()), arb(0))
    yield "base_set(x) = 1 - |L' e|²", call("base_set", z), [1 - size]
    here = call("error_map", c.base_schedule, e, v, w)
    for signs in c.base_symmetries.tolist():
        flipped = [
            [a * b for a, b in zip(signs[i:], y, strict=False)]
            for i, y in ((0, e), (k, v), (0, w))
        ]
        there = call("error_map", c.base_schedule, *flipped)
        yield "symmetry", there, [a * b for a, b in zip(signs, here, strict=False)]
    if c.unit:
        ahead = call("step", z, u)
        yield "step keeps |q| = 1", [sum((ahead[i] ** 2 for i in c.unit), arb(0))], [arb(1)]


def _flow(c: SimpleNamespace) -> Verdict:
    """`step` follows `dynamics` over one period, to 1 % of the disturbance (Runge-Kutta, 16)."""
    rng, share, h = np.random.default_rng(0), 0.0, arb(float(c.period)) / 16
    for _ in range(20):
        x = start = _values(c, "operating_state", rng.uniform(-1.0, 1.0, _start(c)))
        u = rng.uniform(c.input_low, c.input_high)
        for _ in range(16):
            total, slope = [arb(0)] * len(x), [arb(0)] * len(x)
            for ahead, weight in ((0, 1), (h / 2, 2), (h / 2, 2), (h, 1)):
                slope = _values(
                    c, "dynamics", [a + ahead * b for a, b in zip(x, slope, strict=True)], u
                )
                total = [a + weight * b for a, b in zip(total, slope, strict=True)]
            x = [a + h / 6 * b for a, b in zip(x, total, strict=True)]
        gap = _values(c, "difference", x, _values(c, "step", start, u))
        allowed = 0.01 * c.disturbance + 1e-9
        share = max(share, *(float(abs(a).upper()) / b for a, b in zip(gap, allowed, strict=True)))
    if share > 1.0:
        return "refused", f"step and dynamics differ by {share:.3g} % of the disturbance"
    return "checked", f"step and dynamics differ by at most {share:.2g} % of the disturbance"
