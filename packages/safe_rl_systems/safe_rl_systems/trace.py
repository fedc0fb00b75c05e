"""From torch functions to a program.

A function is run once on symbolic inputs (torch's `make_fx`), which records a graph of tensor
operations and refuses Python branches on data. The graph is then replayed on arrays of scalar
expressions: every tensor operation becomes scalar instructions, constants are folded, and equal
expressions are shared. A matrix product with a constant matrix of at least `DENSE_SIZE` entries
stays one `dense` instruction, followed by its activation. An operation that is not in the tables
below is refused by name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ProgramError
from safe_rl_core.program import BINARY, UNARY, Function, Instruction, Program
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

#: Matrices with fewer entries are written out as scalar products.
DENSE_SIZE = 64

aten = torch.ops.aten
Objects = NDArray[np.object_]


@dataclass(frozen=True)
class Value:
    """A reference to instruction `index` of the function being built."""

    builder: Builder
    index: int

    @property
    def constant(self) -> float | None:
        """The number, if this value is a constant."""
        ins = self.builder.instructions[self.index]
        return ins.value if ins.op == "const" else None

    def __array__(self, *_: object) -> Objects:
        box = np.empty((), object)
        box[()] = self
        return box


@dataclass(eq=False)
class Builder:
    """Collects the instructions of one function; equal instructions are created once."""

    weights: dict[str, NDArray[np.float64]]
    prefix: str
    instructions: list[Instruction] = field(default_factory=list)
    known: dict[Instruction, int] = field(default_factory=dict)

    def emit(self, ins: Instruction) -> Value:
        """The value of an instruction, reusing an equal earlier one."""
        if ins not in self.known:
            self.known[ins] = len(self.instructions)
            self.instructions.append(ins)
        return Value(self, self.known[ins])

    def constant(self, value: float) -> Value:
        """A number as a value."""
        return self.emit(Instruction("const", value=float(value)))

    def lift(self, value: object) -> Value:
        """A Python number or value as a value."""
        if isinstance(value, Value):
            return value
        if isinstance(value, (bool, int, float, np.floating, np.integer)):
            return self.constant(float(value))
        raise ProgramError(f"expected a number in a traced function, got {type(value).__name__}")

    def apply(self, op: str, *operands: object) -> Value:
        """op(operands) with constant folding and the identities of +, -, *, /."""
        args = [self.lift(a) for a in operands]
        numbers = [a.constant for a in args]
        if all(v is not None for v in numbers) and op in UNARY | BINARY:
            table: Mapping[str, Callable[..., Any]] = UNARY | BINARY
            return self.constant(float(table[op](*[np.float64(v) for v in numbers])))
        short = _identity(op, args, numbers)
        if short is not None:
            return self.lift(short)
        if op in ("add", "mul", "min", "max", "and", "or", "eq"):
            args.sort(key=lambda a: a.index)
        return self.emit(Instruction(op, tuple(a.index for a in args)))

    def dense(self, weight: NDArray[np.float64], bias: NDArray[np.float64], x: Objects) -> Objects:
        """weight @ x + bias as one instruction; the elements of its result."""
        stored = [k.removesuffix(".weight") for k in self.weights if k.endswith(".weight")]
        same = [
            k
            for k in stored
            if np.array_equal(self.weights[f"{k}.weight"], weight)
            and np.array_equal(self.weights[f"{k}.bias"], bias)
        ]
        name = same[0] if same else f"{self.prefix}.{len(stored)}"
        self.weights[f"{name}.weight"], self.weights[f"{name}.bias"] = weight, bias
        layer = self.emit(Instruction("dense", tuple(v.index for v in x), name=name))
        return self.elements(layer.index, len(bias))

    def elements(self, layer: int, size: int) -> Objects:
        """The components of a layer's output as an array of values."""
        out = np.empty(size, object)
        for i in range(size):
            out[i] = self.emit(Instruction("element", (layer,), index=i))
        return out

    def activate(self, op: str, x: Objects) -> Objects | None:
        """Fuse an activation into the layer whose whole output x is; None if x is not that."""
        first = x.reshape(-1)[0] if x.size else None
        if x.ndim != 1 or not isinstance(first, Value):
            return None
        element = self.instructions[first.index]
        if element.op != "element":
            return None
        layer = self.instructions[element.args[0]]
        size = len(self.weights[f"{layer.name}.bias"])
        whole = self.elements(element.args[0], size)
        if (
            layer.activation != "none"
            or len(x) != size
            or any(a != b for a, b in zip(x, whole, strict=True))
        ):
            return None
        fused = Instruction("dense", layer.args, name=layer.name, activation=op)
        return self.elements(self.emit(fused).index, size)

    def finish(self, name: str, inputs: Sequence[tuple[str, int]], outputs: Objects) -> Function:
        """The function that returns `outputs`, without the instructions that nothing uses."""
        wanted = [self.lift(v).index for v in outputs.reshape(-1)]
        needed: set[int] = set()
        stack = list(wanted)
        while stack:
            k = stack.pop()
            if k not in needed:
                needed.add(k)
                stack.extend(self.instructions[k].args)
        renumbered = {old: new for new, old in enumerate(sorted(needed))}
        body = [
            Instruction(
                ins.op,
                tuple(renumbered[a] for a in ins.args),
                ins.value,
                ins.name,
                ins.index,
                ins.activation,
            )
            for ins in (self.instructions[k] for k in sorted(needed))
        ]
        return Function(name, tuple(inputs), tuple(body), tuple(renumbered[k] for k in wanted))


