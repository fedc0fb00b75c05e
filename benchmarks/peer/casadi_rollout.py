"""The backup rollout with sensitivities and rows by CasADi: generated C, built as the kernel is.

Scalar functions are SX graphs, a policy with dense layers an MX graph on whole vectors; the
tangents are CasADi's own forward derivatives; the horizon is a `mapaccum`. Called through a
buffer, without copies.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.program import Instruction, Program
from toolbox.peak import flags

Array = NDArray[np.float64]

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "neg": lambda a: -a, "abs": ca.fabs, "sign": ca.sign, "floor": ca.floor, "sqrt": ca.sqrt,
    "exp": ca.exp, "log": ca.log, "sin": ca.sin, "cos": ca.cos, "asin": ca.asin, "atan": ca.atan,
    "tanh": ca.tanh, "not": ca.logic_not, "add": lambda a, b: a + b, "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b, "div": lambda a, b: a / b, "min": ca.fmin, "max": ca.fmax,
    "atan2": ca.atan2, "lt": ca.lt, "le": ca.le, "eq": ca.eq, "and": ca.logic_and,
    "or": ca.logic_or, "where": ca.if_else,
}  # fmt: skip


def casadi_function(program: Program, name: str) -> Any:
    """One function of a program as a CasADi function of column vectors."""
    function = program.functions[name]
    kind: Any = ca.MX if any(ins.op == "dense" for ins in function.instructions) else ca.SX
    inputs = {key: kind.sym(key, size) for key, size in function.inputs}
    parts = {key: ca.vertsplit(vector) for key, vector in inputs.items()}
    values: list[Any] = []
    for ins in function.instructions:
        if ins.op == "const":
            values.append(kind(ins.value))
        elif ins.op == "input":
            values.append(parts[ins.name][ins.index])
        elif ins.op == "element":
            values.append(values[ins.args[0]][ins.index])
        elif ins.op == "dense":
            values.append(_dense(program, function.instructions, ins, values, inputs))
        else:
            values.append(_OPERATIONS[ins.op](*(values[k] for k in ins.args)))
    out = ca.vertcat(*(values[k] for k in function.outputs))
    return ca.Function(name, list(inputs.values()), [out])


def _dense(
    program: Program,
    instructions: tuple[Instruction, ...],
    ins: Instruction,
    values: list[Any],
    inputs: dict[str, Any],
) -> Any:
    first = instructions[ins.args[0]]
    source = inputs[first.name] if first.op == "input" else values[first.args[0]]
    weight, bias = program.weights[f"{ins.name}.weight"], program.weights[f"{ins.name}.bias"]
    out = ca.mtimes(ca.DM(weight), source) + ca.DM(bias)
    return {"tanh": ca.tanh, "relu": lambda v: ca.fmax(v, 0.0), "none": lambda v: v}[
        ins.activation
    ](out)


def rows_function(bundle: Bundle) -> Any:
    """One CasADi function: x (n) -> psi (n, N+1), tangents (n, (m+1)(N+1)), A (m, M), b (1, M)."""
    program, n, m, horizon = bundle.program, len(bundle.states), len(bundle.inputs), bundle.horizon
    step, policy = casadi_function(program, "step"), casadi_function(program, "backup_policy")
    dynamics = casadi_function(program, "dynamics")
    x = ca.MX.sym("x", n)
    u_b = policy(x)

    y, tangents = ca.MX.sym("y", n), ca.MX.sym("t", n, m + 1)
    following = step(y, policy(y))
    moved = ca.jtimes(following, y, tangents)
    advance = ca.Function("advance", [y, tangents], [following, moved]).mapaccum(
        "rollout", horizon, [0, 1], [0, 1]
    )
    z, late = ca.MX.sym("z", n + m), ca.MX.sym("late", n)
    seeds = ca.vertcat(
        ca.horzcat(ca.MX.zeros(n, m), late), ca.horzcat(ca.MX.eye(m), ca.MX.zeros(m, 1))
    )
    start = step(z[:n], z[n:])
    first = ca.Function("first", [z, late], [start, ca.jtimes(start, z, seeds)])
    psi, slopes = first(ca.vertcat(x, u_b), dynamics(x, u_b))
    rest, rest_slopes = advance(psi, slopes)
    states = ca.horzcat(psi, rest)
    tangents_out = ca.horzcat(slopes, rest_slopes)
    keep = (bundle.class_k * bundle.period, bundle.base_class_k * bundle.period)
    safe = _row_writer(bundle, "safe_set", keep[0], bundle.margin).map(horizon + 1)
    base = _row_writer(bundle, "base_set", keep[1], np.zeros(len(bundle.base_set_names)))
    safe_a, safe_b = safe(states, tangents_out, ca.repmat(u_b, 1, horizon + 1))
    last = tangents_out[:, -(m + 1) :]
    base_a, base_b = base(states[:, -1], last, u_b)
    return ca.Function(
        "rows", [x], [states, tangents_out, ca.horzcat(safe_a, base_a), ca.horzcat(safe_b, base_b)]
    )


def _row_writer(bundle: Bundle, name: str, keep: float, margin: Array) -> Any:
    """(y, tangents, u_b) -> rows (m, rows) of unit length and their bounds (1, rows)."""
    n, m = len(bundle.states), len(bundle.inputs)
    function = casadi_function(bundle.program, name)
    y, t, u_b = ca.MX.sym("y", n), ca.MX.sym("t", n, m + 1), ca.MX.sym("u", m)
    h = function(y)
    slope = ca.jtimes(h, y, t)[:, :m].T
    a = slope * ca.repmat(ca.DM(bundle.input_scale), 1, len(margin))
    norm = ca.sqrt(ca.sum1(a * a))
    moved = norm > 1e-12
    inverse = ca.if_else(moved, 1.0 / ca.if_else(moved, norm, 1.0), 0.0)
    b = (ca.mtimes(u_b.T, slope) - keep * (h - ca.DM(margin)).T) * inverse
    return ca.Function(
        f"rows_of_{name}", [y, t, u_b],
        [a * ca.repmat(inverse, m, 1), ca.if_else(moved, b, -1.0)],
    )  # fmt: skip


def rows(bundle: Bundle, folder: Path) -> Callable[[Array], tuple[Array, ...]]:
    """x (n,) -> psi (N+1, n), tangents (N+1, m+1, n), A (M, m), b (M,); buffers are reused."""
    n, m = len(bundle.states), len(bundle.inputs)
    function = rows_function(bundle)
    here = Path.cwd()
    os.chdir(folder)  # CasADi writes its C file into the working directory only
    try:
        function.generate("rows.c")
        command = [*flags(), "-DGCC_HASCLASSVISIBILITY", "rows.c", "-o", "rows.so", "-lm"]
        subprocess.run(command, check=True, capture_output=True)
    finally:
        os.chdir(here)
    compiled: Any = ca.external("rows", str(folder / "rows.so"))
    x = np.zeros(n)
    outputs = [np.zeros(compiled.size_out(i), order="F") for i in range(4)]
    buffer, trigger = compiled.buffer()
    buffer.set_arg(0, x.data)
    for i, array in enumerate(outputs):
        buffer.set_res(i, array.T.reshape(-1).data)
    states, tangents, a, b = outputs
    views = (states.T, tangents.T.reshape(-1, m + 1, n), a.T, b.T[:, 0])

    def run(state: Array) -> tuple[Array, ...]:
        x[:] = state
        trigger()
        return views

    run.keep = (compiled, buffer, outputs)  # type: ignore[attr-defined]
    return run
