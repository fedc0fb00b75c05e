"""The chain rule for every operation of a program; see jets.py for what it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Instruction

from safe_rl_systems.verification import interval as iv
from safe_rl_systems.verification.arithmetic import raw
from safe_rl_systems.verification.interval import Array, Interval, point
from safe_rl_systems.verification.smooth import SMOOTH

Mask = NDArray[np.bool_]
Pair = tuple[int, int]
#: Part of a sum: which variables or pairs, and a block (their number, cells).
Part = tuple[Sequence[Any], Interval]

_NONE = raw(np.zeros((0, 1)), np.zeros((0, 1)))
_ZERO = point(np.zeros(1))


@dataclass(frozen=True, eq=False)
class Jet:
    """A number with derivatives: value (cells,), gradient (variables, cells), hessian likewise.

    `pairs` are the (a, b), a <= b, whose second derivative may be nonzero. `jumps` marks the cells
    in which the value may jump; None if there is none. A trailing axis of length 1 stands for
    every cell.
    """

    value: Interval
    variables: tuple[int, ...] = ()
    gradient: Interval = _NONE
    pairs: tuple[Pair, ...] = ()
    hessian: Interval = _NONE
    jumps: Mask | None = None


def apply(
    ins: Instruction,
    values: list[Any],
    columns: dict[str, Sequence[Jet]],
    weights: Mapping[str, Array],
    order: int,
) -> Any:
    """The jet of one instruction from those before it; for a layer, one jet per row."""
    op = ins.op
    if op == "const":
        return Jet(point(np.full(1, ins.value)))
    if op == "input":
        return columns[ins.name][ins.index]
    if op == "element":
        return values[ins.args[0]][ins.index]
    jets: list[Jet] = [values[k] for k in ins.args]
    if op in _LOGIC:
        return _logic(op, jets)
    if op == "where":
        return _where(*jets)
    for jet in jets:
        _refuse(jet.jumps, "its argument may jump")
    if op == "dense":
        return _dense(ins, jets, weights, order)
    if op == "mul" and ins.args[0] == ins.args[1]:
        return _unary(jets[0], iv.sqr(jets[0].value), 2.0 * jets[0].value, point(2.0), order)
    if op == "neg":
        return _negated(jets[0])
    if op in SMOOTH:
        return _unary(jets[0], *SMOOTH[op](jets[0].value), order)
    if op == "abs":
        return _larger(jets[0], _negated(jets[0]), order)
    if op == "min":
        return _negated(_larger(_negated(jets[0]), _negated(jets[1]), order))
    if op == "max":
        return _larger(jets[0], jets[1], order)
    return _BINARY[op](jets[0], jets[1], order)


def _refuse(cells: Mask | None, what: str) -> None:
    if cells is not None and np.any(cells):
        first = int(np.flatnonzero(cells)[0])
        raise CertificateError(
            f"{what} in {np.count_nonzero(cells)} of {cells.size} cells, the first is cell "
            f"{first}; a derivative needs it decided: split these cells"
        )


def _collect(parts: Iterable[Part]) -> tuple[tuple[Any, ...], Interval]:
    """Sum of blocks by key: (sorted keys, block)."""
    parts = [p for p in parts if len(p[0])]
    if not parts:
        return (), _NONE
    if len(parts) == 1:
        return tuple(parts[0][0]), parts[0][1]
    keys, places = _places(tuple(tuple(p[0]) for p in parts))
    cells = max(p[1].shape[1] for p in parts)
    low, high = np.zeros((2, len(keys), cells))
    seen = np.zeros(len(keys), bool)
    for (_, block), index in zip(parts, places, strict=True):
        if np.any(seen[index]):
            block = raw(low[index], high[index]) + block
        low[index], high[index] = block.low, block.high
        seen[index] = True
    return keys, raw(low, high)


@lru_cache(maxsize=4096)
def _places(parts: tuple[tuple[Any, ...], ...]) -> tuple[tuple[Any, ...], list[Array]]:
    """The sorted union of keys, and where each part's keys stand in it."""
    keys = tuple(sorted(set().union(*parts)))
    position = {key: i for i, key in enumerate(keys)}
    return keys, [np.array([position[key] for key in part]) for part in parts]


@lru_cache(maxsize=4096)
def _upper(variables: tuple[int, ...]) -> tuple[Array, Array, tuple[Pair, ...]]:
    """Rows, columns and names of the pairs a <= b of one sorted set of variables."""
    i, j = np.triu_indices(len(variables))
    return i, j, tuple((variables[a], variables[b]) for a, b in zip(i, j, strict=True))


