"""From a program to C: each function as plain values, and with forward tangents.

A tangent is a vector of LANES numbers (one per direction) that the compiler keeps in one or two
registers, so a derivative costs about as much as the value. Directions are propagated by the rules
in `_TANGENTS`; a value that does not depend on a seeded input has none and costs nothing.
Dense layers go through `dense_layer` of rollout.c, which works on all directions at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.program import Function, Instruction, Program

_UNARY = {
    "neg": "-{0}",
    "abs": "fabs({0})",
    "sign": "(double)(({0} > 0.0) - ({0} < 0.0))",
    "floor": "floor({0})",
    "sqrt": "sqrt({0})",
    "exp": "exp({0})",
    "log": "log({0})",
    "sin": "sin({0})",
    "cos": "cos({0})",
    "asin": "asin({0})",
    "atan": "atan({0})",
    "tanh": "tanh({0})",
    "not": "1.0 - {0}",
}
_BINARY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "min": "smaller({0}, {1})",
    "max": "larger({0}, {1})",
    "atan2": "atan2({0}, {1})",
    "lt": "(double)({0} < {1})",
    "le": "(double)({0} <= {1})",
    "eq": "(double)({0} == {1})",
    "and": "{0} * {1}",
    "or": "larger({0}, {1})",
}
_WHERE = "{0} != 0.0 ? {1} : {2}"
#: Factor of the argument's tangent; {0} is the argument, {y} the value.
_UNARY_SLOPES = {
    "neg": "-1.0",
    "abs": "(double)(({0} > 0.0) - ({0} < 0.0))",
    "sqrt": "(0.5 / {y})",
    "exp": "{y}",
    "log": "(1.0 / {0})",
    "sin": "cos({0})",
    "cos": "(-sin({0}))",
    "asin": "(1.0 / sqrt(1.0 - {0} * {0}))",
    "atan": "(1.0 / (1.0 + {0} * {0}))",
    "tanh": "(1.0 - {y} * {y})",
}
_ACTIVATIONS = {"none": 0, "tanh": 1, "relu": 2}
_ROW_BLOCK = 8


def padded(rows: int) -> int:
    """Rows of a layer rounded up to whole vector registers."""
    return -(-rows // _ROW_BLOCK) * _ROW_BLOCK


def emit_weights(program: Program) -> str:
    """The layers' matrices as constants: column by column, rows padded with zeros."""
    parts = []
    for name in sorted(
        k.removesuffix(".weight") for k in program.weights if k.endswith(".weight")
    ):
        weight, bias = program.weights[f"{name}.weight"], program.weights[f"{name}.bias"]
        wide = np.zeros((weight.shape[1], padded(len(bias))))
        wide[:, : len(bias)] = weight.T
        tail = np.zeros(padded(len(bias)))
        tail[: len(bias)] = bias
        parts += [_array(f"weight_{_c(name)}", wide), _array(f"bias_{_c(name)}", tail)]
    return "\n".join(parts)


def emit_values(function: Function) -> str:
    """`static void value_<name>(inputs..., double *out)`: the function without derivatives."""
    return _Emitter(function, seeded=frozenset()).source()


def emit_tangents(function: Function, seeded: Sequence[str]) -> str:
    """`static void tangent_<name>(...)`: values and tangents; `seeded` inputs carry tangents.

    The parameters are, for each input, its values and, if seeded, its tangents; then out, dout.
    """
    return _Emitter(function, seeded=frozenset(seeded)).source()


