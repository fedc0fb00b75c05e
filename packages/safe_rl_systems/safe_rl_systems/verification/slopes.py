"""Slope arithmetic: how far a traced function can move, as interval matrices over whole cells.

For a function f of seeds x (some of its inputs) and a box X around the centre 0,

    slopes(...)  ->  f(0) and S (N, outputs, seeds)   with   f(x) - f(0) in S x   for every x in X.

The centre may also be a box: then f(x) - f(c) in S (x - c) for every x in X and every c in it.

A slope is not a derivative: x² has the slope x, its derivative is 2x. In a product this halves
what is lost, and that is what decides whether a base set can be proved with few cells.
`slope_rules` has the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from safe_rl_core.errors import ProgramError
from safe_rl_core.program import Program

from safe_rl_systems.verification.interval import (
    Array,
    Interval,
    check_arithmetic,
    find,
    interval,
    point,
    stack,
)
from safe_rl_systems.verification.slope_rules import Slope, SlopeRules


@dataclass(frozen=True)
class Box:
    """Input `name` of a function over its range (N, size), with its centre, 0 if None.

    Only the components in `seeds` (all if None) differ from the centre; the others are
    parameters, anywhere in their range but the same in x and in the centre.
    """

    name: str
    range: Interval
    center: Interval | None = None
    seeds: tuple[int, ...] | None = None


def slopes(
    program: Program, name: str, fixed: Mapping[str, Array | Interval], boxes: Sequence[Box]
) -> tuple[Interval, Interval]:
    """(f(centre) (N or 1, outputs), S (N, outputs, columns)): a column per component of `boxes`.

    `fixed` gives the remaining inputs (size,) or (N, size). Among equivalent forms of a product,
    the one whose row moves the result least over the box is taken.
    """
    check_arithmetic()
    function = find(program, name)
    given = [*fixed, *(box.name for box in boxes)]
    if sorted(given) != sorted(key for key, _ in function.inputs):
        raise ProgramError(
            f"slopes of '{name}' need its inputs {dict(function.inputs)}, got {sorted(given)}"
        )
    columns = {key: _constants(interval(x), function.input_size(key)) for key, x in fixed.items()}
    width: list[Array] = []
    for box in boxes:
        center = point(np.zeros(box.range.shape[-1:])) if box.center is None else box.center
        reach = (box.range - center).mag
        for i in range(function.input_size(box.name)):
            varies = box.seeds is None or i in box.seeds
            part = box.range[..., i]
            value = Slope(part, part)
            if varies:
                value = _seed(part, center[..., i].reshape(-1), len(width))
            columns.setdefault(box.name, []).append(value)
            width.append(reach[..., i])
    arithmetic = SlopeRules(width)
    values: list[Slope | list[Slope]] = []
    for ins in function.instructions:
        values.append(arithmetic.value_of(ins, values, columns, program.weights))
    outputs = [values[k] for k in function.outputs]
    cells = boxes[0].range.shape[0]
    matrix = [_dense(value, len(width), cells) for value in outputs]
    return stack([value.center for value in outputs]), stack(matrix, 1).swapaxes(0, 2)


def _constants(box: Interval, size: int) -> list[Slope]:
    if box.shape[-1] != size:
        raise ProgramError(f"a fixed input needs {size} numbers, got shape {box.shape}")
    parts = [box[..., i].reshape(-1) for i in range(size)]
    return [Slope(part, part) for part in parts]


def _seed(box: Interval, center: Interval, index: int) -> Slope:
    rows = Interval(np.ones((1, *box.shape)))
    return Slope(center, box, (index,), rows)


def _dense(value: Slope, seeds: int, cells: int) -> Interval:
    """All rows of a value with its zeros: (seeds, N)."""
    low, high = np.zeros((seeds, cells)), np.zeros((seeds, cells))
    if value.rows is not None:
        index = list(value.seeds)
        low[index], high[index] = value.rows.low, value.rows.high
    return Interval(low, high)
