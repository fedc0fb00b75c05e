"""Operations on balls: enclosures of values, derivatives and slopes.

A ball of python-flint (`arb`: a multiple-precision midpoint and a radius) stands for every real
number in it; each operation returns a ball around every possible result. A `Jet` is a ball that
knows how it depends on numbered seeds, in one of two ways:

    derivatives   gradient and, if asked for, Hessian, at every point of a box
    slopes        f(x) - f(c) = sum_i s_i (x_i - c_i) for one centre c and every x of a box

both sparse: what is absent is exactly zero. A ball that depends on no seed is a plain `arb`. A
number outside of an operation's domain gives something that is not finite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, arb_mat
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[arb], arb]
Sparse = dict[Any, arb]
ZERO, _ONE, _HALF = arb(0), arb(1), arb(0.5)
#: A ball's radius has 30 bits; with one factor narrower than that, `x * y` is tight.
_NARROW = 32


def square(x: arb) -> arb:
    """x²; x * x would take the factors for unrelated."""
    if x.rel_accuracy_bits() >= _NARROW:
        return x * x
    mid, rad = x.mid(), x.rad()
    if rad < abs(mid):
        return mid * mid + rad * rad + 2 * mid * arb(0, rad)
    return arb(0).union(x.abs_upper() * x.abs_upper())


def times(x: arb, y: arb) -> arb:
    """x y, exactly the set of products; see _scaled."""
    if x.rel_accuracy_bits() >= _NARROW or y.rel_accuracy_bits() >= _NARROW:
        return x * y
    return (x * y.lower()).union(x * y.upper())


def matrix(rows: Iterable[Iterable[Any]]) -> arb_mat:
    """Numbers or balls as a matrix of balls."""
    return arb_mat([[arb(x) for x in row] for row in rows])


def norm(entries: Iterable[arb]) -> arb:
    """Euclidean norm."""
    return sum((square(x) for x in entries), ZERO).sqrt()


def up(x: arb) -> float:
    """A float that is not below any number of the ball."""
    return float(np.nextafter(float(x.upper()), np.inf))


@functools.lru_cache(maxsize=10_000)
def _side(low: float, high: float, more: float) -> arb:
    """[low - more, high + more]; the same object for the same numbers, see `Tape`."""
    return arb(low).union(arb(high)) + arb(0, more)


def balls(low: Array, high: Array, more: Array | float = 0.0) -> list[arb]:
    """The sides of a box, each made wider by `more`."""
    return list(map(_side, low.tolist(), high.tolist(), np.broadcast_to(more, low.shape).tolist()))


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
SMOOTH: dict[str, tuple[Function, Function, Function]] = {
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
    Hessian, or None if it is not carried. Neither is changed once the jet exists.
    """

    value: arb
    centre: arb
    grad: Sparse
    hess: Sparse | None

    @property
    def hull(self) -> arb:
        """Every value on the box and at the centre."""
        return self.value if self.centre is self.value else self.value.union(self.centre)

    def is_finite(self) -> bool:
        """Like the method of a ball."""
        return self.value.is_finite() and self.centre.is_finite()

    def __add__(self, other: Jet) -> Jet:
        value = self.value + other.value
        plain = self.centre is self.value and other.centre is other.value
        grad = _poured(dict(self.grad), other.grad)
        hess = None
        if self.hess is not None and other.hess is not None:
            hess = _poured(dict(self.hess), other.hess)
        return Jet(value, value if plain else self.centre + other.centre, grad, hess)

    def __neg__(self) -> Jet:
        value, grad = -self.value, {i: -x for i, x in self.grad.items()}
        hess = None if self.hess is None else {k: -x for k, x in self.hess.items()}
        return Jet(value, value if self.centre is self.value else -self.centre, grad, hess)

    def shifted(self, by: arb) -> Jet:
        """The sum with a constant."""
        value = self.value + by
        centre = value if self.centre is self.value else self.centre + by
        return Jet(value, centre, self.grad, self.hess)

    def scaled(self, by: arb) -> Jet:
        """The product with a constant."""
        value = times(self.value, by)
        centre = value if self.centre is self.value else times(self.centre, by)
        hess = None if self.hess is None else _scaled(self.hess, by)
        return Jet(value, centre, _scaled(self.grad, by), hess)

    def __mul__(self, other: Jet) -> Jet:
        a, b, ac, bc = self.value, other.value, self.centre, other.centre
        value = centre = times(a, b)
        grad = _poured(_scaled(self.grad, b), _scaled(other.grad, ac))
        if ac is not a or bc is not b:
            centre = ac * bc
            grad = self._narrowest(grad, other)
        if self.hess is None or other.hess is None:
            return Jet(value, centre, grad, None)
        hess = _poured(_scaled(self.hess, b), _scaled(other.hess, a))
        for i, x in self.grad.items():
            row = _scaled(other.grad, x)
            if i in row:
                row[i] += row[i]
            _poured(hess, {(i, j) if i <= j else (j, i): y for j, y in row.items()})
        return Jet(value, centre, grad, hess)

    def _narrowest(self, first: Sparse, other: Jet) -> Sparse:
        # (a - a_c) b + a_c (b - b_c), its mirror image and their mean are all exact; which one is
        # narrowest depends on the box. A product takes one form for all of its seeds.
        a, b, ac, bc = self.value, other.value, self.centre, other.centre
        second = _poured(_scaled(self.grad, bc), _scaled(other.grad, a))
        mean_a, mean_b = (a + ac) * _HALF, (b + bc) * _HALF
        mean = _poured(_scaled(self.grad, mean_b), _scaled(other.grad, mean_a))
        forms = (first, second, mean)
        return min(forms, key=lambda form: sum(float(x.rad()) for x in form.values()))

    def squared(self) -> Jet:
        """The product with itself."""
        x, c = self.value, self.centre
        value = square(x)
        return self._chain(value, value if c is x else square(c), x + c, arb(2))

    def through(self, name: str) -> Jet:
        """A smooth function of this number."""
        f, slope, curvature = SMOOTH[name]
        x, c = self.value, self.centre
        value = f(x)
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
        outer: Sparse = {}
        entries = list(self.grad.items())
        for n, (i, x) in enumerate(entries):
            outer[i, i] = square(x)
            for j, y in _scaled(dict(entries[n + 1 :]), x).items():
                outer[(i, j) if i <= j else (j, i)] = y
        hess = _poured(_scaled(self.hess, first), _scaled(outer, second))
        return Jet(value, centre, grad, hess)


