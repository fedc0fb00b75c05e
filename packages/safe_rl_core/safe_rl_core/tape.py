"""A traced program evaluated on balls and jets; see `ball` for what these are.

A choice (`where`, `min`, a comparison, ...) that is not the same on the whole box, or a number
outside of an operation's domain, gives None: undecided. None runs through to every result that
depends on it; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flint import arb

from safe_rl_core.ball import SMOOTH, Jet, Number, constants, square, times
from safe_rl_core.program import Instruction, Program

_ALWAYS = arb(0)
Values = list[Number | None]
#: Where a result goes, the operation, and its one or two numbers; (operation, -1, -1): it is given
#: all values and looks for itself.
Step = tuple[int, Callable[..., Number | None], int, int]


def _hull(a: Number) -> arb:
    return a if isinstance(a, arb) else a.hull


def _truth(yes: bool, no: bool) -> arb | None:
    return arb(1) if yes else arb(0) if no else None


def _sum(a: Number, b: Number) -> Number:
    if isinstance(a, arb):
        return a + b if isinstance(b, arb) else b.shifted(a)
    return a.shifted(b) if isinstance(b, arb) else a + b


def _product(a: Number, b: Number) -> Number:
    if isinstance(a, arb):
        if isinstance(b, arb):
            return square(a) if a is b else times(a, b)
        a, b = b, a
    if isinstance(b, arb):
        return b if b.is_zero() else a.scaled(b)
    return a.squared() if a is b else a * b


def _difference(a: Number, b: Number) -> Number:
    return a - b if isinstance(a, arb) and isinstance(b, arb) else _sum(a, -b)


def _through(name: str, a: Number) -> Number:
    return SMOOTH[name][0](a) if isinstance(a, arb) else a.through(name)


def _quotient(a: Number, b: Number) -> Number:
    return _product(a, _through("inverse", b))


def _absolute(a: Number) -> Number | None:
    return a if _hull(a) >= 0 else -a if _hull(a) <= 0 else None


def _floor(a: arb) -> arb | None:
    low, high = a.lower().floor(), a.upper().floor()
    return low if low == high else None


def _smaller(a: Number, b: Number) -> Number | None:
    return a if _hull(a) <= _hull(b) else b if _hull(b) <= _hull(a) else None


def _larger(a: Number, b: Number) -> Number | None:
    return a if _hull(a) >= _hull(b) else b if _hull(b) >= _hull(a) else None


def _angle(y: Number, x: Number) -> Number | None:
    if _hull(x) > 0:
        return _through("atan", _quotient(y, x))
    above, below = _hull(y) > 0, _hull(y) < 0
    if not above and not below:
        return None  # it meets the branch cut
    quarter = arb.pi() / 2 if above else -arb.pi() / 2
    return _sum(quarter, -_through("atan", _quotient(x, y)))


def _of_hulls(f: Callable[..., arb | None]) -> Callable[..., arb | None]:
    return lambda *numbers: f(*map(_hull, numbers))


#: The operations of a program by name.
_UNARY: dict[str, Callable[[Number], Number | None]] = {
    **{name: partial(_through, name) for name in SMOOTH},
    "neg": lambda a: -a,
    "abs": _absolute,
    "sign": _of_hulls(lambda a: -arb(1) if a < 0 else _truth(a > 0, a.is_zero())),
    "floor": _of_hulls(_floor),
    "not": lambda a: _sum(arb(1), -a),
}
_BINARY: dict[str, Callable[[Number, Number], Number | None]] = {
    "add": _sum,
    "sub": _difference,
    "mul": _product,
    "div": _quotient,
    "min": _smaller,
    "max": _larger,
    "or": _larger,
    "and": _product,
    "atan2": _angle,
    "lt": _of_hulls(lambda a, b: _truth(a < b, a >= b)),
    "le": _of_hulls(lambda a, b: _truth(a <= b, a > b)),
    "eq": _of_hulls(lambda a, b: _truth(a == b, a < b or a > b)),
}


class Tape:
    """A function of a program. A call redoes only what depends on inputs that are new.

    An input is old where it is the object of the call before, or a seed made of the same objects.
    """

    def __init__(self, program: Program, name: str) -> None:
        function = program.functions[name]
        inputs = [(key, i) for key, size in function.inputs for i in range(size)]
        self._name, self._sizes = name, [size for _, size in function.inputs]
        # One more input, always the same, stands for the constants: it is new only once.
        self._last: list[Number | None] = [None] * (len(inputs) + 1)
        self._values: Values = [None] * len(self._last)
        self._uses = [1 << n for n in range(len(self._last))]  # a value's inputs, as bits
        self._steps: list[Step] = []
        self._plans: dict[int, list[Step]] = {}
        places: list[Any] = []  # an instruction's place among the values; of a layer its places
        for ins in function.instructions:
            if ins.op == "input":
                places.append(inputs.index((ins.name, ins.index)))
            elif ins.op == "element":
                places.append(places[ins.args[0]][ins.index])
            elif ins.op == "const":
                places.append(self._place(self._uses[len(inputs)], arb(ins.value)))
            else:
                places.append(self._add(program, ins, [places[k] for k in ins.args]))
        self._outputs = [places[k] for k in function.outputs]

    def _place(self, uses: int, value: Number | None = None) -> int:
        self._values.append(value)
        self._uses.append(uses)
        return len(self._values) - 1

    def _add(self, program: Program, ins: Instruction, args: list[int]) -> Any:
        uses = 0
        for k in args:
            uses |= self._uses[k]
        if ins.op == "dense":
            rows = zip(*(program.weights[f"{ins.name}.{part}"].tolist() for part in
                         ("weight", "bias")), strict=True)  # fmt: skip
            operations = [(partial(_row, args, *row, ins.activation), -1, -1) for row in rows]
        elif ins.op == "where":
            operations = [(partial(_where, args), -1, -1)]
        else:
            operations = [(_UNARY.get(ins.op) or _BINARY[ins.op], args[0], (*args, -1)[1])]
        places = [self._place(uses) for _ in operations]
        self._steps += [(k, *step) for k, step in zip(places, operations, strict=True)]
        return places if ins.op == "dense" else places[0]

    def users(self, changed: int) -> list[Step]:
        """The steps that depend on some inputs, given as bits."""
        if changed not in self._plans:
            self._plans[changed] = [s for s in self._steps if self._uses[s[0]] & changed]
        return self._plans[changed]

    def __call__(self, *inputs: Sequence[Number]) -> list[Jet | None]:
        """The outputs; None where undecided."""
        if [len(part) for part in inputs] != self._sizes:
            raise ValueError(f"'{self._name}' takes {self._sizes} numbers, got "
                             f"{[len(part) for part in inputs]}")  # fmt: skip
        given = [*(x for part in inputs for x in part), _ALWAYS]
        pairs = enumerate(zip(given, self._last, strict=True))
        changed = sum(1 << n for n, (x, y) in pairs if not _same(x, y))
        values, self._last = self._values, [None] * len(given)  # nothing, should a step raise
        values[: len(given)] = given
        for k, operation, i, j in self.users(changed):
            if i < 0:
                x = operation(values)
            elif j < 0:
                a = values[i]
                x = None if a is None else operation(a)
            else:
                a, b = values[i], values[j]
                x = None if a is None or b is None else operation(a, b)
            values[k] = x if x is not None and x.is_finite() else None
        self._last = given
        return [_jet(values[k]) for k in self._outputs]


def evaluate(program: Program, name: str, *inputs: Sequence[Number]) -> list[Jet | None]:
    """The outputs of a function of the program, once; None where undecided."""
    return Tape(program, name)(*inputs)


def _same(x: Number, y: Number | None) -> bool:
    # Comparing dictionaries compares by object first; inexact balls are never equal.
    return x is y or (
        isinstance(x, Jet)
        and isinstance(y, Jet)
        and x.value is y.value
        and x.centre is y.centre
        and (x.grad, x.hess) == (y.grad, y.hess)
    )


def _jet(x: Number | None) -> Jet | None:
    return Jet(x, x, {}, {}) if isinstance(x, arb) else x


def _where(args: list[int], values: Values) -> Number | None:
    condition, yes, no = (values[k] for k in args)
    if condition is None:
        return None
    hull = condition.hull if isinstance(condition, Jet) else condition
    return no if hull.is_zero() else None if hull.contains(0) else yes


def _row(
    args: list[int], weights: list[float], bias: float, activation: str, values: Values
) -> Number | None:
    """One number of a layer."""
    total: Number = arb(bias)
    for k, weight in zip(args, constants(weights), strict=True):
        x = values[k]
        if x is None:
            return None
        total = _BINARY["add"](total, _BINARY["mul"](x, weight))
    if activation == "none":
        return total
    return _UNARY["tanh"](total) if activation == "tanh" else _BINARY["max"](total, arb(0))
