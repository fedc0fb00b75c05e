"""The traced program: the mathematics of one robot as straight-line code, evaluated by numpy.

A program is a set of named functions. A function is a list of instructions in static single
assignment form: instruction k defines value k, from earlier values only. There are no loops and no
jumps; a choice is a `where` that evaluates both sides. Everything that flies is derived from this
file: the C kernel is emitted from it, the checker evaluates it with the numpy code below.

File format, one line each (a `#` starts a comment):

    safe_rl_program 1
    function step(x:4, u:2)
    v0 = input x 0
    v1 = const 0.05
    v2 = mul v0 v1
    d3 = dense backup.0 tanh v0 v2
    v4 = element d3 7
    return v2 v4

The matrices of a dense layer are <layer>.weight and <layer>.bias in the .npz beside the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.errors import ProgramError

Array = NDArray[np.float64]

HEADER = "safe_rl_program 1"

UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "tanh": np.tanh,
    "not": lambda a: 1.0 - a,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
    "atan2": np.arctan2,
    "lt": lambda a, b: np.less(a, b).astype(np.float64),
    "le": lambda a, b: np.less_equal(a, b).astype(np.float64),
    "eq": lambda a, b: np.equal(a, b).astype(np.float64),
    "and": lambda a, b: a * b,
    "or": np.maximum,
}
#: Activation functions that a dense layer may carry.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda a: a,
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0.0),
}
OPERATIONS = ("const", "input", *UNARY, *BINARY, "where", "dense", "element")


@dataclass(frozen=True)
class Instruction:
    """One definition. `args` are indices of earlier values of the same function.

    `value` is the number of a const; `name` the input's or the layer's name; `index` the component
    of an input or of a layer; `activation` belongs to a dense layer.
    """

    op: str
    args: tuple[int, ...] = ()
    value: float = 0.0
    name: str = ""
    index: int = 0
    activation: str = "none"


@dataclass(frozen=True)
class Function:
    """A named straight-line function of named input vectors."""

    name: str
    inputs: tuple[tuple[str, int], ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]

    @property
    def output_size(self) -> int:
        """Length of the returned vector."""
        return len(self.outputs)

    def input_size(self, name: str) -> int:
        """Length of the input vector `name`."""
        return dict(self.inputs)[name]


@dataclass(frozen=True)
class Program:
    """Named functions and the weights of their dense layers.

    `weights` maps "<layer>.weight" to (rows, columns) and "<layer>.bias" to (rows,) float64.
    """

    functions: Mapping[str, Function]
    weights: Mapping[str, Array]

    def __post_init__(self) -> None:
        for function in self.functions.values():
            _validate(function, self.weights)

    def __call__(self, name: str, *inputs: Array) -> Array:
        """Evaluate a function with numpy: inputs (..., n_i) -> (..., outputs), float64."""
        function = self._function(name)
        columns = _columns(function, inputs)
        values: list[Array] = []
        for ins in function.instructions:
            values.append(evaluate_instruction(ins, values, columns, self.weights))
        return _stack([values[k] for k in function.outputs], columns)

    def jvp(self, name: str, inputs: tuple[Array, ...], tangents: tuple[Array, ...]) -> Array:
        """Directional derivative: inputs and tangents (..., n_i) -> (..., outputs).

        Written apart from the C emitter on purpose: the kernel's self-test compares the two.
        """
        function = self._function(name)
        columns, directions = _columns(function, inputs), _columns(function, tangents)
        values: list[Array] = []
        slopes: list[Array] = []
        for ins in function.instructions:
            value = evaluate_instruction(ins, values, columns, self.weights)
            slopes.append(
                slope_of_instruction(ins, value, values, slopes, directions, self.weights)
            )
            values.append(value)
        return _stack([slopes[k] for k in function.outputs], columns)

    def _function(self, name: str) -> Function:
        if name not in self.functions:
            raise ProgramError(
                f"the program has no function '{name}'; it has {', '.join(self.functions)}"
            )
        return self.functions[name]

    def text(self) -> str:
        """The program as the readable file that is hashed and saved."""
        lines = [HEADER]
        for function in self.functions.values():
            inputs = ", ".join(f"{name}:{size}" for name, size in function.inputs)
            lines.append(f"function {function.name}({inputs})")
            names: list[str] = []
            for k, ins in enumerate(function.instructions):
                names.append(f"{'d' if ins.op == 'dense' else 'v'}{k}")
                lines.append(f"{names[k]} = {_format(ins, names)}")
            lines.append("return " + " ".join(names[k] for k in function.outputs))
        return "\n".join(lines) + "\n"

    @property
    def hash(self) -> str:
        """SHA-256 over the text and the weights (name, shape and bytes of each, sorted)."""
        digest = hashlib.sha256(self.text().encode())
        for name in sorted(self.weights):
            array = np.ascontiguousarray(self.weights[name], dtype="<f8")
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the text to `path`, and the weights, if any, to the .npz beside it."""
        path.write_text(self.text())
        if self.weights:
            np.savez(weights_path(path), **{k: self.weights[k] for k in sorted(self.weights)})

    @staticmethod
    def load(path: Path) -> Program:
        """Read a program written by `save`; raises ProgramError naming file and line."""
        weights: dict[str, Array] = {}
        if weights_path(path).exists():
            with np.load(weights_path(path), allow_pickle=False) as archive:
                weights = {name: np.asarray(archive[name], np.float64) for name in archive.files}
        return Program(parse(path.read_text(), str(path)), weights)


