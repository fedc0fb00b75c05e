"""The backup rollout with sensitivities and rows by numba: Python source written from the program.

Scalar instructions become scalar statements, one more per direction for the tangents; dense layers
become plain loops whose innermost one runs along contiguous memory. fastmath is on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.kernel.build import TANGENT_INPUTS
from safe_rl_core.program import Instruction, Program

Array = NDArray[np.float64]

_VALUE = {
    "neg": "-{0}", "abs": "abs({0})", "sign": "(1.0 * ({0} > 0.0) - 1.0 * ({0} < 0.0))",
    "floor": "math.floor({0})", "sqrt": "math.sqrt({0})", "exp": "math.exp({0})",
    "log": "math.log({0})", "sin": "math.sin({0})", "cos": "math.cos({0})",
    "asin": "math.asin({0})", "atan": "math.atan({0})", "tanh": "math.tanh({0})",
    "not": "1.0 - {0}", "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}",
    "div": "{0} / {1}", "min": "min({0}, {1})", "max": "max({0}, {1})",
    "atan2": "math.atan2({0}, {1})", "lt": "1.0 * ({0} < {1})", "le": "1.0 * ({0} <= {1})",
    "eq": "1.0 * ({0} == {1})", "and": "{0} * {1}", "or": "max({0}, {1})",
    "where": "{1} if {0} != 0.0 else {2}",
}  # fmt: skip
#: Derivatives by the first and the second operand; {y} is the value.
_PARTIAL = {
    "neg": ("-1.0",), "abs": ("(1.0 if {0} >= 0.0 else -1.0)",), "sqrt": ("0.5 / {y}",),
    "exp": ("{y}",), "log": ("1.0 / {0}",), "sin": ("math.cos({0})",), "cos": ("-math.sin({0})",),
    "asin": ("1.0 / math.sqrt(1.0 - {0} * {0})",), "atan": ("1.0 / (1.0 + {0} * {0})",),
    "tanh": ("1.0 - {y} * {y}",), "add": ("", ""), "sub": ("", "-1.0"),
    "mul": ("{1}", "{0}"), "div": ("1.0 / {1}", "-{y} / {1}"),
    "atan2": ("{1} / ({0} * {0} + {1} * {1})", "-{0} / ({0} * {0} + {1} * {1})"),
}  # fmt: skip
#: Operations whose tangent is that of one of two operands.
_CHOICE = {"min": "{0} <= {1}", "max": "{0} >= {1}", "where": "{0} != 0.0"}


@numba.njit(fastmath=True, error_model="numpy")
def _dense(weight: Array, bias: Array, squash: int, x: Array, out: Array) -> None:
    """out (C, rows) = activation of weight.T x + bias; row 0 the value, the others tangents."""
    columns, size = x.shape
    rows = len(bias)
    for i in range(rows):
        out[0, i] = bias[i]
    for c in range(1, columns):
        for i in range(rows):
            out[c, i] = 0.0
    for k in range(size):
        for c in range(columns):
            factor = x[c, k]
            for i in range(rows):
                out[c, i] += weight[k, i] * factor
    if squash == 1:
        for i in range(rows):
            out[0, i] = math.tanh(out[0, i])
        for c in range(1, columns):
            for i in range(rows):
                out[c, i] *= 1.0 - out[0, i] * out[0, i]
    elif squash == 2:
        for c in range(columns - 1, -1, -1):
            for i in range(rows):
                out[c, i] = out[c, i] if out[0, i] > 0.0 else 0.0


class _Writer:
    """Source of one function: values and tangents of `directions` columns."""

    def __init__(
        self, program: Program, name: str, seeded: Sequence[str], directions: int
    ) -> None:
        self.program, self.function = program, program.functions[name]
        self.seeded, self.lanes = seeded, range(directions)
        self.lines: list[str] = []
        self.constants: dict[str, Array] = {}
        self.moving: list[bool] = []
        self.values: list[str] = []
        columns = 1 + directions
        for k, ins in enumerate(self.function.instructions):
            self._instruction(k, ins, columns)
        for i, k in enumerate(self.function.outputs):
            self.lines.append(f"out[0, {i}] = {self.values[k]}")
            for lane in self.lanes:
                slope = self._slope(k, lane) if self.moving[k] else "0.0"
                self.lines.append(f"out[{lane + 1}, {i}] = {slope}")
        inputs = ", ".join(key for key, _ in self.function.inputs)
        self.source = f"def {name}({inputs}, out):\n    " + "\n    ".join(self.lines) + "\n"

    def _slope(self, k: int, lane: int) -> str:
        ins = self.function.instructions[k]
        if ins.op == "input":
            return f"{ins.name}[{lane + 1}, {ins.index}]"
        if ins.op == "element":
            return f"layer{ins.args[0]}[{lane + 1}, {ins.index}]"
        return f"d{k}_{lane}"

    def _instruction(self, k: int, ins: Instruction, columns: int) -> None:
        self.moving.append(
            ins.name in self.seeded if ins.op == "input" else any(self.moving[a] for a in ins.args)
        )
        a = [self.values[i] for i in ins.args]
        if ins.op == "const":
            self.values.append(repr(ins.value))
        elif ins.op == "input":
            self.values.append(f"{ins.name}[0, {ins.index}]")
        elif ins.op == "element":
            self.values.append(f"layer{ins.args[0]}[0, {ins.index}]")
        elif ins.op == "dense":
            self._layer(k, ins, columns)
        else:
            self.lines.append(f"v{k} = {_VALUE[ins.op].format(*a)}")
            self.values.append(f"v{k}")
            self._tangents(k, ins, a)

    def _layer(self, k: int, ins: Instruction, columns: int) -> None:
        layers = {self.function.instructions[a].op for a in ins.args}
        first = self.function.instructions[ins.args[0]]
        self.constants[f"weight{k}"] = np.ascontiguousarray(
            self.program.weights[f"{ins.name}.weight"].T
        )
        self.constants[f"bias{k}"] = self.program.weights[f"{ins.name}.bias"]
        rows = len(self.constants[f"bias{k}"])
        self.lines.append(f"layer{k} = np.empty(({columns}, {rows}))")
        if layers == {"element"}:
            source = f"layer{first.args[0]}"
        elif layers == {"input"}:
            source = first.name
        else:
            raise ValueError(f"a layer of {self.function.name} has inputs of several kinds")
        code = {"none": 0, "tanh": 1, "relu": 2}[ins.activation]
        self.lines.append(f"dense(weight{k}, bias{k}, {code}, {source}, layer{k})")
        self.values.append(f"layer{k}")

    def _tangents(self, k: int, ins: Instruction, a: list[str]) -> None:
        if ins.op not in _PARTIAL and ins.op not in _CHOICE:
            self.moving[k] = False
        if not self.moving[k]:
            return
        if ins.op in _CHOICE:
            yes, no = ins.args[-2:]
            for lane in self.lanes:
                pair = [self._slope(i, lane) if self.moving[i] else "0.0" for i in (yes, no)]
                test = _CHOICE[ins.op].format(*a)
                self.lines.append(f"d{k}_{lane} = {pair[0]} if {test} else {pair[1]}")
            return
        factors = []
        for i, partial in zip(ins.args, _PARTIAL[ins.op], strict=True):
            if self.moving[i]:
                text = partial.format(*a, y=f"v{k}")
                if text:
                    self.lines.append(f"p{k}_{len(factors)} = {text}")
                factors.append((i, f" * p{k}_{len(factors)}" if text else ""))
        for lane in self.lanes:
            terms = " + ".join(f"{self._slope(i, lane)}{factor}" for i, factor in factors)
            self.lines.append(f"d{k}_{lane} = {terms}")


_known: dict[str, Any] = {}


def _jitted(program: Program, name: str, seeded: Sequence[str], directions: int) -> Any:
    """A function of the program, compiled once however many cases use it."""
    writer = _Writer(program, name, seeded, directions)
    digest = hashlib.sha256(writer.source.encode())
    for constant in writer.constants.values():
        digest.update(constant.tobytes())
    key = digest.hexdigest()
    if key not in _known:
        _known[key] = _compile(writer, name)
    return _known[key]


def _compile(writer: _Writer, name: str) -> Any:
    scope: dict[str, Any] = {"math": math, "np": np, "dense": _dense, **writer.constants}
    # The source is made above from a checked program; numba needs it as a function.
    exec(compile(writer.source, f"<numba {name}>", "exec"), scope)
    return numba.njit(fastmath=True, error_model="numpy")(scope[name])


_ROLLOUT = """
def rollout(x, horizon, keep_safe, keep_base, scale, margin, states, a, b):
    n, m, safe, base = {n}, {m}, {safe}, {base}
    late, u = np.zeros((1, n)), np.zeros((1 + m + 1, m))
    start = np.zeros((1 + m + 1, n))
    start[0] = x
    first = np.zeros((1, m))
    policy_value(start[:1], first)
    dynamics_value(start[:1], first, late)
    u[0] = first[0]
    for j in range(m):
        u[1 + j, j] = 1.0
    start[m + 1] = late[0]
    step(start, u, states[0])
    rows = np.zeros((2 + m, safe))
    for k in range(horizon + 1):
        safe_set(states[k], rows)
        for i in range(safe):
            room = rows[0, i] - margin[i]
            write(k * safe + i, rows[:, i], room, keep_safe, first[0], scale, a, b)
        if k < horizon:
            policy(states[k], u)
            step(states[k], u, states[k + 1])
    last = np.zeros((2 + m, base))
    base_set(states[horizon], last)
    for i in range(base):
        write((horizon + 1) * safe + i, last[:, i], last[0, i], keep_base, first[0], scale, a, b)