def _scaled(a: Sparse, factor: arb) -> Sparse:
    # One ball is an exact multiple of the other's ends: no wider than the true set of products,
    # while a product of two balls is wide by the product of their radii.
    if factor.rel_accuracy_bits() >= _NARROW:
        return {} if factor.is_zero() else {key: x * factor for key, x in a.items()}
    low, high = factor.lower(), factor.upper()
    return {key: (x * low).union(x * high) for key, x in a.items()}


def _poured(into: Sparse, more: Sparse) -> Sparse:
    """`into`, changed: the sum of both."""
    for key, x in more.items():
        known = into.get(key)
        into[key] = x if known is None else known + x
    return into


Number = arb | Jet


def constants(values: Sequence[Any]) -> list[arb]:
    """Numbers or balls that do not depend on any seed."""
    return [x if isinstance(x, arb) else arb(x) for x in values]


def seeds(box: Sequence[arb], first: int = 0, order: int = 2) -> list[Jet]:
    """Variables numbered from `first` on; order 1: gradient, 2: gradient and Hessian."""
    return [Jet(x, x, {first + i: _ONE}, {} if order > 1 else None) for i, x in enumerate(box)]


def slope_seeds(box: Sequence[arb], scale: Sequence[float], first: int = 0) -> list[Jet]:
    """Variables scale[i] * t, t numbered from `first` on: slopes in t from the centre t = 0."""
    return [Jet(x, ZERO, {first + i: arb(scale[i])}, None) for i, x in enumerate(box)]