def weights_path(path: Path) -> Path:
    """Where the weights of the program in `path` are kept."""
    return path.with_suffix(".weights.npz")


def parse(text: str, where: str = "program") -> dict[str, Function]:
    """Parse the text form into functions; `where` names the source in error messages."""
    lines = [line.split("#", 1)[0].strip() for line in text.splitlines()]
    if not lines or lines[0] != HEADER:
        got = lines[0] if lines else "an empty file"
        raise ProgramError(f"{where}: the first line must be '{HEADER}', got '{got}'")
    functions: dict[str, Function] = {}
    header: tuple[str, tuple[tuple[str, int], ...]] | None = None
    body: list[Instruction] = []
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            if not line:
                continue
            if line.startswith("function "):
                header, body, numbers = _parse_header(line), [], {}
            elif header is None:
                raise ValueError("an instruction stands outside of a function")
            elif line.startswith("return "):
                outputs = tuple(numbers[word] for word in line.split()[1:])
                functions[header[0]] = Function(header[0], header[1], tuple(body), outputs)
                header = None
            else:
                name, _, rest = line.partition(" = ")
                numbers[name] = len(body)
                body.append(_parse_instruction(rest.split(), numbers))
        except (ValueError, KeyError, IndexError) as error:
            raise ProgramError(f"{where}:{number}: cannot read '{line}': {error}") from error
    return functions


def _parse_header(line: str) -> tuple[str, tuple[tuple[str, int], ...]]:
    name, _, rest = line.removeprefix("function ").rstrip(")").partition("(")
    pairs = [item.strip().split(":") for item in rest.split(",") if item.strip()]
    return name, tuple((key, int(size)) for key, size in pairs)


def _parse_instruction(words: list[str], numbers: Mapping[str, int]) -> Instruction:
    op, rest = words[0], words[1:]
    if op == "const":
        return Instruction(op, value=float(rest[0]))
    if op == "input":
        return Instruction(op, name=rest[0], index=int(rest[1]))
    if op == "element":
        return Instruction(op, (numbers[rest[0]],), index=int(rest[1]))
    if op == "dense":
        args = tuple(numbers[word] for word in rest[2:])
        return Instruction(op, args, name=rest[0], activation=rest[1])
    if op in OPERATIONS:
        return Instruction(op, tuple(numbers[word] for word in rest))
    raise ValueError(f"unknown operation '{op}'; known are {', '.join(OPERATIONS)}")


