"""Interval evaluation of a traced program.

    evaluate(program, "step", x, u)      Interval (..., n), Interval (..., m) -> Interval (..., n)

encloses the function's value for every point of the boxes, batched over leading dimensions.
A `where` that a cell does not decide gives the hull of both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike
from safe_rl_core.errors import ProgramError
from safe_rl_core.program import Function, Instruction, Program

from safe_rl_systems.verification.arithmetic import (
    Array,
    Interval,
    affine,
    ball,
    check_arithmetic,
    down,
    floor,
    interval,
    matmul,
    maximum,
    minimum,
    point,
    raw,
    select,
    sign,
    sqr,
    sqrt,
    stack,
    up,
    whole,
)
from safe_rl_systems.verification.elementary import (
    PI,
    asin,
    atan,
    atan2,
    cos,
    exp,
    log,
    sin,
    sin_cos,
    tanh,
)

__all__ = [
    "PI",
    "Interval",
    "affine",
    "asin",
    "atan",
    "atan2",
    "ball",
    "check_arithmetic",
    "cos",
    "down",
    "evaluate",
    "exp",
    "floor",
    "interval",
    "log",
    "matmul",
    "maximum",
    "minimum",
    "point",
    "select",
    "sign",
    "sin",
    "sin_cos",
    "sqr",
    "sqrt",
    "stack",
    "tanh",
    "up",
    "whole",
]


def less(a: Interval, b: Interval) -> Interval:
    """1 where every a < every b, 0 where none is, else [0, 1]."""
    return _truth(a.high < b.low, a.low < b.high)


def less_equal(a: Interval, b: Interval) -> Interval:
    """1 where every a <= every b, 0 where none is, else [0, 1]."""
    return _truth(a.high <= b.low, a.low <= b.high)


def equal(a: Interval, b: Interval) -> Interval:
    """1 where both are the same number, 0 where they have none in common, else [0, 1]."""
    always = (a.high == b.low) & (a.low == b.high)
    return _truth(always, (a.low <= b.high) & (b.low <= a.high))


def negation(a: Interval) -> Interval:
    """1 - a, exact for truth values."""
    return raw(1.0 - a.high, 1.0 - a.low) if _is_truth(a) else 1.0 - a


def conjunction(a: Interval, b: Interval) -> Interval:
    """a b, exact for truth values."""
    return minimum(a, b) if _is_truth(a) and _is_truth(b) else a * b


def choose(condition: Interval, yes: Interval, no: Interval) -> Interval:
    """`where`: the decided side, or the hull of both. A condition is true unless it is 0."""
    true, false = decided(condition)
    both = yes.hull(no)
    return select(true, yes, select(false, no, both))


def decided(condition: Interval) -> tuple[np.ndarray, np.ndarray]:
    """(certainly true, certainly false)."""
    true = (condition.low > 0.0) | (condition.high < 0.0)
    return true, (condition.low == 0.0) & (condition.high == 0.0)


def _is_truth(a: Interval) -> bool:
    return all(np.all((end == 0.0) | (end == 1.0)) for end in (a.low, a.high))


def _truth(always: ArrayLike, ever: ArrayLike) -> Interval:
    return raw(np.asarray(always, np.float64), np.asarray(ever, np.float64))


UNARY: dict[str, Callable[[Interval], Interval]] = {
    "neg": lambda a: -a,
    "abs": abs,
    "sign": sign,
    "floor": floor,
    "sqrt": sqrt,
    "exp": exp,
    "log": log,
    "sin": sin,
    "cos": cos,
    "asin": asin,
    "atan": atan,
    "tanh": tanh,
    "not": negation,
}
BINARY: dict[str, Callable[[Interval, Interval], Interval]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "min": minimum,
    "max": maximum,
    "atan2": atan2,
    "lt": less,
    "le": less_equal,
    "eq": equal,
    "and": conjunction,
    "or": maximum,
}
ACTIVATIONS: dict[str, Callable[[Interval], Interval]] = {
    "none": lambda a: a,
    "tanh": tanh,
    "relu": lambda a: maximum(a, point(0.0)),
}


def evaluate(program: Program, name: str, *inputs: Interval | Array) -> Interval:
    """Enclose a function of the program: inputs (..., n_i) -> (..., outputs)."""
    check_arithmetic()
    function = find(program, name)
    columns = boxes(function, inputs)
    values: list[Interval] = []
    for ins in function.instructions:
        values.append(value_of(ins, values, columns, program.weights))
    shape = np.broadcast_shapes(*(box.shape[:-1] for box in columns.values()))
    return stack([values[k].broadcast_to(shape) for k in function.outputs])


def find(program: Program, name: str) -> Function:
    """The function of that name, or an error that lists the names there are."""
    if name not in program.functions:
        raise ProgramError(
            f"the program has no function '{name}'; it has {', '.join(program.functions)}"
        )
    return program.functions[name]


def boxes(function: Function, inputs: tuple[Interval | Array, ...]) -> dict[str, Interval]:
    """The inputs by name, their shapes checked."""
    if len(inputs) != len(function.inputs):
        raise ProgramError(
            f"'{function.name}' takes {len(function.inputs)} boxes {dict(function.inputs)}, "
            f"got {len(inputs)}"
        )
    columns: dict[str, Interval] = {}
    for (name, size), given in zip(function.inputs, inputs, strict=True):
        box = interval(given)
        if box.ndim == 0 or box.shape[-1] != size:
            raise ProgramError(
                f"'{function.name}': input '{name}' must have shape (..., {size}), got {box.shape}"
            )
        columns[name] = box
    return columns


def value_of(
    ins: Instruction,
    values: list[Interval],
    columns: Mapping[str, Interval],
    weights: Mapping[str, Array],
) -> Interval:
    """The value of one instruction from those before it."""
    op = ins.op
    if op == "const":
        return point(ins.value)
    if op == "input":
        return columns[ins.name][..., ins.index]
    if op == "element":
        return values[ins.args[0]][..., ins.index]
    arguments = [values[k] for k in ins.args]
    if op in UNARY:
        return UNARY[op](arguments[0])
    if op == "mul" and ins.args[0] == ins.args[1]:
        return sqr(arguments[0])
    if op in BINARY:
        return BINARY[op](*arguments)
    if op == "where":
        return choose(*arguments)
    weight, bias = weights[f"{ins.name}.weight"], weights[f"{ins.name}.bias"]
    return ACTIVATIONS[ins.activation](affine(weight, stack(arguments), bias))