@dataclass
class _Emitter:
    """Emits one C function; a value is an expression, a tangent an expression or None."""

    function: Function
    seeded: frozenset[str]
    lines: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    slopes: list[str | None] = field(default_factory=list)
    numbers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """`numbers`: values that are used one by one (a layer's output may pass whole instead)."""
        used = set(self.function.outputs)
        for ins in self.function.instructions:
            if ins.op != "dense" or self._whole_layer(ins.args) is None:
                used.update(ins.args)
        self.numbers = frozenset(used)

    def source(self) -> str:
        name = self.function.name
        tangents = bool(self.seeded)
        parameters = []
        for key, _ in self.function.inputs:
            parameters.append(f"const double *restrict {key}")
            if key in self.seeded:
                parameters.append(f"const lanes *restrict d_{key}")
        parameters.append("double *restrict out")
        if tangents:
            parameters.append("lanes *restrict d_out")
        for k, ins in enumerate(self.function.instructions):
            self._instruction(k, ins)
        for i, k in enumerate(self.function.outputs):
            self.lines.append(f"out[{i}] = {self.values[k]};")
            if tangents:
                self.lines.append(f"d_out[{i}] = {self.slopes[k] or '(lanes){0}'};")
        prefix = "tangent" if tangents else "value"
        body = "\n  ".join(self.lines)
        return f"static void {prefix}_{name}({', '.join(parameters)}) {{\n  {body}\n}}\n"

    def _instruction(self, k: int, ins: Instruction) -> None:
        if ins.op == "const":
            self._define(repr(ins.value) if np.isfinite(ins.value) else _infinite(ins.value), None)
        elif ins.op == "input":
            slope = f"d_{ins.name}[{ins.index}]" if ins.name in self.seeded else None
            self._define(f"{ins.name}[{ins.index}]", slope)
        elif ins.op == "dense":
            self._dense(k, ins)
        elif ins.op == "element":
            self._element(k, ins)
        else:
            self._arithmetic(k, ins)

    def _define(self, value: str, slope: str | None) -> None:
        self.values.append(value)
        self.slopes.append(slope)

    def _arithmetic(self, k: int, ins: Instruction) -> None:
        a = [self.values[i] for i in ins.args]
        d = [self.slopes[i] for i in ins.args]
        form = (_UNARY | _BINARY | {"where": _WHERE})[ins.op]
        self.lines.append(f"const double v{k} = {form.format(*a)};")
        slope = _slope(ins.op, a, d, f"v{k}")
        if slope is not None:
            self.lines.append(f"const lanes d{k} = {slope};")
        self._define(f"v{k}", None if slope is None else f"d{k}")

    def _dense(self, k: int, ins: Instruction) -> None:
        """One layer: gather the columns unless the input is a whole earlier layer."""
        directions = bool(self.seeded) and any(self.slopes[i] is not None for i in ins.args)
        columns = "1 + TANGENTS" if directions else "1"
        size = f"ROWS_{_c(ins.name)}"
        source = self._whole_layer(ins.args)
        if source is None or (directions and self.slopes[source] is None):
            source_name, stride = f"in{k}", str(padded(len(ins.args)))
            self.lines.append(f"double in{k}[({columns}) * {stride}] ALIGNED;")
            for i, arg in enumerate(ins.args):
                self.lines.append(f"in{k}[{i}] = {self.values[arg]};")
                if directions:
                    slope = self.slopes[arg] or "(lanes){0}"
                    self.lines.append(f"spread({slope}, in{k} + {stride} + {i}, {stride});")
        else:
            source_name = f"layer{source}"
            stride = f"ROWS_{_c(self.function.instructions[source].name)}"
        self.lines.append(f"double layer{k}[({columns}) * {size}] ALIGNED;")
        self.lines.append(
            f"{'dense_tangent' if directions else 'dense_value'}({size}, {len(ins.args)}, "
            f"weight_{_c(ins.name)}, bias_{_c(ins.name)}, {_ACTIVATIONS[ins.activation]}, "
            f"{source_name}, {stride}, layer{k});"
        )
        self._define(f"layer{k}", f"layer{k}" if directions else None)

    def _element(self, k: int, ins: Instruction) -> None:
        layer = ins.args[0]
        name = self.function.instructions[layer].name
        slope = None
        if self.slopes[layer] is not None and k in self.numbers:
            size = f"ROWS_{_c(name)}"
            column = f"layer{layer} + {size} + {ins.index}"
            self.lines.append(f"const lanes d{k} = gather({column}, {size});")
            slope = f"d{k}"
        elif self.slopes[layer] is not None:
            slope = f"/* column of layer{layer} */"
        self._define(f"layer{layer}[{ins.index}]", slope)

    def _whole_layer(self, args: tuple[int, ...]) -> int | None:
        """The layer whose whole output, in order, is `args`; None if there is none."""
        elements = [self.function.instructions[a] for a in args]
        if any(e.op != "element" or e.index != i for i, e in enumerate(elements)):
            return None
        layer = elements[0].args[0]
        return layer if all(e.args[0] == layer for e in elements) else None


