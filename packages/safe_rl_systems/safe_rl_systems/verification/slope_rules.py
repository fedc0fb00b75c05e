"""The rules of slope arithmetic, one per operation of a program.

Every rule is an identity between f(x) - f(c) and its parts, with one row of slopes per value:
"for each x there is a row s in S with f(x) - f(c) = s (x - c)". A row may be chosen among several
identities, per cell, but only as a whole; its entries belong together.

Where no rule holds (a `where` that the cell does not decide, a jump) the row becomes [-inf, inf]:
such a cell proves nothing and has to be split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from safe_rl_core.errors import ProgramError
from safe_rl_core.program import Instruction

from safe_rl_systems.verification.interval import (
    ACTIVATIONS,
    BINARY,
    UNARY,
    Array,
    Interval,
    affine,
    choose,
    point,
    select,
    sqr,
    sqrt,
    stack,
    whole,
)
from safe_rl_systems.verification.smooth import SMOOTH

_CONDITIONS = ("not", "lt", "le", "eq", "and", "or")


@dataclass(frozen=True)
class Slope:
    """A value over N cells: at the centre (1,) or (N,), over each cell (N,), and its rows.

    `rows` (len(seeds), N) are the slopes to the seeds it depends on; the others are zero.
    """

    center: Interval
    range: Interval
    seeds: tuple[int, ...] = ()
    rows: Interval | None = None


def constant(x: float) -> Slope:
    """A number: the same everywhere."""
    value = Interval(np.full(1, x))
    return Slope(value, value)


class SlopeRules:
    """The rules; `width` (d) holds how far each seed reaches from the centre, per cell."""

    def __init__(self, width: list[Array]) -> None:
        self.width = width

    def value_of(
        self,
        ins: Instruction,
        values: Sequence[Slope | list[Slope]],
        columns: Mapping[str, list[Slope]],
        weights: Mapping[str, Array],
    ) -> Slope | list[Slope]:
        """One instruction; a dense layer gives the list of its elements."""
        op = ins.op
        if op == "const":
            return constant(ins.value)
        if op == "input":
            return columns[ins.name][ins.index]
        if op == "element":
            return values[ins.args[0]][ins.index]
        arguments = [values[k] for k in ins.args]
        if op == "dense":
            return self._dense_layer(ins, arguments, weights)
        if op == "mul" and ins.args[0] == ins.args[1]:
            return self._square(arguments[0])
        if op in _CONDITIONS:
            return self._condition(op, arguments)
        if op == "where":
            return self._where(*arguments)
        rule = getattr(self, f"_{op}", None)
        if rule is not None:
            return rule(*arguments)
        return self._unary(op, arguments[0])

    def _add(self, a: Slope, b: Slope) -> Slope:
        seeds, x, y = _aligned(a, b)
        rows = None if x is None else x + y
        return Slope(a.center + b.center, a.range + b.range, seeds, rows)

    def _neg(self, a: Slope) -> Slope:
        return Slope(-a.center, -a.range, a.seeds, None if a.rows is None else -a.rows)

    def _sub(self, a: Slope, b: Slope) -> Slope:
        seeds, x, y = _aligned(a, b)
        rows = None if x is None else x - y
        return Slope(a.center - b.center, a.range - b.range, seeds, rows)

    def _scaled(self, a: Slope, factor: Interval) -> Interval | None:
        return None if a.rows is None else a.rows * factor

    def _mul(self, a: Slope, b: Slope) -> Slope:
        """ab - a0 b0 = da b + a0 db = da b0 + a db = da (b+b0)/2 + (a+a0)/2 db."""
        center, span = a.center * b.center, a.range * b.range
        if a.rows is None or b.rows is None:
            one, other = (b, a) if a.rows is None else (a, b)
            return Slope(center, span, one.seeds, self._scaled(one, other.range))
        half = point(0.5)
        forms = (
            (b.range, a.center),
            (b.center, a.range),
            ((b.range + b.center) * half, (a.range + a.center) * half),
        )
        seeds, x, y = _aligned(a, b)
        candidates = [x * fa + y * fb for fa, fb in forms]
        return Slope(center, span, seeds, self._narrowest(seeds, candidates))

    def _square(self, a: Slope) -> Slope:
        """a² - a0² = da (a + a0)."""
        return Slope(sqr(a.center), sqr(a.range), a.seeds, self._scaled(a, a.range + a.center))

    def _div(self, a: Slope, b: Slope) -> Slope:
        """a/b - a0/b0 = (da - (a0/b0) db) / b = (da - (a/b) db) / b0."""
        center, span = a.center / b.center, a.range / b.range
        if b.rows is None:
            rows = None if a.rows is None else a.rows / b.range
            return Slope(center, span, a.seeds, rows)
        seeds, x, y = _aligned(a, b)
        candidates = [(x - y * center) / b.range, (x - y * span) / b.center]
        return Slope(center, span, seeds, self._narrowest(seeds, candidates))

    def _min(self, a: Slope, b: Slope) -> Slope:
        return self._extreme("min", a, b)

    def _max(self, a: Slope, b: Slope) -> Slope:
        return self._extreme("max", a, b)

    def _extreme(self, op: str, a: Slope, b: Slope) -> Slope:
        """min - min0 is a mixture of da and db; only one of them if the order is decided."""
        seeds, x, y = _aligned(a, b)
        center, span = BINARY[op](a.center, b.center), BINARY[op](a.range, b.range)
        if x is None:
            return Slope(center, span)
        first, second = (a, b) if op == "min" else (b, a)
        # below: the result is a (for max: b <= a); above: the result is b
        below = (first.range.high <= second.range.low) & (first.center.high <= second.center.low)
        above = (second.range.high <= first.range.low) & (second.center.high <= first.center.low)
        rows = select(below, x, select(above, y, x.hull(y)))
        return Slope(center, span, seeds, rows)

    def _atan2(self, y: Slope, x: Slope) -> Slope:
        """Mean value along the segment from the centre, away from the cut at x < 0, y = 0."""
        seeds, dy, dx = _aligned(y, x)
        center, span = BINARY["atan2"](y.center, x.center), BINARY["atan2"](y.range, x.range)
        if dy is None:
            return Slope(center, span)
        hy, hx = y.range.hull(y.center), x.range.hull(x.center)
        smooth = (hx.low > 0.0) | (hy.low > 0.0) | (hy.high < 0.0)
        square = sqr(hx) + sqr(hy)
        rows = dy * (hx / square) - dx * (hy / square)
        return Slope(center, span, seeds, select(smooth, rows, whole(rows.shape)))

    def _floor(self, a: Slope) -> Slope:
        return self._step("floor", a)

    def _sign(self, a: Slope) -> Slope:
        return self._step("sign", a)

    def _step(self, op: str, a: Slope) -> Slope:
        """Piecewise constant: no slope where the cell and the centre lie on one step."""
        return _stepped(UNARY[op](a.center), UNARY[op](a.range), (a,))

    def _condition(self, op: str, arguments: Sequence[Slope]) -> Slope:
        function = UNARY[op] if op in UNARY else BINARY[op]
        center = function(*(a.center for a in arguments))
        return _stepped(center, function(*(a.range for a in arguments)), arguments)

    def _where(self, condition: Slope, yes: Slope, no: Slope) -> Slope:
        """The side that is decided in the cell and the centre alike.

        A condition without seeds is one of parameters: it is the same in both, decided or not.
        """
        seeds, x, y = _aligned(yes, no)
        true = (condition.range.low > 0.0) & (condition.center.low > 0.0)
        false = (condition.range.high == 0.0) & (condition.center.high == 0.0)
        center = choose(condition.center, yes.center, no.center)
        span = choose(condition.range, yes.range, no.range)
        if condition.rows is not None and not np.all(true | false):
            seeds = tuple(sorted({*seeds, *condition.seeds}))
            x, y = _expanded(yes, seeds), _expanded(no, seeds)
        if x is None or y is None:
            return Slope(center, span)
        shape = np.broadcast_shapes(x.shape, y.shape, true.shape)
        open_rows = x.hull(y) if condition.rows is None else whole(shape)
        return Slope(center, span, seeds, select(true, x, select(false, y, open_rows)))

    def _sqrt(self, a: Slope) -> Slope:
        """√a - √a0 = da / (√a + √a0)."""
        center, span = sqrt(a.center), sqrt(a.range)
        rows = None if a.rows is None else a.rows / (span + center)
        return Slope(center, span, a.seeds, rows)

    def _abs(self, a: Slope) -> Slope:
        """Slope 1 or -1 where cell and centre have one sign, between them elsewhere."""
        both = a.range.hull(a.center)
        factor = select(
            both.low >= 0.0,
            point(np.ones(both.shape)),
            select(both.high <= 0.0, point(-np.ones(both.shape)), Interval(-1.0, 1.0)),
        )
        return Slope(abs(a.center), abs(a.range), a.seeds, self._scaled(a, factor))

    def _unary(self, op: str, a: Slope) -> Slope:
        """f(a) - f(a0) = k da, k in f'(hull) and in f'(a0) + f''(hull) (a - a0) / 2."""
        if a.rows is None:
            return Slope(UNARY[op](a.center), UNARY[op](a.range))
        center, at_center, _ = SMOOTH[op](a.center)
        _, wide, bend = SMOOTH[op](a.range.hull(a.center))
        taylor = at_center + bend * (a.range - a.center) * point(0.5)
        factor = Interval(np.fmax(wide.low, taylor.low), np.fmin(wide.high, taylor.high))
        return Slope(center, UNARY[op](a.range), a.seeds, a.rows * factor)

    def _dense_layer(
        self, ins: Instruction, inputs: Sequence[Slope], weights: Mapping[str, Array]
    ) -> list[Slope]:
        weight, bias = weights[f"{ins.name}.weight"], weights[f"{ins.name}.bias"]
        centers = affine(weight, stack([a.center for a in inputs]), bias)
        spans = affine(weight, stack([a.range for a in inputs]), bias)
        seeds = tuple(sorted({s for a in inputs for s in a.seeds}))
        rows = [_expanded(a, seeds) for a in inputs] if seeds else []
        out = []
        for i in range(len(bias)):
            total = None
            for row, factor in zip(rows, weight[i], strict=False):
                part = row * point(factor)
                total = part if total is None else total + part
            element = Slope(centers[..., i], spans[..., i], seeds, total)
            out.append(self._activated(ins.activation, element))
        return out

    def _activated(self, activation: str, a: Slope) -> Slope:
        if activation == "tanh":
            return self._unary("tanh", a)
        if activation == "relu":
            return self._extreme("max", a, constant(0.0))
        if activation not in ACTIVATIONS:
            raise ProgramError(f"no slope rule for the activation '{activation}'")
        return a

    def _narrowest(self, seeds: Sequence[int], candidates: Sequence[Interval]) -> Interval:
        """Per cell, the whole row with the least sum of width times reach of the seed."""
        reach = np.stack([np.broadcast_to(self.width[s], candidates[0].shape[1:]) for s in seeds])
        best, least = candidates[0], _spread(candidates[0], reach)
        for rows in candidates[1:]:
            spread = _spread(rows, reach)
            best = select(spread < least, rows, best)
            least = np.minimum(spread, least)
        return best


def _spread(rows: Interval, reach: Array) -> Array:
    with np.errstate(invalid="ignore"):
        total = ((rows.high - rows.low) * reach).sum(0)
    return np.where(np.isnan(total), np.inf, total)


def _stepped(center: Interval, span: Interval, parts: Sequence[Slope]) -> Slope:
    """A value that jumps: without slope where it is the same number in the cell and the centre."""
    same = (span.low == span.high) & (center.low == center.high) & (span.low == center.low)
    if np.all(same):
        return Slope(center, span)
    seeds = tuple(sorted({s for a in parts for s in a.seeds}))
    shape = (len(seeds), *same.shape)
    zero = Interval(np.zeros(shape))
    return Slope(center, span, seeds, select(same, zero, whole(shape)) if seeds else None)


def _aligned(a: Slope, b: Slope) -> tuple[tuple[int, ...], Interval | None, Interval | None]:
    """Both values' rows over the union of their seeds."""
    if a.seeds == b.seeds:
        return a.seeds, a.rows, b.rows
    seeds = tuple(sorted({*a.seeds, *b.seeds}))
    return seeds, _expanded(a, seeds), _expanded(b, seeds)


def _expanded(a: Slope, seeds: tuple[int, ...]) -> Interval:
    if a.seeds == seeds and a.rows is not None:
        return a.rows
    cells = a.range.shape if a.rows is None else a.rows.shape[1:]
    low, high = np.zeros((len(seeds), *cells)), np.zeros((len(seeds), *cells))
    if a.rows is not None:
        index = [seeds.index(s) for s in a.seeds]
        low[index], high[index] = a.rows.low, a.rows.high
    return Interval(low, high)