def _identity(op: str, args: list[Value], numbers: list[float | None]) -> Value | float | None:
    """x+0, x-0, x·1, x·0, x/1 and a where whose condition is known; otherwise None."""
    if op == "where":
        return None if numbers[0] is None else (args[1] if numbers[0] else args[2])
    if len(args) != 2:
        return None
    a, b = numbers
    if op == "add" and (a == 0.0 or b == 0.0):
        return args[1] if a == 0.0 else args[0]
    if op in ("sub", "div") and b == (0.0 if op == "sub" else 1.0):
        return args[0]
    if op == "mul" and (a == 0.0 or b == 0.0):
        return 0.0
    if op == "mul" and (a == 1.0 or b == 1.0):
        return args[1] if a == 1.0 else args[0]
    return None


def trace(
    name: str,
    function: Callable[..., Tensor],
    inputs: Sequence[tuple[str, int]],
    weights: dict[str, NDArray[np.float64]],
) -> Function:
    """Trace `function`, called with one float64 vector per input, into a straight-line function.

    `weights` collects the constant matrices of dense layers, named <function>.<number>.
    """
    examples = [torch.rand(size, dtype=torch.float64) * 0.5 + 0.25 for _, size in inputs]
    try:
        graph = make_fx(lambda *a: function(*a), tracing_mode="real")(*examples)
    except Exception as error:
        raise ProgramError(
            f"'{name}' cannot be traced: {error}; write it with tensor operations only "
            "(torch.where instead of if, no .item())"
        ) from error
    builder = Builder(weights, name)
    arguments = []
    for key, size in inputs:
        vector = np.empty(size, object)
        for i in range(size):
            vector[i] = builder.emit(Instruction("input", name=key, index=i))
        arguments.append(vector)
    return builder.finish(name, inputs, np.atleast_1d(_replay(graph, builder, arguments, name)))


def trace_program(
    functions: Mapping[str, tuple[Callable[..., Tensor], Sequence[tuple[str, int]]]],
) -> Program:
    """Trace several functions into one program."""
    weights: dict[str, NDArray[np.float64]] = {}
    traced = {name: trace(name, f, inputs, weights) for name, (f, inputs) in functions.items()}
    return Program(traced, weights)


def _replay(
    graph: torch.fx.GraphModule, builder: Builder, inputs: list[Objects], name: str
) -> Objects:
    env: dict[torch.fx.Node, Any] = {}
    remaining = iter(inputs)
    result: Any = None

    def resolve(item: Any) -> Any:
        if isinstance(item, torch.fx.Node):
            return env[item]
        if isinstance(item, (list, tuple)):
            return [resolve(i) for i in item]
        return item

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(remaining)
        elif node.op == "get_attr":
            env[node] = _constants(getattr(graph, str(node.target)), builder)
        elif node.op == "output":
            result = resolve(node.args[0])
        elif node.target is operator.getitem:
            env[node] = resolve(node.args[0])[node.args[1]]
        else:
            env[node] = _operation(
                node, builder, resolve(list(node.args)), dict(node.kwargs), name
            )
    return np.asarray(result, object)