@lru_cache(maxsize=4096)
def _across(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[Array, Array, tuple[Pair, ...]]]:
    """Pairs of a variable of `a` and one of `b`, first those in order, then those in reverse.

    A pair of one variable with itself is in both lists: its product counts twice.
    """
    order = [(i, j) for i in range(len(a)) for j in range(len(b)) if a[i] <= b[j]]
    reverse = [(i, j) for i in range(len(a)) for j in range(len(b)) if a[i] >= b[j]]
    lists = []
    for chosen in (order, reverse):
        i, j = np.array(chosen, int).reshape(-1, 2).T
        names = tuple((min(a[x], b[y]), max(a[x], b[y])) for x, y in chosen)
        lists.append((i, j, names))
    return lists


def _square_of_gradient(jet: Jet) -> Part:
    """Products of a jet's first derivatives with each other, squares on the diagonal."""
    i, j, pairs = _upper(jet.variables)
    block = jet.gradient[i] * jet.gradient[j]
    diagonal, square = i == j, iv.sqr(jet.gradient)
    block.low[diagonal], block.high[diagonal] = square.low, square.high
    return pairs, block


def _scaled(part: Part, factor: Interval) -> Part:
    return (part[0], part[1] * factor) if len(part[0]) else part


def _unary(jet: Jet, value: Interval, slope: Interval, curvature: Interval, order: int) -> Jet:
    """f(jet) from f, f' and f'' on the jet's values."""
    if not jet.variables:
        return Jet(value)
    gradient = jet.gradient * slope
    if order == 1:
        return Jet(value, jet.variables, gradient)
    bend = _scaled(_square_of_gradient(jet), curvature)
    pairs, hessian = _collect((_scaled((jet.pairs, jet.hessian), slope), bend))
    return Jet(value, jet.variables, gradient, pairs, hessian)


def _added(a: Jet, b: Jet, value: Interval) -> Jet:
    variables, gradient = _collect(((a.variables, a.gradient), (b.variables, b.gradient)))
    pairs, hessian = _collect(((a.pairs, a.hessian), (b.pairs, b.hessian)))
    return Jet(value, variables, gradient, pairs, hessian)


def _negated(jet: Jet) -> Jet:
    return Jet(-jet.value, jet.variables, -jet.gradient, jet.pairs, -jet.hessian)


def _product(a: Jet, b: Jet, order: int) -> Jet:
    value = a.value * b.value
    variables, gradient = _collect(
        (
            _scaled((a.variables, a.gradient), b.value),
            _scaled((b.variables, b.gradient), a.value),
        )
    )
    if order == 1:
        return Jet(value, variables, gradient)
    parts = [_scaled((a.pairs, a.hessian), b.value), _scaled((b.pairs, b.hessian), a.value)]
    for i, j, names in _across(a.variables, b.variables):
        parts.append((names, a.gradient[i] * b.gradient[j]))
    pairs, hessian = _collect(parts)
    return Jet(value, variables, gradient, pairs, hessian)


def _quotient(a: Jet, b: Jet, order: int) -> Jet:
    inverse = 1.0 / b.value
    square = iv.sqr(inverse)
    result = _product(a, _unary(b, inverse, -square, 2.0 * (square * inverse), order), order)
    return Jet(a.value / b.value, result.variables, result.gradient, result.pairs, result.hessian)


def _angle(y: Jet, x: Jet, order: int) -> Jet:
    """atan2: d = (x dy - y dx) / r², built from jets of one order less."""
    value = iv.atan2(y.value, x.value)
    square = iv.sqr(x.value) + iv.sqr(y.value)
    by_y, by_x = x.value / square, -(y.value / square)
    first = _scaled((y.variables, y.gradient), by_y), _scaled((x.variables, x.gradient), by_x)
    variables, gradient = _collect(first)
    if order == 1 or not variables:
        return Jet(value, variables, gradient)
    mixed = 2.0 * (by_y * by_x)
    parts = [_scaled((y.pairs, y.hessian), by_y), _scaled((x.pairs, x.hessian), by_x)]
    if y.variables:
        parts.append(_scaled(_square_of_gradient(y), mixed))
    if x.variables:
        parts.append(_scaled(_square_of_gradient(x), -mixed))
    both = iv.sqr(by_x) - iv.sqr(by_y)
    for i, j, names in _across(y.variables, x.variables):
        parts.append((names, y.gradient[i] * x.gradient[j] * both))
    pairs, hessian = _collect(parts)
    return Jet(value, variables, gradient, pairs, hessian)