def _slope(op: str, a: list[str], d: list[str | None], y: str) -> str | None:
    """The tangent expression of one scalar instruction, or None where nothing varies."""
    if not any(d):
        return None
    if op in _UNARY_SLOPES:
        return f"{d[0]} * {_UNARY_SLOPES[op].format(*a, y=y)}"
    if op == "where":
        yes, no = d[1] or "(lanes){0}", d[2] or "(lanes){0}"
        return None if not (d[1] or d[2]) else f"{a[0]} != 0.0 ? {yes} : {no}"
    rule = _TANGENTS.get(op)
    return None if rule is None else rule(a, d, y)


def _add_slope(a: list[str], d: list[str | None], y: str) -> str:
    return " + ".join(term for term in d if term)


def _sub_slope(a: list[str], d: list[str | None], y: str) -> str:
    return f"{d[0] or ''} - {d[1]}" if d[1] else str(d[0])


def _mul_slope(a: list[str], d: list[str | None], y: str) -> str:
    if a[0] == a[1]:
        return f"{d[0]} * (2.0 * {a[0]})"
    return " + ".join(f"{d[i]} * {a[1 - i]}" for i in (0, 1) if d[i])


def _div_slope(a: list[str], d: list[str | None], y: str) -> str:
    if not d[1]:
        return f"{d[0]} * (1.0 / {a[1]})"
    top = f"({d[0]} - {d[1]} * {y})" if d[0] else f"(-{d[1]} * {y})"
    return f"{top} * (1.0 / {a[1]})"


def _choice_slope(relation: str) -> Callable[[list[str], list[str | None], str], str]:
    def rule(a: list[str], d: list[str | None], y: str) -> str:
        yes, no = d[0] or "(lanes){0}", d[1] or "(lanes){0}"
        return f"{a[0]} {relation} {a[1]} ? {yes} : {no}"

    return rule


def _atan2_slope(a: list[str], d: list[str | None], y: str) -> str:
    first = f"{d[0]} * {a[1]}" if d[0] else ""
    second = f" - {d[1]} * {a[0]}" if d[1] else ""
    return f"({first}{second}) * (1.0 / ({a[0]} * {a[0]} + {a[1]} * {a[1]}))"


_TANGENTS: dict[str, Callable[[list[str], list[str | None], str], str]] = {
    "add": _add_slope,
    "sub": _sub_slope,
    "mul": _mul_slope,
    "div": _div_slope,
    "min": _choice_slope("<="),
    "max": _choice_slope(">="),
    "atan2": _atan2_slope,
}


def _c(name: str) -> str:
    return name.replace(".", "_")


def _infinite(value: float) -> str:
    return "INFINITY" if value > 0 else "-INFINITY" if value < 0 else "NAN"


def _array(name: str, values: NDArray[np.float64]) -> str:
    numbers = ",".join(float(v).hex() for v in values.reshape(-1))
    size = values.size
    rows = "" if values.ndim == 2 else f"#define ROWS_{name.removeprefix('bias_')} {size}\n"
    return f"{rows}static const double {name}[{size}] ALIGNED = {{{numbers}}};"
