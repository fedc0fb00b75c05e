"""Ball evaluation of a program against the numpy interpreter, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from flint import arb
from safe_rl_core.ball import Jet, constants, seeds, slope_seeds, square, times
from safe_rl_core.program import Program, parse
from safe_rl_core.tape import Tape, evaluate

#: Every smooth operation, on numbers that stay inside its domain for |a|, |b| < 1.
SMOOTH = """safe_rl_program 1
function f(x:2)
v0 = input x 0
v1 = input x 1
v2 = const 3.0
v3 = add v0 v2
v4 = mul v0 v1
v5 = mul v4 v4
v6 = div v5 v3
v7 = sqrt v3
v8 = exp v1
v9 = log v3
v10 = sin v4
v11 = cos v8
v12 = mul v2 v0
v13 = const 0.25
v14 = mul v13 v12
v15 = asin v14
v16 = atan v8
v17 = tanh v12
v18 = atan2 v1 v3
v19 = atan2 v3 v1
v20 = sub v10 v7
v21 = neg v20
v22 = mul v21 v16
v23 = mul v17 v11
v24 = add v22 v15
v25 = add v23 v19
v26 = atan2 v9 v0
return v6 v24 v25 v18 v26
"""
#: Every operation that chooses; decided for x > 0.5, undecided on any box around 0.
CHOICES = """safe_rl_program 1
function f(x:1)
v0 = input x 0
v1 = const 0.0
v2 = lt v0 v1
v3 = mul v0 v0
v4 = neg v3
v5 = where v2 v4 v3
v6 = abs v0
v7 = sign v0
v8 = min v0 v1
v9 = max v0 v1
v10 = floor v0
v11 = le v1 v0
v12 = eq v0 v1
v13 = not v2
v14 = and v11 v13
v15 = or v2 v12
return v5 v6 v7 v8 v9 v10 v11 v12 v13 v14 v15
"""
LAYERS = """safe_rl_program 1
function f(x:2)
v0 = input x 0
v1 = input x 1
d2 = dense a tanh v0 v1
v3 = element d2 0
v4 = element d2 2
d5 = dense b relu v3 v4
v6 = element d5 1
d7 = dense b none v0 v6
v8 = element d7 0
return v3 v6 v8
"""


def program(text: str, weights: dict | None = None) -> Program:
    """A program from its text."""
    return Program(parse(text), weights or {})


def box(centre: np.ndarray, radius: float) -> list[arb]:
    """Intervals about a point."""
    return [arb(x, radius) for x in centre.tolist()]


def network() -> Program:
    """A program with layers of three and two rows."""
    rng = np.random.default_rng(1)
    weights = {"a.weight": rng.normal(size=(3, 2)), "a.bias": rng.normal(size=3)}
    weights |= {"b.weight": rng.normal(size=(2, 2)), "b.bias": np.array([0.1, 2.0])}
    return program(LAYERS, weights)


@pytest.mark.parametrize("make", [lambda: program(SMOOTH), network])
@pytest.mark.parametrize("radius", [0.0, 0.02, 0.2])
def test_balls_contain_values_and_derivatives(make, radius):
    """Values, gradients and Hessians of random points lie in the balls of a box around them."""
    p, rng = make(), np.random.default_rng(0)
    for _ in range(20):
        centre = rng.uniform(-0.4, 0.4, 2)
        jets = evaluate(p, "f", seeds(box(centre, radius)))
        x = centre + rng.uniform(-1.0, 1.0, 2) * radius
        step = 1e-4
        for r, jet in enumerate(jets):
            assert abs(jet.value - arb(p("f", x)[r])).lower() <= 1e-12
            for i in range(2):
                slope = p.jvp("f", (x,), (np.eye(2)[i],))[r]
                assert abs(jet.grad.get(i, arb(0)) - arb(slope)).lower() <= 1e-9
                for j in range(i, 2):
                    ahead, back = (
                        p.jvp("f", (x + s * np.eye(2)[j],), (np.eye(2)[i],))[r]
                        for s in (step, -step)
                    )
                    bend = (ahead - back) / (2.0 * step)
                    assert abs(jet.hess.get((i, j), arb(0)) - arb(bend)).lower() <= 1e-5


def test_a_point_gives_numbers_not_intervals():
    """Without a radius the balls are as narrow as the precision allows."""
    for jet in evaluate(program(SMOOTH), "f", seeds(box(np.array([0.3, -0.2]), 0.0))):
        for x in (jet.value, *jet.grad.values(), *jet.hess.values()):
            assert x.rad() < 1e-12


@pytest.mark.parametrize("make", [lambda: program(SMOOTH), network])
def test_slopes_reach_every_point_of_the_box(make):
    """f(x) - f(0) is a sum of slopes times x, for points all over a box far from the centre."""
    p, rng = make(), np.random.default_rng(2)
    reach = np.array([0.5, 0.3])
    for _ in range(20):
        centre = rng.uniform(-0.3, 0.3, 2)
        jets = evaluate(p, "f", slope_seeds(box(centre, 0.1), reach.tolist()))
        for _ in range(10):
            x = centre + rng.uniform(-0.1, 0.1, 2)
            moved = p("f", x) - p("f", np.zeros(2))
            for jet, difference in zip(jets, moved, strict=True):
                total = sum((s * arb(x[i] / reach[i]) for i, s in jet.grad.items()), arb(0))
                assert abs(total - arb(difference)).lower() <= 1e-12
                assert abs(jet.centre - arb(p("f", np.zeros(2))[jets.index(jet)])).lower() <= 1e-12


def test_a_slope_of_a_square_is_half_its_derivative():
    """On [-1, 1] the slope of x² from 0 is x, its derivative 2 x."""
    p = program("safe_rl_program 1\nfunction f(x:1)\nv0 = input x 0\nv1 = mul v0 v0\nreturn v1\n")
    (slope,), (jet,) = (
        evaluate(p, "f", x) for x in (slope_seeds([arb(0, 1)], [1.0]), seeds([arb(0, 1)]))
    )
    assert float(slope.grad[0].upper()) == pytest.approx(1.0, rel=1e-6)
    assert float(jet.grad[0].upper()) == pytest.approx(2.0, rel=1e-6)


def test_choices_that_are_the_same_on_the_box():
    """They give what the interpreter gives, with derivatives of the chosen branch."""
    p, x = program(CHOICES), np.array([0.7])
    jets = evaluate(p, "f", seeds([arb(0.7, 0.1)]))
    for jet, value, slope in zip(jets, p("f", x), p.jvp("f", (x,), (np.ones(1),)), strict=True):
        assert jet.value.contains(arb(value)) or abs(jet.value - arb(value)) < 1e-12
        assert abs(jet.grad.get(0, arb(0)) - arb(slope)).lower() <= 1e-12


def test_an_open_choice_is_undecided_and_stays_so():
    """None, also in everything that is computed from it; never one of the two branches."""
    jets = evaluate(program(CHOICES), "f", seeds([arb(0.0, 0.1)]))
    assert jets == [None] * len(jets)
    text = CHOICES.replace("return", "v16 = mul v1 v6\nv17 = where v2 v1 v1\nreturn v16 v17")
    assert evaluate(program(text), "f", seeds([arb(0.0, 0.1)]))[:2] == [None, None]


@pytest.mark.parametrize("line", ["sqrt v0", "log v0", "div v1 v0", "asin v2", "atan2 v0 v3"])
def test_outside_of_the_domain_is_undecided(line):
    """A root of a negative number, a division by zero, the cut of atan2: no value."""
    text = (
        "safe_rl_program 1\nfunction f(x:1)\nv0 = input x 0\nv1 = const 1.0\nv2 = add v0 v1\n"
        f"v3 = neg v1\nv4 = {line}\nreturn v4\n"
    )
    assert evaluate(program(text), "f", seeds([arb(0.0, 0.1)])) == [None]


def test_products_and_squares_are_no_wider_than_the_numbers():
    """The set of products of two intervals, and of squares of one, to six digits."""
    for a, b in ((2, 1), (0.5, 1), (-3, 1), (-0.2, 0.5)):
        for c, d in ((5, 2), (0.1, 0.3), (-4, 1)):
            ends = [(a + s * b) * (c + t * d) for s in (-1, 1) for t in (-1, 1)]
            product = times(arb(a, b), arb(c, d))
            assert float(product.lower()) == pytest.approx(min(ends), rel=1e-6, abs=1e-8)
            assert float(product.upper()) == pytest.approx(max(ends), rel=1e-6, abs=1e-8)
        squares = [(a - b) ** 2, (a + b) ** 2]
        least = 0.0 if abs(a) <= b else min(squares)
        assert float(square(arb(a, b)).lower()) == pytest.approx(least, rel=1e-6, abs=1e-8)
        assert float(square(arb(a, b)).upper()) == pytest.approx(max(squares), rel=1e-6)


def test_a_tape_finds_the_same_whatever_it_was_asked_before():
    """Inputs that change one at a time, several at once, or their kind: as if asked afresh."""
    p, rng = program(SMOOTH), np.random.default_rng(3)
    tape, sides = Tape(p, "f"), [arb(0.1 * i - 0.4, 0.02 * (i % 3)) for i in range(9)]
    kinds = [constants, seeds, lambda x: seeds(x, 0, 1), lambda x: slope_seeds(x, [1.0, 0.5])]
    for _ in range(200):
        box = [sides[i] for i in rng.integers(0, 9, 2)]
        inputs = kinds[rng.integers(0, 4)](box)
        for jet, fresh in zip(tape(inputs), evaluate(p, "f", inputs), strict=True):
            assert (jet is None) == (fresh is None)
            if jet is not None:
                assert repr((jet.value, jet.centre, jet.grad, jet.hess)) == repr(
                    (fresh.value, fresh.centre, fresh.grad, fresh.hess)
                )


def test_a_tape_redoes_only_what_has_changed():
    """The second of two inputs does not touch what depends on the first alone."""
    text = """safe_rl_program 1