def _format(ins: Instruction, names: list[str]) -> str:
    if ins.op == "const":
        return f"const {ins.value!r}"
    if ins.op == "input":
        return f"input {ins.name} {ins.index}"
    if ins.op == "element":
        return f"element {names[ins.args[0]]} {ins.index}"
    args = " ".join(names[k] for k in ins.args)
    return f"dense {ins.name} {ins.activation} {args}" if ins.op == "dense" else f"{ins.op} {args}"


def _validate(function: Function, weights: Mapping[str, Array]) -> None:
    sizes = dict(function.inputs)
    layers: dict[int, int] = {}
    for k, ins in enumerate(function.instructions):
        where = f"function '{function.name}', value {k} ({ins.op})"
        if ins.op not in OPERATIONS:
            raise ProgramError(f"{where}: unknown operation; known are {', '.join(OPERATIONS)}")
        if any(not 0 <= a < k for a in ins.args):
            raise ProgramError(f"{where}: uses a value that is not defined before it")
        if ins.op != "element" and any(a in layers for a in ins.args):
            raise ProgramError(f"{where}: a layer's output must be taken apart with 'element'")
        if len(ins.args) != _arity(ins):
            raise ProgramError(f"{where}: needs {_arity(ins)} arguments, got {len(ins.args)}")
        if ins.op == "input" and not 0 <= ins.index < sizes.get(ins.name, 0):
            raise ProgramError(f"{where}: no component {ins.index} of '{ins.name}' in {sizes}")
        if ins.op == "element" and not 0 <= ins.index < layers.get(ins.args[0], 0):
            raise ProgramError(f"{where}: no component {ins.index} of layer value {ins.args[0]}")
        if ins.op == "dense":
            layers[k] = _check_layer(ins, weights, where)
    if any(not 0 <= k < len(function.instructions) or k in layers for k in function.outputs):
        raise ProgramError(f"function '{function.name}' returns a value that is not a number")


def _arity(ins: Instruction) -> int:
    if ins.op in ("const", "input"):
        return 0
    if ins.op in UNARY or ins.op == "element":
        return 1
    if ins.op == "dense":
        return len(ins.args)
    return 3 if ins.op == "where" else 2


def _check_layer(ins: Instruction, weights: Mapping[str, Array], where: str) -> int:
    if ins.activation not in ACTIVATIONS:
        raise ProgramError(f"{where}: activation '{ins.activation}' not in {list(ACTIVATIONS)}")
    weight, bias = weights.get(f"{ins.name}.weight"), weights.get(f"{ins.name}.bias")
    if weight is None or bias is None:
        raise ProgramError(f"{where}: the weights of layer '{ins.name}' are missing")
    if weight.ndim != 2 or weight.shape[1] != len(ins.args) or bias.shape != weight.shape[:1]:
        raise ProgramError(
            f"{where}: layer '{ins.name}' has weight {weight.shape} and bias {bias.shape}, "
            f"expected (rows, {len(ins.args)}) and (rows,)"
        )
    return int(weight.shape[0])


def _columns(function: Function, inputs: tuple[Array, ...]) -> dict[str, Array]:
    if len(inputs) != len(function.inputs):
        raise ProgramError(
            f"'{function.name}' takes {len(function.inputs)} arrays "
            f"{dict(function.inputs)}, got {len(inputs)}"
        )
    columns: dict[str, Array] = {}
    for (name, size), array in zip(function.inputs, inputs, strict=True):
        values = np.asarray(array, np.float64)
        if values.ndim == 0 or values.shape[-1] != size:
            raise ProgramError(
                f"'{function.name}': input '{name}' must have shape (..., {size}), "
                f"got {values.shape}"
            )
        columns[name] = values
    return columns