"""


@numba.njit(fastmath=True, error_model="numpy")
def _write(
    r: int, row: Array, room: float, keep: float, u_b: Array, scale: Array, a: Array, b: Array
) -> None:
    norm, offset = 0.0, -keep * room
    for j in range(len(u_b)):
        entry = row[1 + j] * scale[j]
        a[r, j] = entry
        norm += entry * entry
        offset += row[1 + j] * u_b[j]
    norm = math.sqrt(norm)
    inverse = 1.0 / norm if norm > 1e-12 else 0.0
    for j in range(len(u_b)):
        a[r, j] *= inverse
    b[r] = offset * inverse if norm > 1e-12 else -1.0


def rows(bundle: Bundle) -> Callable[[Array], tuple[Array, ...]]:
    """x (n,) -> psi (N+1, n), tangents (N+1, m+1, n), A (M, m), b (M,); buffers are reused."""
    program, n, m = bundle.program, len(bundle.states), len(bundle.inputs)
    names = {
        "step": "step",
        "backup_policy": "policy",
        "safe_set": "safe_set",
        "base_set": "base_set",
    }
    scope: dict[str, Any] = {"np": np, "write": _write}
    for name, short in names.items():
        scope[short] = _jitted(program, name, TANGENT_INPUTS[name], m + 1)
    scope["policy_value"] = _jitted(program, "backup_policy", (), 0)
    scope["dynamics_value"] = _jitted(program, "dynamics", (), 0)
    safe, base = len(bundle.safe_set_names), len(bundle.base_set_names)
    sizes: Mapping[str, int] = {"n": n, "m": m, "safe": safe, "base": base}
    exec(compile(_ROLLOUT.format(**sizes), "<numba rollout>", "exec"), scope)
    rollout = numba.njit(fastmath=True, error_model="numpy")(scope["rollout"])
    count = (bundle.horizon + 1) * safe + base
    states = np.zeros((bundle.horizon + 1, m + 2, n))
    a, b = np.zeros((count, m)), np.zeros(count)
    shares = (bundle.class_k * bundle.period, bundle.base_class_k * bundle.period)
    scale, margin, horizon = bundle.input_scale, bundle.margin, bundle.horizon

    def run(x: Array) -> tuple[Array, ...]:
        rollout(x, horizon, *shares, scale, margin, states, a, b)
        return states[:, 0], states[:, 1:], a, b

    return run