def _operation(
    node: torch.fx.Node, builder: Builder, args: list[Any], kwargs: dict[str, Any], name: str
) -> Any:
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _ELEMENTWISE:
        return _elementwise(builder, packet, args, kwargs, name)
    if packet in _SHAPES:
        return _SHAPES[packet](args, kwargs)
    if packet in _PRODUCTS:
        return _product(builder, _PRODUCTS[packet](args))
    if packet in _FILLS:
        return np.full(tuple(node.meta["val"].shape), builder.constant(_FILLS[packet]), object)
    raise ProgramError(
        f"'{name}' uses {node.target}, which the tracer does not know; known are "
        + ", ".join(sorted(str(p) for p in (*_ELEMENTWISE, *_SHAPES, *_PRODUCTS)))
    )


def _constants(tensor: Tensor, builder: Builder) -> Objects:
    array = np.empty(tuple(tensor.shape), object)
    for index, value in np.ndenumerate(tensor.detach().double().numpy()):
        array[index] = builder.constant(float(value))
    return array


def _elementwise(
    builder: Builder, packet: Any, args: list[Any], kwargs: dict[str, Any], name: str
) -> Objects:
    if kwargs.get("alpha", 1) != 1:
        raise ProgramError(f"'{name}' uses {packet} with alpha; multiply explicitly instead")
    rule = _ELEMENTWISE[packet]
    operands = [np.asarray(a, object) for a in args if not isinstance(a, str) and a is not None]
    if packet in _ACTIVATIONS:
        fused = builder.activate(_ACTIVATIONS[packet], operands[0])
        if fused is not None:
            return fused
    if packet in (aten.clamp, aten.clamp_min, aten.clamp_max):
        operands = _clamp_bounds(packet, args, kwargs)
    shape = np.broadcast_shapes(*(o.shape for o in operands))
    wide = [np.broadcast_to(o, shape) for o in operands]
    out = np.empty(shape, object)
    for index in np.ndindex(shape):
        out[index] = rule(builder, *(o[index] for o in wide))
    return out


def _clamp_bounds(packet: Any, args: list[Any], kwargs: dict[str, Any]) -> list[Objects]:
    low = args[1] if len(args) > 1 and packet is not aten.clamp_max else kwargs.get("min")
    high = kwargs.get("max")
    if packet is aten.clamp_max:
        high = args[1]
    elif packet is aten.clamp and len(args) > 2:
        high = args[2]
    bounds = (-math.inf if low is None else low, math.inf if high is None else high)
    return [np.asarray(a, object) for a in (args[0], *bounds)]


def _clamp(builder: Builder, x: Any, low: Any, high: Any) -> Value:
    if low != -math.inf:
        x = builder.apply("max", x, low)
    return builder.lift(x if high == math.inf else builder.apply("min", x, high))


def _power(builder: Builder, x: Any, exponent: Any) -> Value:
    e = exponent.constant if isinstance(exponent, Value) else float(exponent)
    if e == 0.5:
        return builder.apply("sqrt", x)
    if e in (2.0, 3.0, 4.0):
        square = builder.apply("mul", x, x)
        return {
            2.0: lambda: square,
            3.0: lambda: builder.apply("mul", square, x),
            4.0: lambda: builder.apply("mul", square, square),
        }[e]()
    raise ProgramError(f"powers other than 0.5, 2, 3 and 4 are not traced, got {e}")


def _named(op: str) -> Callable[..., Value]:
    return lambda builder, *operands: builder.apply(op, *operands)


def _swapped(op: str) -> Callable[..., Value]:
    return lambda builder, a, b: builder.apply(op, b, a)


