"""A traced program evaluated on balls: enclosures of values, derivatives and slopes.

A ball of python-flint (`arb`: a multiple-precision midpoint and a radius) stands for every real
number in it; each operation returns a ball around every possible result. A `Jet` is a ball that
knows how it depends on numbered seeds, in one of two ways:

    derivatives   gradient and, if asked for, Hessian, at every point of a box
    slopes        f(x) - f(c) = sum_i s_i (x_i - c_i) for one centre c and every x of a box

both sparse: what is absent is exactly zero. A choice (`where`, `min`, `sign`, a comparison, ...)
that is not the same on the whole box, or a number outside of an operation's domain, gives None:
undecided. None runs through to every result that depends on it; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flint import arb

from safe_rl_core.program import Instruction, Program

Function = Callable[[arb], arb]
Sparse = dict[Any, arb]
_ONE, _HALF = arb(1), arb(0.5)


def square(x: arb) -> arb:
    """x²; x * x would take the factors for unrelated."""
    mid, rad = x.mid(), x.rad()
    if rad < abs(mid):
        return mid * mid + rad * rad + 2 * mid * arb(0, rad)
    return arb(0).union(x.abs_upper() * x.abs_upper())


def times(x: arb, y: arb) -> arb:
    """x y, exactly the set of products; see _scaled."""
    if x.is_exact() or y.is_exact():
        return x * y
    return (x * y.lower()).union(x * y.upper())


def _monotone(f: Function) -> Function:
    return lambda x: f(x) if x.is_exact() else f(x.lower()).union(f(x.upper()))


_cube, _root = _monotone(lambda x: x**3), _monotone(arb.sqrt)
_exp, _log, _tanh = _monotone(arb.exp), _monotone(arb.log), _monotone(arb.tanh)


def _inverse(x: arb) -> arb:
    return arb.nan() if x.contains(0) else _monotone(lambda t: 1 / t)(x)


def _steep(x: arb) -> arb:
    return _inverse(_root(1 - square(x)))


def _witch(x: arb) -> arb:
    return _inverse(1 + square(x))


#: Smooth functions with their first and second derivatives.
_SMOOTH: dict[str, tuple[Function, Function, Function]] = {
    "inverse": (_inverse, lambda x: -square(_inverse(x)), lambda x: 2 * _cube(_inverse(x))),
    "sqrt": (_root, lambda x: _inverse(_root(x)) / 2, lambda x: -_cube(_inverse(_root(x))) / 4),
    "exp": (_exp, _exp, _exp),
    "log": (_log, _inverse, lambda x: -square(_inverse(x))),
    "sin": (arb.sin, arb.cos, lambda x: -x.sin()),
    "cos": (arb.cos, lambda x: -x.sin(), lambda x: -x.cos()),
    "asin": (_monotone(arb.asin), _steep, lambda x: x * _cube(_steep(x))),
    "atan": (_monotone(arb.atan), _witch, lambda x: -2 * x * square(_witch(x))),
    "tanh": (
        _tanh,
        lambda x: 1 - square(_tanh(x)),
        lambda x: -2 * _tanh(x) * (1 - square(_tanh(x))),
    ),
}
#: Slopes (f(x) - f(c)) / (x - c) in terms of f(x) and f(c), where there is such a form.
_EXACT: dict[str, Callable[[arb, arb], arb]] = {
    "inverse": lambda y, at_centre: -times(y, at_centre),
    "sqrt": lambda y, at_centre: _inverse(y + at_centre),
}


@dataclass(slots=True, eq=False)
class Jet:
    """`value` on the box, `centre` at the centre (the same object if derivatives are carried).

    `grad` {seed: ball} holds the slopes or the gradient, `hess` {(i, j), i <= j: ball} the
    Hessian, or None if it is not carried. A constant has no entries.
    """

    value: arb
    centre: arb
    grad: Sparse
    hess: Sparse | None

    @property
    def hull(self) -> arb:
        """Every value on the box and at the centre."""
        return self.value if self.centre is self.value else self.value.union(self.centre)

    def __add__(self, other: Jet) -> Jet:
        value = self.value + other.value
        if not self.grad and not other.grad:
            return Jet(value, value, {}, {})
        if self.centre is self.value and other.centre is other.value:
            centre = value
        else:
            centre = self.centre + other.centre
        hess = None
        if self.hess is not None and other.hess is not None:
            hess = _sum(self.hess, other.hess)
        return Jet(value, centre, _sum(self.grad, other.grad), hess)

    def __mul__(self, other: Jet) -> Jet:
        if other is self:
            return self._square()
        a, b, ac, bc = self.value, other.value, self.centre, other.centre
        value = times(a, b)
        if not self.grad and not other.grad:
            return Jet(value, value, {}, {})
        grad = _sum(_scaled(self.grad, b), _scaled(other.grad, ac))
        centre = value
        if ac is not a or bc is not b:
            centre = ac * bc
            if self.grad and other.grad:
                grad = self._narrowest(grad, other)
        if self.hess is None or other.hess is None:
            return Jet(value, centre, grad, None)
        hess = _sum(_scaled(self.hess, b), _scaled(other.hess, a))
        for i, x in self.grad.items():
            for j, y in _scaled(other.grad, x).items():
                _put(hess, (i, j) if i <= j else (j, i), y if i != j else 2 * y)
        return Jet(value, centre, grad, hess)

    def _narrowest(self, first: Sparse, other: Jet) -> Sparse:
        # (a - a_c) b + a_c (b - b_c), its mirror image and their mean are all exact; which one is
        # narrowest depends on the box. A product takes one form for all of its seeds.
        a, b, ac, bc = self.value, other.value, self.centre, other.centre
        second = _sum(_scaled(self.grad, bc), _scaled(other.grad, a))
        mean_a, mean_b = (a + ac) * _HALF, (b + bc) * _HALF
        mean = _sum(_scaled(self.grad, mean_b), _scaled(other.grad, mean_a))
        forms = (first, second, mean)
        return min(forms, key=lambda form: sum(float(x.rad()) for x in form.values()))

    def _square(self) -> Jet:
        x, c = self.value, self.centre
        value = square(x)
        centre = value if c is x else square(c)
        return self._chain(value, centre, x + c, arb(2))

    def through(self, name: str) -> Jet:
        """A smooth function of this number."""
        f, slope, curvature = _SMOOTH[name]
        x, c = self.value, self.centre
        value = f(x)
        if not self.grad:
            return Jet(value, value, {}, self.hess)
        if c is x:
            return self._chain(
                value, value, slope(x), curvature(x) if self.hess is not None else x
            )
        centre = f(c)
        if name in _EXACT:
            return self._chain(value, centre, _EXACT[name](value, centre), x)
        factor = slope(self.hull)
        taylor = slope(c) + curvature(self.hull) * (x - c) * _HALF
        return self._chain(value, centre, taylor if taylor.rad() < factor.rad() else factor, x)

    def _chain(self, value: arb, centre: arb, first: arb, second: arb) -> Jet:
        grad = _scaled(self.grad, first)
        if self.hess is None:
            return Jet(value, centre, grad, None)
        hess: Sparse = {}
        entries = list(self.grad.items())
        for n, (i, x) in enumerate(entries):
            _put(hess, (i, i), square(x))
            for j, y in _scaled(dict(entries[n + 1 :]), x).items():
                _put(hess, (i, j) if i <= j else (j, i), y)
        return Jet(value, centre, grad, _sum(_scaled(self.hess, first), _scaled(hess, second)))


def _put(into: Sparse, key: Any, x: arb) -> None:
    into[key] = into[key] + x if key in into else x


def _scaled(a: Sparse, factor: arb) -> Sparse:
    # One ball is an exact multiple of the other's ends: no wider than the true set of products,
    # while a product of two balls is wide by the product of their radii.
    if factor.is_exact():
        return {key: x * factor for key, x in a.items()}
    low, high = factor.lower(), factor.upper()
    return {key: (x * low).union(x * high) for key, x in a.items()}


def _sum(a: Sparse, b: Sparse) -> Sparse:
    if not a:
        return b
    result = dict(a)
    for key, x in b.items():
        _put(result, key, x)
    return result


def constants(values: Sequence[Any]) -> list[Jet]:
    """Numbers or balls that do not depend on any seed."""
    return [Jet(x, x, {}, {}) for x in map(arb, values)]


def seeds(box: Sequence[arb], first: int = 0, order: int = 2) -> list[Jet]:
    """Variables numbered from `first` on; order 1: gradient, 2: gradient and Hessian."""
    return [Jet(x, x, {first + i: _ONE}, {} if order > 1 else None) for i, x in enumerate(box)]


def slope_seeds(box: Sequence[arb], scale: Sequence[float], first: int = 0) -> list[Jet]:
    """Variables scale[i] * t, t numbered from `first` on: slopes in t from the centre t = 0."""
    return [Jet(x, arb(0), {first + i: arb(scale[i])}, None) for i, x in enumerate(box)]


def _truth(yes: bool, no: bool) -> Jet | None:
    return constants([1])[0] if yes else constants([0])[0] if no else None


def _negative(a: Jet) -> Jet:
    value, grad = -a.value, {i: -x for i, x in a.grad.items()}
    hess = None if a.hess is None else {k: -x for k, x in a.hess.items()}
    return Jet(value, value if a.centre is a.value else -a.centre, grad, hess)


def _quotient(a: Jet, b: Jet) -> Jet:
    return a * b.through("inverse")


def _sign(a: Jet) -> Jet | None:
    return constants([-1])[0] if a.hull < 0 else _truth(a.hull > 0, a.hull.is_zero())


def _absolute(a: Jet) -> Jet | None:
    return a if a.hull >= 0 else _negative(a) if a.hull <= 0 else None


def _floor(a: Jet) -> Jet | None:
    low, high = a.hull.lower().floor(), a.hull.upper().floor()
    return constants([low])[0] if low == high else None


def _smaller(a: Jet, b: Jet) -> Jet | None:
    return a if a.hull <= b.hull else b if b.hull <= a.hull else None


def _larger(a: Jet, b: Jet) -> Jet | None:
    return a if a.hull >= b.hull else b if b.hull >= a.hull else None


def _angle(y: Jet, x: Jet) -> Jet | None:
    if x.hull > 0:
        return _quotient(y, x).through("atan")
    above, below = y.hull > 0, y.hull < 0
    if not above and not below:
        return None  # it meets the branch cut
    quarter = constants([arb.pi() / 2 if above else -arb.pi() / 2])[0]
    return quarter + _negative(_quotient(x, y).through("atan"))


_APPLY: dict[str, Callable[..., Jet | None]] = {
    **{name: lambda a, name=name: a.through(name) for name in _SMOOTH},
    "neg": _negative,
    "abs": _absolute,
    "sign": _sign,
    "floor": _floor,
    "not": lambda a: constants([1])[0] + _negative(a),
    "add": Jet.__add__,
    "sub": lambda a, b: a + _negative(b),
    "mul": Jet.__mul__,
    "div": _quotient,
    "min": _smaller,
    "max": _larger,
    "or": _larger,
    "and": Jet.__mul__,
    "atan2": _angle,
    "lt": lambda a, b: _truth(a.hull < b.hull, a.hull >= b.hull),
    "le": lambda a, b: _truth(a.hull <= b.hull, a.hull > b.hull),
    "eq": lambda a, b: _truth(a.hull == b.hull, a.hull < b.hull or a.hull > b.hull),
}


def evaluate(program: Program, name: str, *inputs: Sequence[Jet]) -> list[Jet | None]:
    """The outputs of a function of the program; None where undecided."""
    function = program.functions[name]
    columns = {key: x for (key, _), x in zip(function.inputs, inputs, strict=True)}
    values: list[Any] = []
    for ins in function.instructions:
        if ins.op == "const":
            values += constants([ins.value])
        elif ins.op == "input":
            values.append(columns[ins.name][ins.index])
        elif ins.op == "element":
            values.append(values[ins.args[0]][ins.index])
        else:
            args = [values[k] for k in ins.args]
            values.append(_layer(program, ins, args) if ins.op == "dense" else _step(ins, args))
    return [values[k] for k in function.outputs]


def _step(ins: Instruction, args: list[Jet | None]) -> Jet | None:
    if ins.op == "where" and args[0] is not None:
        no, yes = args[0].hull.is_zero(), not args[0].hull.contains(0)
        return args[1] if yes else args[2] if no else None
    if None in args:
        return None
    result = _APPLY[ins.op](*args)
    return result if result is not None and result.hull.is_finite() else None


def _layer(program: Program, ins: Instruction, args: list[Jet | None]) -> list[Jet | None]:
    weight, bias = program.weights[f"{ins.name}.weight"], program.weights[f"{ins.name}.bias"]
    if None in args:
        return [None] * len(bias)
    rows = constants(bias.tolist())
    for i, row in enumerate(weight.tolist()):
        for a, w in zip(args, constants(row), strict=True):
            rows[i] = rows[i] + a * w
    if ins.activation == "none":
        return rows
    zero = constants([0])[0]
    return [_larger(a, zero) if ins.activation == "relu" else a.through("tanh") for a in rows]