function f(x:2)
v0 = input x 0
v1 = input x 1
v2 = sin v0
v3 = const 2.0
v4 = neg v3
v5 = mul v4 v1
v6 = add v2 v5
return v2 v6
"""
    tape, (x, y, z) = Tape(program(text), "f"), map(arb, (0.5, 1.0, 3.0))
    assert len(tape.users(0b01)) == len(tape.users(0b10)) == 2
    first, second = tape([x, y]), tape([x, z])
    assert first[0].value is second[0].value
    assert abs(first[1].value - (arb(0.5).sin() - 2)) < 1e-12
    assert abs(second[1].value - (arb(0.5).sin() - 6)) < 1e-12
    with pytest.raises(ValueError, match="takes"):
        tape([x])


def test_a_tape_forgets_a_call_that_failed():
    """What an operation that raises has left half done is done again."""

    class Broken(Jet):
        def scaled(self, by: arb) -> Jet:
            raise ArithmeticError("broken")

    text = "v0 = input x 0\nv1 = exp v0\nv2 = const 2.0\nv3 = mul v0 v2\nreturn v1 v3\n"
    tape, x = Tape(program(f"safe_rl_program 1\nfunction f(x:1)\n{text}"), "f"), constants([0.1])
    expected = [str(jet.value) for jet in tape(x)]
    with pytest.raises(ArithmeticError):
        tape([Broken(arb(9), arb(9), {0: arb(1)}, None)])
    assert [str(jet.value) for jet in tape(x)] == expected


def test_constants_have_no_derivatives():
    """An input that is not seeded leaves no trace in the gradient."""
    jets = evaluate(program(SMOOTH), "f", [*seeds([arb(0.1)]), *constants([arb(0.2, 0.1)])])
    assert all(set(jet.grad) <= {0} and set(jet.hess) <= {(0, 0)} for jet in jets)
