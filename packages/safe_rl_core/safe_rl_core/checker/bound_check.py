"""The derived bounds of a certificate, shown again; docs/theory.md says what each is for."""

from __future__ import annotations

import numpy as np
from flint import arb

from safe_rl_core.ball import ZERO, Array, Jet, balls, seeds, square, up
from safe_rl_core.checker.boxes import Verdict, folds, grid, over, prove
from safe_rl_core.checker.claims import SIGMA_MAX, Claims, jets, values
from safe_rl_core.errors import CertificateError

PIECES = 24  # of the parts, to share them among processes


def prepare(c: Claims) -> None:
    """Add to the claims the parts of the cells on which `remainder` is claimed.

    The variables that few of the program's steps depend on change fastest; of parts that are
    images of each other, in one cell, one is left. Disturbances reach SIGMA_MAX times as far.
    """
    rest = np.r_[c.error_domain, c.input_domain, SIGMA_MAX * c.disturbance]
    p = len(c.schedule_cells)
    c.part_low, c.part_high = np.r_[c.schedule_low, -rest], np.r_[c.schedule_high, rest]
    images = [np.r_[g[c.k + c.m :], g[: c.k + c.m], g[: c.k]] for g in c.group]
    c.part_group = [g for g in images if np.all(g[:p][c.schedule_cells > 1.0] > 0.0)]
    splits = np.maximum(c.remainder_splits, 1.0) * np.r_[c.schedule_cells, np.ones(len(rest))]
    steps = [len(c.tapes["error_map"].users(1 << i)) for i in range(len(splits))]
    lows, highs = grid(c.part_low, c.part_high, splits, np.argsort(steps, kind="stable")[::-1])
    kept = np.all(highs[:, folds(c.part_low, c.part_high, c.part_group)] > 0.0, axis=1)
    c.parts = lows[kept], highs[kept]