def _chosen(first: Mask, hull: Mask, a: Jet, b: Jet, value: Interval) -> Jet:
    """Per cell the derivatives of `a` where `first`, of both where `hull`, else of `b`."""

    def merge(left: Part, right: Part) -> tuple[tuple[Any, ...], Interval]:
        keys, places = _places((tuple(left[0]), tuple(right[0])))
        if not keys:
            return (), _NONE
        blocks = []
        for (_, block), index in zip((left, right), places, strict=True):
            low, high = np.zeros((2, len(keys), first.size))
            if len(index):
                low[index], high[index] = block.low, block.high
            blocks.append(raw(low, high))
        picked = iv.select(first, *blocks)
        return keys, iv.select(hull, blocks[0].hull(blocks[1]), picked)

    variables, gradient = merge((a.variables, a.gradient), (b.variables, b.gradient))
    pairs, hessian = merge((a.pairs, a.hessian), (b.pairs, b.hessian))
    return Jet(value, variables, gradient, pairs, hessian)


def _larger(a: Jet, b: Jet, order: int) -> Jet:
    first, second = np.broadcast_arrays(a.value.low >= b.value.high, b.value.low >= a.value.high)
    open_cells = ~first & ~second
    if not (a.variables or b.variables):
        open_cells = np.zeros_like(open_cells)
    if order == 2:
        _refuse(open_cells, "min, max or abs may change sides")
    return _chosen(first, open_cells, a, b, iv.maximum(a.value, b.value))


def _where(condition: Jet, yes: Jet, no: Jet) -> Jet:
    true, false = iv.decided(condition.value)
    _refuse(~true & ~false, "the choice is open")
    value = iv.select(true, yes.value, no.value)
    cells = np.broadcast_shapes(true.shape, value.shape)
    jet = _chosen(np.broadcast_to(true, cells), np.zeros(cells, bool), yes, no, value)
    if yes.jumps is None and no.jumps is None:
        return jet
    jumps = [np.zeros(1, bool) if j is None else j for j in (yes.jumps, no.jumps)]
    return replace(jet, jumps=np.where(true, *jumps))


_LOGIC = ("sign", "floor", "not", "lt", "le", "eq", "and", "or")


def _logic(op: str, jets: list[Jet]) -> Jet:
    """Piecewise constant: no derivative, and a jump wherever the value is not decided."""
    values = [j.value for j in jets]
    value = iv.UNARY[op](*values) if op in iv.UNARY else iv.BINARY[op](*values)
    jumps = value.low != value.high
    return Jet(value, jumps=jumps if np.any(jumps) else None)


def _dense(
    ins: Instruction, jets: list[Jet], weights: Mapping[str, Array], order: int
) -> list[Jet]:
    """A layer: every row is an affine function of the arguments, then the activation."""
    weight = weights[f"{ins.name}.weight"]
    value = iv.affine(weight, iv.stack([j.value for j in jets]), weights[f"{ins.name}.bias"])
    zero = np.zeros(len(weight))
    variables, gradient = _stacked([(j.variables, j.gradient) for j in jets])
    pairs, hessian = _stacked([(j.pairs, j.hessian) for j in jets])
    slopes = iv.affine(weight, gradient, zero) if variables else None
    bends = iv.affine(weight, hessian, zero) if pairs else None
    rows = []
    for r in range(len(weight)):
        row = Jet(
            value[..., r],
            variables,
            _NONE if slopes is None else slopes[..., r],
            pairs,
            _NONE if bends is None else bends[..., r],
        )
        rows.append(_activated(ins.activation, row, order))
    return rows


def _stacked(parts: list[Part]) -> tuple[tuple[Any, ...], Interval]:
    """Blocks of several jets over the union of their keys: (keys, cells, jets)."""
    keys, places = _places(tuple(tuple(p[0]) for p in parts))
    cells = max((p[1].shape[1] for p in parts if len(p[0])), default=1)
    low, high = np.zeros((2, len(keys), cells, len(parts)))
    for r, ((_, block), index) in enumerate(zip(parts, places, strict=True)):
        if len(index):
            low[index, :, r], high[index, :, r] = block.low, block.high
    return keys, raw(low, high)


def _activated(name: str, jet: Jet, order: int) -> Jet:
    if name == "tanh":
        return _unary(jet, *SMOOTH["tanh"](jet.value), order)
    return _larger(jet, Jet(_ZERO), order) if name == "relu" else jet


_BINARY: dict[str, Callable[[Jet, Jet, int], Jet]] = {
    "add": lambda a, b, order: _added(a, b, a.value + b.value),
    "sub": lambda a, b, order: _added(a, _negated(b), a.value - b.value),
    "mul": _product,
    "div": _quotient,
    "atan2": _angle,
}
