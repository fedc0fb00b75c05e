"""VALID of one plan in ball arithmetic, for those whose slack is too close to zero for float64.

The same inequalities as in `plans`, without the allowance for rounding in V2, V4 and V5, because
nothing is rounded here. It stays in the tube, where it also covers the tolerance with which
`flight` compares z_0 and the tracker's inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from flint import arb, arb_mat, ctx

from safe_rl_core.audit.plans import EPS
from safe_rl_core.audit.records import Array, Theorem
from safe_rl_core.ball import constants, seeds
from safe_rl_core.tape import evaluate

BITS = 160
Balls = list[arb]


class _Undecided(Exception):
    """A choice of the program, such as a minimum, is not the same on the whole ball."""


def holds(t: Theorem, z_0: Array, ubar: Array, last: int) -> bool:
    """Whether the plan z_0 (n,), ubar (N+1, m) is VALID as far as node `last`; N + 1: to its end.

    What lies behind is not close to zero and decided in float64. False where balls cannot tell.
    """
    before, ctx.prec = ctx.prec, BITS
    try:
        return all(bool(condition) for condition in _conditions(t, z_0, ubar, last))
    except _Undecided:
        return False
    finally:
        ctx.prec = before


def _conditions(t: Theorem, z_0: Array, ubar: Array, last: int) -> Iterator[bool]:
    c, z, noise, tracking = t.c, _balls(z_0), _balls(t.c.disturbance), _balls(t.c.tracking_error)
    g = _matrix(np.diag(c.prediction_error))
    zero = _balls(0.0 * c.disturbance)
    for j in range(min(last, t.horizon) + 1):
        e = _sums(g)
        yield from (x <= bound for x, bound in zip(e, c.error_domain, strict=True))
        h, grad = _at(t, "safe_at", [z, zero], [1])
        reach = zip(
            h, _sums(grad * g), _curved(c.safe_remainder, e), c.sampling_margin, strict=True
        )
        yield from (row - tube - bend - arb(gap) >= 0 for row, tube, bend, gap in reach)
        yield from _within(c.state_low - EPS, z, c.state_high + EPS)
        if j == t.horizon:
            break
        u, gain = _balls(ubar[j]), _matrix(c.tracking_gain * (j > 0))
        v = _plus(_sums(gain * g), _sums(gain, tracking))
        for low, x, dx, high, most in zip(t.low, u, v, t.high, c.input_domain, strict=True):
            yield from (arb(low) <= x - dx, x + dx <= arb(high), dx <= arb(most))
        s = _at(t, "schedule", [z, u])[0]
        yield from _within(c.schedule_low, s, c.schedule_high)
        slopes = _at(t, "error_map", [s, zero, _balls(0.0 * t.low), zero], [1, 2])[1].table()
        a, b = (arb_mat([row[part] for row in slopes])
                for part in (slice(len(zero)), slice(len(zero), None)))  # fmt: skip
        held = b * gain
        more = _plus(noise, _sums(held, tracking), _curved(_remainder(t, s), e + v + noise))
        w = [x + arb(EPS) for x in more]
        rows = ((a + held) * g).table()
        g = arb_mat([row + [w[i] if i == r else arb(0) for i in range(len(w))]
                     for r, row in enumerate(rows)])  # fmt: skip
        z = _at(t, "step", [z, u])[0]
    if last > t.horizon:
        yield from _end(t, z, g, e)


def _end(t: Theorem, z: Balls, g: arb_mat, e: Balls) -> Iterator[bool]:
    """V4 and V5."""
    c, k, u = t.c, len(e), _balls(t.c.base_input)
    centre = _at(t, "base_point", [z])[0]
    off = _at(t, "difference", [z, centre])[0]
    yield from _within(-c.base_extent, off, c.base_extent)
    turn = _at(t, "shifted", [off, [arb(0)] * k], [1])[1]
    factor = _matrix(c.base_factor.T)
    tail = _curved(c.shift_remainder[:, k:, k:], e)
    away = [row[0] for row in (factor * arb_mat([[x] for x in off])).table()]
    yield _norm(away) + _norm(_sums(factor * turn * g)) + _norm(_sums(factor, tail)) <= 1
    h, grad = _at(t, "safe_at", [centre, [arb(0)] * k], [1])
    bend = _curved(c.safe_remainder, _balls(c.base_extent))
    reach = _matrix(c.base_factor).solve(grad.transpose()).transpose().table()
    for row, most, curve, gap in zip(h, reach, bend, c.sampling_margin, strict=True):
        yield row - _norm(most) - curve - arb(gap) >= 0
    for name, args, wanted in (
        ("difference", [_at(t, "step", [centre, u])[0], centre], np.zeros(k)),
        ("schedule", [centre, u], c.base_schedule),
    ):
        yield from (
            abs(x - arb(y)) <= EPS for x, y in zip(_at(t, name, args)[0], wanted, strict=True)
        )


def _at(
    t: Theorem, name: str, point: Sequence[Balls], of: Sequence[int] = ()
) -> tuple[Balls, arb_mat | None]:
    """Values of a function, and its derivative with respect to the inputs numbered `of`."""
    args, count = [], 0
    for i, x in enumerate(point):
        args.append(seeds(x, count, order=1) if i in of else constants(x))
        count += len(x) * (i in of)
    jets = evaluate(t.program, name, *args)
    if None in jets:
        raise _Undecided
    slopes = [[jet.grad.get(i, arb(0)) for i in range(count)] for jet in jets]
    return [jet.value for jet in jets], arb_mat(slopes) if of else None


def _remainder(t: Theorem, s: Balls) -> Array:
    """The table of the cell that s lies in; on the border between two cells either holds."""
    low, high, cells = t.c.schedule_low, t.c.schedule_high, np.asarray(t.c.schedule_cells, int)
    share = (np.array([float(x.mid()) for x in s]) - low) / (high - low)
    place = np.clip(np.floor(share * cells), 0, cells - 1).astype(int)
    return t.c.remainder[np.ravel_multi_index(tuple(place), tuple(cells))]


def _balls(values: Array) -> Balls:
    return [arb(float(x)) for x in values]


def _matrix(values: Array) -> arb_mat:
    return arb_mat(values.tolist())


def _sums(m: arb_mat, weights: Balls | None = None) -> Balls:
    """Row sums of |m|, each column times its weight."""
    rows = m.table()
    if weights is None:
        return [sum((abs(x) for x in row), arb(0)) for row in rows]
    return [sum((abs(x) * y for x, y in zip(row, weights, strict=True)), arb(0)) for row in rows]


def _curved(table: Array, x: Balls) -> Balls:
    """Half the quadratic forms of `table` (rows, d, d) at x (d,)."""
    return [sum((arb(form[a, b]) * x[a] * x[b] for a, b in np.argwhere(form)), arb(0)) / 2
            for form in table]  # fmt: skip


def _plus(*terms: Balls) -> Balls:
    return [sum(parts, arb(0)) for parts in zip(*terms, strict=True)]


def _within(low: Array, x: Balls, high: Array) -> Iterator[bool]:
    for bottom, value, top in zip(low, x, high, strict=True):
        yield from (arb(float(bottom)) <= value, value <= arb(float(top)))


def _norm(x: Balls) -> arb:
    """An upper bound: a ball around zero has no square root."""
    return sum((y.abs_upper() ** 2 for y in x), arb(0)).sqrt()