def evaluate_instruction(
    ins: Instruction,
    values: list[Array],
    columns: Mapping[str, Array],
    weights: Mapping[str, Array],
) -> Array:
    """Value (...) of one instruction, given those before it and the input columns."""
    op = ins.op
    if op == "const":
        return np.float64(ins.value)
    if op == "input":
        return columns[ins.name][..., ins.index]
    if op in UNARY:
        return UNARY[op](values[ins.args[0]])
    if op in BINARY:
        return BINARY[op](values[ins.args[0]], values[ins.args[1]])
    if op == "where":
        condition, yes, no = (values[k] for k in ins.args)
        return np.where(condition != 0.0, yes, no)
    if op == "element":
        return values[ins.args[0]][..., ins.index]
    stacked = np.stack(np.broadcast_arrays(*(values[k] for k in ins.args)), axis=-1)
    affine = stacked @ weights[f"{ins.name}.weight"].T + weights[f"{ins.name}.bias"]
    return ACTIVATIONS[ins.activation](affine)


def slope_of_instruction(
    ins: Instruction,
    value: Array,
    values: list[Array],
    slopes: list[Array],
    directions: Mapping[str, Array],
    weights: Mapping[str, Array],
) -> Array:
    """Derivative (...) of one instruction along `directions`, given values and slopes before."""
    op = ins.op
    if op in ("const", "sign", "floor", "not", "lt", "le", "eq", "and", "or"):
        return np.zeros_like(value)
    if op == "input":
        return directions[ins.name][..., ins.index]
    if op == "element":
        return slopes[ins.args[0]][..., ins.index]
    if op == "where":
        condition = values[ins.args[0]] != 0.0
        return np.where(condition, slopes[ins.args[1]], slopes[ins.args[2]])
    if op == "dense":
        stacked = np.stack(np.broadcast_arrays(*(slopes[k] for k in ins.args)), axis=-1)
        affine = stacked @ weights[f"{ins.name}.weight"].T
        gain = {"none": 1.0, "tanh": 1.0 - value * value, "relu": (value > 0.0) * 1.0}
        return affine * gain[ins.activation]
    a, da = values[ins.args[0]], slopes[ins.args[0]]
    if op in UNARY:
        return da * _UNARY_SLOPES[op](a, value)
    b, db = values[ins.args[1]], slopes[ins.args[1]]
    return _BINARY_SLOPES[op](a, b, da, db)


_UNARY_SLOPES: dict[str, Callable[[Array, Array], Array]] = {
    "neg": lambda a, y: -1.0,
    "abs": lambda a, y: np.sign(a),
    "sqrt": lambda a, y: 0.5 / y,
    "exp": lambda a, y: y,
    "log": lambda a, y: 1.0 / a,
    "sin": lambda a, y: np.cos(a),
    "cos": lambda a, y: -np.sin(a),
    "asin": lambda a, y: 1.0 / np.sqrt(1.0 - a * a),
    "atan": lambda a, y: 1.0 / (1.0 + a * a),
    "tanh": lambda a, y: 1.0 - y * y,
}
_BINARY_SLOPES: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "add": lambda a, b, da, db: da + db,
    "sub": lambda a, b, da, db: da - db,
    "mul": lambda a, b, da, db: da * b + a * db,
    "div": lambda a, b, da, db: (da - a / b * db) / b,
    "min": lambda a, b, da, db: np.where(a <= b, da, db),
    "max": lambda a, b, da, db: np.where(a >= b, da, db),
    "atan2": lambda a, b, da, db: (da * b - a * db) / (a * a + b * b),
}


def _stack(values: list[Array], columns: Mapping[str, Array]) -> Array:
    shape = np.broadcast_shapes(*(array.shape[:-1] for array in columns.values()))
    return np.stack([np.broadcast_to(value, shape) for value in values], axis=-1)