_ACTIVATIONS = {aten.tanh: "tanh", aten.relu: "relu"}
_ELEMENTWISE: dict[Any, Callable[..., Value]] = {
    aten.add: _named("add"),
    aten.sub: _named("sub"),
    aten.rsub: _swapped("sub"),
    aten.mul: _named("mul"),
    aten.div: _named("div"),
    aten.neg: _named("neg"),
    aten.abs: _named("abs"),
    aten.sign: _named("sign"),
    aten.floor: _named("floor"),
    aten.sqrt: _named("sqrt"),
    aten.exp: _named("exp"),
    aten.log: _named("log"),
    aten.sin: _named("sin"),
    aten.cos: _named("cos"),
    aten.asin: _named("asin"),
    aten.atan: _named("atan"),
    aten.atan2: _named("atan2"),
    aten.tanh: _named("tanh"),
    aten.relu: lambda b, x: b.apply("max", x, 0.0),
    aten.sigmoid: lambda b, x: b.apply(
        "div", 1.0, b.apply("add", 1.0, b.apply("exp", b.apply("neg", x)))
    ),
    aten.minimum: _named("min"),
    aten.maximum: _named("max"),
    aten.clamp: _clamp,
    aten.clamp_min: _clamp,
    aten.clamp_max: _clamp,
    aten.pow: _power,
    aten.square: lambda b, x: b.apply("mul", x, x),
    aten.reciprocal: lambda b, x: b.apply("div", 1.0, x),
    aten.lt: _named("lt"),
    aten.le: _named("le"),
    aten.gt: _swapped("lt"),
    aten.ge: _swapped("le"),
    aten.eq: _named("eq"),
    aten.logical_and: _named("and"),
    aten.bitwise_and: _named("and"),
    aten.logical_or: _named("or"),
    aten.bitwise_or: _named("or"),
    aten.logical_not: _named("not"),
    aten.bitwise_not: _named("not"),
    aten.where: _named("where"),
}


def _axis(args: list[Any], kwargs: dict[str, Any], place: int, default: int) -> int:
    return int(args[place]) if len(args) > place else int(kwargs.get("dim", default))


def _slice(args: list[Any], kwargs: dict[str, Any]) -> Objects:
    array = args[0]
    axis = _axis(args, kwargs, 1, 0) % array.ndim
    start, stop = (args[2] if len(args) > 2 else 0), (args[3] if len(args) > 3 else None)
    step = args[4] if len(args) > 4 else 1
    index: list[slice] = [slice(None)] * array.ndim
    index[axis] = slice(start, None if stop is None or stop > 2**31 else stop, step)
    return array[tuple(index)]


def _select(args: list[Any], kwargs: dict[str, Any]) -> Objects:
    return np.asarray(np.take(args[0], args[2], axis=args[1]), object)


def _sum(args: list[Any], kwargs: dict[str, Any]) -> Objects:
    axes = args[1] if len(args) > 1 and args[1] is not None else list(range(args[0].ndim))
    keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
    out = np.asarray(args[0], object)
    for axis in sorted((a % out.ndim for a in axes), reverse=True):
        parts = list(np.moveaxis(out, axis, 0))
        total = parts[0]
        for part in parts[1:]:
            total = _add_arrays(total, part)
        out = np.asarray(total, object)
        if keep:
            out = np.expand_dims(out, axis)
    return out


def _add_arrays(a: Any, b: Any) -> Objects:
    a, b = np.asarray(a, object), np.asarray(b, object)
    out = np.empty(a.shape, object)
    for index in np.ndindex(a.shape):
        first = a[index] if isinstance(a[index], Value) else b[index]
        out[index] = first.builder.apply("add", a[index], b[index])
    return out


def _unbind(args: list[Any], kwargs: dict[str, Any]) -> list[Objects]:
    parts = np.moveaxis(args[0], _axis(args, kwargs, 1, 0), 0)
    return [np.asarray(part, object) for part in parts]


def _expand(args: list[Any], kwargs: dict[str, Any]) -> Objects:
    array, target = args[0], list(args[1])
    lead = len(target) - array.ndim
    shape = [array.shape[i - lead] if size == -1 else size for i, size in enumerate(target)]
    return np.broadcast_to(array, shape)


