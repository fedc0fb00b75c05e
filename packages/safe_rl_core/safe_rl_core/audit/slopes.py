"""Jacobians of the program's functions at many points at once.

The rules of differentiation are those of the interpreter. What does not depend on a seed is left
out and what is not used any more is forgotten, which makes this some ten times faster than
`Program.jvp` for one seed after the other.
"""

from __future__ import annotations

import numpy as np

from safe_rl_core import program as interpreter
from safe_rl_core.audit.records import Array
from safe_rl_core.program import Function, Program


def jacobian(program: Program, name: str, point: tuple[Array, ...], of: tuple[int, ...]) -> Array:
    """Derivative with respect to the inputs numbered `of`: (..., outputs, sum of their sizes)."""
    function = program.functions[name]
    columns = {key: x for (key, _), x in zip(function.inputs, point, strict=True)}
    seeds, count = {}, 0
    for key, size in (function.inputs[i] for i in of):
        seeds[key], count = count, count + size
    values: list[Array | None] = []
    slopes: list[dict[int, Array]] = []
    for ins, done in zip(function.instructions, _last_uses(function), strict=True):
        value = interpreter.evaluate_instruction(ins, values, columns, program.weights)
        known = {i for a in ins.args for i in slopes[a]}
        slope = {}
        for i in known:
            own = {a: slopes[a].get(i, 0.0) for a in ins.args}
            slope[i] = interpreter.slope_of_instruction(
                ins, value, values, own, {}, program.weights
            )
        if ins.op == "input" and ins.name in seeds:
            slope = {seeds[ins.name] + ins.index: np.float64(1.0)}
        values.append(value)
        slopes.append(slope)
        for a in done:
            values[a], slopes[a] = None, {}
    shape = np.broadcast_shapes(*(x.shape[:-1] for x in point))
    result = np.zeros((*shape, len(function.outputs), count))
    for row, k in enumerate(function.outputs):
        for i, slope in slopes[k].items():
            result[..., row, i] = slope
    return result


def _last_uses(function: Function) -> list[list[int]]:
    """For each instruction the values that nothing after it needs."""
    last = {a: k for k, ins in enumerate(function.instructions) for a in ins.args}
    uses: list[list[int]] = [[] for _ in function.instructions]
    for a, k in last.items():
        if a not in function.outputs:
            uses[k].append(a)
    return uses