def remainder(c: Claims, piece: int) -> Verdict:
    """|second derivatives| of error_map to (e, v, w) <= those of the cell, on some parts."""
    size, cells = c.schedule_high - c.schedule_low, tuple(c.schedule_cells.astype(int))
    p = len(size)
    # A little wider, so that who computes the index of a cell in floats stays within the cell.
    edge = np.r_[1e-10 * size, np.zeros(len(c.part_low) - p)]

    def excess(a: Array, b: Array) -> list[float]:
        share, more = (0.5 * (a + b)[:p] - c.schedule_low) / size, edge * (a < b)
        cell = np.ravel_multi_index(tuple((share * cells).astype(int)), cells)
        return _bent(c, "error_map", 1, balls(a, b, more), c.remainder[cell])

    some = slice(*(len(c.parts[0]) * n // PIECES for n in (piece, piece + 1)))
    parts = c.parts[0][some], c.parts[1][some]
    verdict, why = prove(c.budget, c.part_low, c.part_high, excess, c.part_group, parts)
    return verdict, why if verdict == "refused" else f"in {len(c.remainder)} cells"


def table(c: Claims, name: str, fixed: int, low: Array, high: Array, claimed: Array) -> Verdict:
    """|second derivatives| of a function <= claimed on a box; `fixed` inputs are not seeded."""

    def excess(a: Array, b: Array) -> list[float]:
        if name == "safe_at" and not _possible(c, a, b):
            return []
        return _bent(c, name, fixed, balls(a, b), claimed)

    return prove(c.budget, low, high, excess)


def _bent(c: Claims, name: str, fixed: int, box: list[arb], claims: Array) -> list[float]:
    """Excess of the second derivatives on a box over claims."""
    inputs, seeded, begin = [], 0, 0
    for i, (_, size) in enumerate(c.program.functions[name].inputs):
        part, begin = box[begin : begin + size], begin + size
        inputs.append(part if i < fixed else seeds(part, seeded))
        seeded += size * (i >= fixed)
    outputs = jets(c, name, *inputs)
    if outputs is None:
        return [np.inf]
    rows = zip(outputs, np.minimum(claims, np.swapaxes(claims, 1, 2)).tolist(), strict=True)
    return [over(abs(x), row[i][j]) for jet, row in rows for (i, j), x in jet.hess.items()]


def _possible(c: Claims, low: Array, high: Array) -> bool:
    """False if no state in the box has a unit quaternion."""
    sides = balls(low[c.unit], high[c.unit])
    return not sides or sum((square(x) for x in sides), ZERO).overlaps(arb(1))


def _spread(outputs: list[Jet] | None, reach: Array, extra: Array, claim: Array) -> list[float]:
    """Excess of sum_i |derivative to seed i| reach_i + extra over the claim, in the worst row."""
    if outputs is None:
        return [np.inf]
    rows = zip(outputs, extra.tolist(), claim.tolist(), strict=True)
    return [over(_reached(jet, reach, arb(more)), bound) for jet, more, bound in rows]


def _reached(jet: Jet, reach: Array, start: arb = ZERO) -> arb:
    return sum((abs(x) * arb(reach[i]) for i, x in jet.grad.items()), start)


def _at_references(c: Claims, size: Array, extra: Array, claim: Array) -> Verdict:
    """claim >= sum_i |derivative i of error_map to (e, v, w) at 0| size_i + extra, everywhere."""
    free = [seeds([ZERO] * n, first, 1) for n, first in ((c.k, 0), (c.m, c.k), (c.k, c.k + c.m))]

    def excess(a: Array, b: Array) -> list[float]:
        return _spread(jets(c, "error_map", balls(a, b), *free), size, extra, claim)

    turns = [g[c.k + c.m :] for g in c.group]
    return prove(c.budget, c.schedule_low, c.schedule_high, excess, turns)


def prediction(c: Claims) -> Verdict:
    """prediction_error, from estimate_error through the delay, for all schedules."""
    if c.delay_steps > 1 or np.any(c.estimate_error > c.error_domain):
        return "refused", "only a delay of one period, or none, can be checked"
    if c.delay_steps == 0:
        enough = bool(np.all(c.prediction_error >= c.estimate_error))
        return "proved" if enough else "refused", "prediction_error >= estimate_error: no delay"
    size = np.r_[c.estimate_error, np.zeros(c.m), c.disturbance]
    curved = 0.5 * (size @ c.remainder @ size).max(0) * (1.0 + 1e-12)
    return _at_references(c, size, curved, c.prediction_error)


def tracking(c: Claims) -> Verdict:
    """|shifted(e, d) - e| for every d that |difference(x, x_hat)| <= prediction_error allows."""
    z = values(c, "base_point", values(c, "operating_state", 0.0 * c.spread))
    moved = jets(c, "retract", z, seeds(balls(-c.prediction_error, c.prediction_error), 0, 1))
    returned = jets(c, "difference", z, moved or []) or []
    back = np.array([up(_reached(jet, c.prediction_error)) for jet in returned])
    reach, d = np.maximum(c.error_domain, c.base_extent), seeds(balls(-back, back), 0, 1)

    def excess(a: Array, b: Array) -> list[float]:
        shifted = jets(c, "shifted", balls(a, b), d)
        return _spread(shifted, back, np.zeros(c.k), c.tracking_error)

    return prove(c.budget, -reach, reach, excess)


def sampling(c: Claims) -> Verdict:
    """period²/8 sup (d²h/dt²)⁺ + sup |grad h| disturbance, over states and inputs."""
    low, high = _swept(c)
    n, eighth = len(low), arb(float(c.period)) ** 2 / 8
    noise = seeds(balls(-c.disturbance, c.disturbance), 0, 1)

    def excess(a: Array, b: Array) -> list[float]:
        if not _possible(c, a, b):
            return []
        x, u = balls(a[:n], b[:n]), balls(a[n:], b[n:])
        speed, slopes = jets(c, "dynamics", x, u), jets(c, "safe_at", x, noise)
        along = [Jet(y, y, {0: v.value}, None) for y, v in zip(x, speed or [], strict=False)]
        rates = speed and jets(c, "dynamics", along, u)
        if not rates or not slopes:
            return [np.inf]
        pairs = zip(along, rates, strict=True)
        bent = [Jet(y.value, y.value, y.grad, {(0, 0): r.grad.get(0, ZERO)}) for y, r in pairs]
        rows = jets(c, "safe_set", bent)
        if not rows:
            return [np.inf]
        sag = [up(eighth * row.hess.get((0, 0), ZERO).max(ZERO)) for row in rows]
        return _spread(slopes, c.disturbance, np.array(sag), c.sampling_margin)

    return prove(c.budget, np.r_[low, c.input_low], np.r_[high, c.input_high], excess)


def _swept(c: Claims) -> tuple[Array, Array]:
    """A box of states that no flow leaves within a period from the state domain (Picard)."""
    width, u = np.zeros(len(c.state_low)), balls(c.input_low, c.input_high)
    for _ in range(30):
        low = np.nextafter(c.state_low - width, -np.inf)
        high = np.nextafter(c.state_high + width, np.inf)
        field = jets(c, "dynamics", balls(low, high), u)
        if field is None:
            break
        needed = np.array([up(arb(float(c.period)) * abs(jet.value)) for jet in field])
        if np.all(needed <= width):
            return low, high
        width = np.where(needed > width, 1.1 * needed, width)
    raise CertificateError("the flow over one period cannot be enclosed from the state domain")