def _permuted(args: list[Any], kwargs: dict[str, Any]) -> Objects:
    return np.transpose(args[0], args[1] if len(args) > 1 else None)


_SHAPES: dict[Any, Callable[[list[Any], dict[str, Any]], Any]] = {
    aten.select: _select,
    aten.slice: _slice,
    aten.stack: lambda a, k: np.stack([np.asarray(p, object) for p in a[0]], _axis(a, k, 1, 0)),
    aten.cat: lambda a, k: np.concatenate(a[0], _axis(a, k, 1, 0)),
    aten.unsqueeze: lambda a, k: np.expand_dims(a[0], a[1]),
    aten.squeeze: lambda a, k: np.squeeze(a[0], a[1] if len(a) > 1 else None),
    aten.view: lambda a, k: a[0].reshape(a[1]),
    aten._unsafe_view: lambda a, k: a[0].reshape(a[1]),
    aten.reshape: lambda a, k: a[0].reshape(a[1]),
    aten.expand: _expand,
    aten.unbind: _unbind,
    aten.t: lambda a, k: np.transpose(a[0]),
    aten.transpose: lambda a, k: np.swapaxes(a[0], a[1], a[2]),
    aten.permute: _permuted,
    aten.sum: _sum,
    aten.lift_fresh_copy: lambda a, k: a[0],
    aten.clone: lambda a, k: a[0],
    aten.detach: lambda a, k: a[0],
    aten.alias: lambda a, k: a[0],
    aten._to_copy: lambda a, k: a[0],
}


@dataclass(frozen=True)
class _MatrixProduct:
    """out = left @ right (+ bias), as recorded by the graph."""

    left: Objects
    right: Objects
    bias: Objects | None = None


_FILLS = {aten.zeros: 0.0, aten.zeros_like: 0.0, aten.ones: 1.0, aten.ones_like: 1.0}
_PRODUCTS: dict[Any, Callable[[list[Any]], _MatrixProduct]] = {
    aten.mm: lambda a: _MatrixProduct(a[0], a[1]),
    aten.mv: lambda a: _MatrixProduct(a[0], a[1]),
    aten.dot: lambda a: _MatrixProduct(a[0], a[1]),
    aten.addmm: lambda a: _MatrixProduct(a[1], a[2], a[0]),
    aten.addmv: lambda a: _MatrixProduct(a[1], a[2], a[0]),
}


def _product(builder: Builder, product: _MatrixProduct) -> Objects:
    left, right = product.left, product.right
    if right.ndim == 1 and left.ndim == 2:
        layer = _numbers(left)
        bias = np.zeros(len(left)) if product.bias is None else _numbers(product.bias)
        if layer is not None and bias is not None and layer.size >= DENSE_SIZE:
            return builder.dense(layer, bias, right)
    if left.ndim == 2 and left.shape[0] == 1 and right.ndim == 2:
        layer = _numbers(right)
        bias = np.zeros(right.shape[1]) if product.bias is None else _numbers(product.bias)
        if layer is not None and bias is not None and layer.size >= DENSE_SIZE:
            return builder.dense(np.ascontiguousarray(layer.T), bias.reshape(-1), left[0])[None, :]
    rows = left if left.ndim == 2 else left[None, :]
    columns = right if right.ndim == 2 else right[:, None]
    out = np.empty((rows.shape[0], columns.shape[1]), object)
    for i, j in np.ndindex(out.shape):
        total: Any = 0.0
        for a, b in zip(rows[i], columns[:, j], strict=True):
            total = builder.apply("add", total, builder.apply("mul", a, b))
        out[i, j] = total
    result = out.reshape((*left.shape[:-1], *right.shape[1:]))
    return (
        result
        if product.bias is None
        else _add_arrays(result, np.broadcast_to(product.bias, result.shape))
    )


def _numbers(array: Objects) -> NDArray[np.float64] | None:
    """The array as numbers if every entry is a constant, else None."""
    flat = [v.constant if isinstance(v, Value) else float(v) for v in array.reshape(-1)]
    if any(v is None for v in flat):
        return None
    return np.array(flat, np.float64).reshape(array.shape)
