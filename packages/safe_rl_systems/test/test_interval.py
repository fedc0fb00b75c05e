"""Intervals against exact rational arithmetic, and interval programs against numpy."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safe_rl_core.errors import CertificateError, ProgramError
from safe_rl_core.program import Program, parse
from safe_rl_systems.verification import elementary as el
from safe_rl_systems.verification import interval as iv
from safe_rl_systems.verification.interval import Interval, evaluate, point

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def box(a, b):
    return Interval(min(a, b), max(a, b))


def holds(x, exact):
    """Whether the rational number `exact` lies in the scalar interval x."""
    low, high = float(x.low), float(x.high)
    above = low == -math.inf or Fraction(low) <= exact
    return above and (high == math.inf or exact <= Fraction(high))


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
@settings(max_examples=300, deadline=None)
def test_arithmetic_encloses_exact_rational_results(a, b, c, d):
    x, y = box(a, b), box(c, d)
    sums, differences, products = x + y, x - y, x * y
    for p in map(Fraction, (x.low.item(), x.high.item())):
        for q in map(Fraction, (y.low.item(), y.high.item())):
            assert holds(sums, p + q)
            assert holds(differences, p - q)
            assert holds(products, p * q)
            if q != 0:
                assert holds(x / y, p / q)
        assert holds(iv.sqr(x), p * p)
        assert holds(-x, -p)
        assert holds(abs(x), abs(p))


@given(NUMBERS, NUMBERS)
@settings(max_examples=300, deadline=None)
def test_a_point_operation_is_at_most_four_units_wide(a, b):
    for result in (point(a) + point(b), point(a) - point(b), point(a) * point(b)):
        if math.isfinite(result.low) and abs(result.low) < 1e300:
            gap = math.nextafter(abs(result.high), math.inf) - abs(result.high)
            assert result.high - result.low <= 4.0 * gap + 2.0**-1072


def test_rounding_is_outward_where_the_float_result_is_wrong():
    third = point(1.0) / point(3.0)
    assert holds(third, Fraction(1, 3)) and not holds(point(1.0 / 3.0), Fraction(1, 3))
    tiny = point(1e-200) * point(-1e-200)
    assert tiny.low < 0.0 <= tiny.high
    large = point(1e200) * point(1e200)
    assert 1e308 < large.low < math.inf and large.high == math.inf


def test_a_lower_end_of_zero_stays_zero_where_nothing_is_negative():
    x = Interval(-1.0, 1.0)
    length = iv.sqrt(2.0 * (iv.sqr(x) + iv.sqr(x)))
    assert length.low == 0.0 and 2.0 <= length.high <= 2.0 + 1e-14


@given(st.floats(0.0, allow_infinity=False))
def test_square_root_encloses(a):
    y = iv.sqrt(point(a))
    assert Fraction(y.low.item()) ** 2 <= Fraction(a) <= Fraction(y.high.item()) ** 2


def exp_between(x, terms=60):
    """Rationals below and above exp x for a rational |x| <= 20, by its Taylor series."""
    x, total, term = x / 64, Fraction(0), Fraction(1)
    for n in range(terms):
        total, term = total + term, term * x / (n + 1)
    return (total - abs(term) * 2) ** 64, (total + abs(term) * 2) ** 64


def sin_cos_between(x, terms=60):
    """((low, high) of sin, (low, high) of cos) for a rational |x| <= 10."""
    sums, term = [Fraction(0), Fraction(0)], Fraction(1)
    for n in range(terms):
        sums[n % 2] += term * (1, 1, -1, -1)[n % 4]
        term = term * x / (n + 1)
    rest = abs(term) * 2
    return (sums[1] - rest, sums[1] + rest), (sums[0] - rest, sums[0] + rest)


def short(x):
    """Few bits, so that exact powers stay small."""
    return Fraction(round(x * 2**20), 2**20)


@given(st.floats(-9.0, 9.0))
@settings(max_examples=60, deadline=None)
def test_sine_and_cosine_enclose(a):
    x = short(a)
    sine, cosine = sin_cos_between(x)
    s, c = iv.sin(point(float(x))), iv.cos(point(float(x)))
    assert Fraction(s.low.item()) <= sine[0] and sine[1] <= Fraction(s.high.item())
    assert Fraction(c.low.item()) <= cosine[0] and cosine[1] <= Fraction(c.high.item())
    assert s.high - s.low < 1e-14 and c.high - c.low < 1e-14


@given(st.floats(-19.0, 19.0))
@settings(max_examples=60, deadline=None)
def test_exp_log_and_tanh_enclose(a):
    x = short(a)
    low, high = exp_between(x)
    y = iv.exp(point(float(x)))
    assert Fraction(y.low.item()) <= low and high <= Fraction(y.high.item())
    assert y.high - y.low < 2e-14 * y.high
    back = iv.log(y)
    assert holds(back, x)
    square = exp_between(2 * x) if abs(x) < 9 else None
    if square is not None:
        t = iv.tanh(point(float(x)))
        assert Fraction(t.low.item()) <= (square[0] - 1) / (square[0] + 1)
        assert (square[1] - 1) / (square[1] + 1) <= Fraction(t.high.item())


@given(st.floats(-1.0, 1.0), st.floats(-50.0, 50.0))
@settings(max_examples=40, deadline=None)
def test_inverse_functions_enclose(sine, slope):
    y = iv.asin(point(sine))
    a = iv.atan(point(slope))
    small = Fraction(1, 10**25)  # the two ends of the reference
    for k, side in ((0, -1), (1, 1)):
        end = Fraction((y.low, y.high)[k].item())
        beyond = abs(end) >= el._PI[0] / 2
        assert beyond or side * (sin_cos_between(end, 30)[0][0] - Fraction(sine)) >= -small
        s, c = sin_cos_between(Fraction((a.low, a.high)[k].item()), 30)
        assert side * (s[0] - Fraction(slope) * c[0]) >= -small  # tan(end) on the outer side
    assert a.high - a.low < 2e-14


@given(st.floats(0.01, 50.0), st.floats(0.01, 50.0))
@settings(deadline=None)
def test_an_angle_is_the_arc_tangent_in_every_quadrant(y, x):
    angle = iv.atan(point(y) / point(x))
    for turned, same in (
        (iv.atan2(point(y), point(x)), angle),
        (iv.atan2(point(y), point(-x)), el.PI - angle),
        (iv.atan2(point(-y), point(-x)), angle - el.PI),
        (iv.atan2(point(-y), point(x)), -angle),
    ):
        assert turned.high - turned.low < 2e-14
        assert turned.low <= same.high and same.low <= turned.high
        assert abs(turned.mid - same.mid) < 1e-14


def test_constants_come_from_integers():
    assert el.PI.low < el.PI.high and el.PI.contains(math.pi)
    for bounds, float_value in ((el._PI, math.pi), (el._LN2, math.log(2.0))):
        assert 0 < bounds[1] - bounds[0] < Fraction(1, 10**50)
        assert abs(float(bounds[0]) - float_value) < 1e-15
    sine = sin_cos_between(el._PI[0])[0]
    assert abs(sine[0]) < Fraction(1, 10**40)
    low, high = exp_between(el._LN2[0])
    assert abs(low - 2) < Fraction(1, 10**40) and abs(high - 2) < Fraction(1, 10**40)


UNARY = {
    "neg": (-5, 5), "abs": (-5, 5), "sign": (-5, 5), "floor": (-5, 5), "sqrt": (0, 9),
    "exp": (-30, 30), "log": (1e-3, 50), "sin": (-20, 20), "cos": (-20, 20), "asin": (-1, 1),
    "atan": (-20, 20), "tanh": (-30, 30), "not": (0, 1),
}  # fmt: skip
BINARY = ("add", "sub", "mul", "div", "min", "max", "atan2", "lt", "le", "eq", "and", "or")


def program_of(lines, inputs="x:2", outputs="v9"):
    text = [f"function f({inputs})", *lines, f"return {outputs}"]
    return Program(parse("\n".join(["safe_rl_program 1", *text])), {})


def nested(rng, low, high, count=400):
    """(outer, inner): random boxes of two components and boxes inside them."""
    ends = np.sort(rng.uniform(low, high, (count, 2, 4)), axis=-1)
    narrow = rng.uniform(size=(count, 1, 1)) ** 4  # many small boxes too
    ends = ends[..., :1] + narrow * (ends - ends[..., :1])
    return Interval(ends[..., 0], ends[..., 3]), Interval(ends[..., 1], ends[..., 2])


def check_evaluation(program, rng, outer, inner):
    result, smaller = evaluate(program, "f", outer), evaluate(program, "f", inner)
    share = rng.uniform(size=(50, *outer.shape))
    points = np.clip(outer.low + share * (outer.high - outer.low), outer.low, outer.high)
    values = program("f", points)
    assert np.all(result.contains(values))
    assert np.all(evaluate(program, "f", point(points)).contains(values))
    slack = 1e-14 * (1.0 + np.where(np.isfinite(smaller.mag), smaller.mag, 0.0))
    assert np.all(smaller.low >= result.low - slack)
    assert np.all(smaller.high <= result.high + slack)
    return result, values


@pytest.mark.parametrize("op", UNARY)
def test_every_unary_operation_encloses_numpy(op):
    rng = np.random.default_rng(1)
    program = program_of(["v1 = input x 0", f"v9 = {op} v1"])
    outer, inner = nested(rng, *UNARY[op])
    result, values = check_evaluation(program, rng, outer, inner)
    reach = values.max(axis=0) - values.min(axis=0)
    assert np.median(result.high - result.low - reach) < 0.2 * np.median(reach) + 1e-13


@pytest.mark.parametrize("op", BINARY)
def test_every_binary_operation_encloses_numpy(op):
    rng = np.random.default_rng(2)
    program = program_of(["v1 = input x 0", "v2 = input x 1", f"v9 = {op} v1 v2"])
    logic = op in ("and", "or")
    outer, inner = nested(rng, *((0, 1) if logic else (-4, 4)))
    check_evaluation(program, rng, outer, inner)


def test_a_choice_is_its_side_or_the_hull():
    program = program_of(
        ["v1 = input x 0", "v2 = input x 1", "v3 = lt v1 v2", "v4 = sin v1", "v9 = where v3 v4 v2"]
    )
    rng = np.random.default_rng(3)
    check_evaluation(program, rng, *nested(rng, -4, 4))
    cells = Interval([[0.0, 2.0], [3.0, 2.0], [0.0, 2.0]], [[1.0, 3.0], [4.0, 2.5], [2.5, 3.0]])
    y = evaluate(program, "f", cells)[:, 0]
    assert y.high[0] < 0.85 and y.low[1] == 2.0 and y.high[1] == 2.5
    assert y.low[2] <= 0.0 and y.high[2] == 3.0


def test_truth_values_stay_exact():
    program = program_of(
        [
            "v1 = input x 0", "v2 = input x 1", "v3 = lt v1 v2", "v4 = le v2 v1", "v5 = and v3 v4",
            "v6 = not v5", "v7 = not v6", "v8 = or v7 v5", "v9 = where v8 v1 v2",
        ]
    )  # fmt: skip
    y = evaluate(program, "f", Interval([[1.0, 4.0]], [[2.0, 5.0]]))
    assert y.low == 4.0 and y.high == 5.0


def test_a_product_with_itself_is_a_square():
    program = program_of(["v1 = input x 0", "v9 = mul v1 v1"])
    y = evaluate(program, "f", Interval([[-2.0, 0.0]], [[1.0, 0.0]]))
    assert y.low == 0.0 and 4.0 <= y.high <= 4.0 + 1e-14


@pytest.mark.parametrize("activation", ["none", "tanh", "relu"])
def test_a_layer_encloses_numpy(activation):
    rng = np.random.default_rng(4)
    text = f"v1 = input x 0\nv2 = input x 1\nd3 = dense l {activation} v1 v2\nv9 = element d3 5"
    functions = parse(f"safe_rl_program 1\nfunction f(x:2)\n{text}\nreturn v9")
    weights = {"l.weight": rng.normal(size=(40, 2)), "l.bias": rng.normal(size=40)}
    check_evaluation(Program(functions, weights), rng, *nested(rng, -3, 3))


def test_matrix_products_enclose_exact_ones():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(3, 7)), rng.normal(size=(7, 2))
    product = iv.point(a) @ iv.ball(b, 0.1)
    wide = iv.affine(a, iv.ball(b[:, 0], 0.1), np.zeros(3))
    for _ in range(20):
        inside = b + rng.choice([-0.1, 0.1], b.shape)
        for i in range(3):
            rows = [Fraction(v) for v in a[i]]
            for j in range(2):
                column = [Fraction(v) for v in inside[:, j]]
                exact = sum(p * q for p, q in zip(rows, column, strict=True))
                assert holds(product[i, j], exact)
                assert j or holds(wide[i], exact)


def test_a_layer_encloses_sums_that_floats_lose():
    weight = np.array([[1e16, 1.0, -1e16, 3.0, 7.0], [-1e16, 3.0, 7.0, 1e16, 1.0]])
    y = iv.affine(weight, point(np.ones(5)), np.full(2, 0.5))
    assert holds(y[0], Fraction(23, 2)) and holds(y[1], Fraction(23, 2))
    assert np.all(y.high - y.low < 200.0)


def test_outside_of_its_domain_an_operation_claims_nothing():
    across = Interval([-1e-9, 0.5], [1.0, 1.0])
    for result in (iv.sqrt(across), iv.log(across), 1.0 / across):
        assert result.low[0] == -math.inf and result.high[0] == math.inf
        assert np.isfinite(result.low[1]) and np.isfinite(result.high[1])
    assert iv.asin(Interval(0.0, 1.0 + 1e-9)).high == math.inf
    turn = iv.atan2(Interval(-0.1, 0.1), Interval(-1.0, 1.0))
    assert turn.low <= -math.pi and turn.high >= math.pi
    line = iv.whole((2,))
    for result in (line * line, line + line, iv.exp(line), iv.sin(line), 0.0 * line):
        assert not np.any(np.isnan(result.low) | np.isnan(result.high))


def test_periodic_functions_reach_their_extremes():
    assert iv.sin(Interval(1.5, 1.6)).high == 1.0 and iv.sin(Interval(-1.6, -1.5)).low == -1.0
    assert iv.cos(Interval(3.1, 3.2)).low == -1.0 and iv.cos(Interval(6.2, 6.3)).high == 1.0
    assert iv.sin(Interval(0.1, 1.5)).high < 1.0 and iv.cos(Interval(0.1, 3.0)).low > -1.0
    far = iv.sin(point(1e300))
    assert far.low == -1.0 and far.high == 1.0


def test_bad_input_is_named():
    with pytest.raises(CertificateError, match="low <= high"):
        Interval(1.0, 0.0)
    with pytest.raises(CertificateError, match="1 of 2 entries"):
        Interval([0.0, math.nan], [1.0, 1.0])
    with pytest.raises(CertificateError, match="low <= high"):
        Interval(0.0, 1.0).intersect(Interval(2.0, 3.0))
    program = program_of(["v1 = input x 0", "v9 = neg v1"])
    with pytest.raises(ProgramError, match=r"must have shape \(..., 2\)"):
        evaluate(program, "f", Interval(np.zeros((3, 1))))
    with pytest.raises(ProgramError, match="no function 'g'"):
        evaluate(program, "g", Interval(np.zeros((3, 2))))
    with pytest.raises(ProgramError, match="got 2"):
        evaluate(program, "f", Interval(np.zeros((3, 2))), Interval(np.zeros((3, 2))))


def test_sizes_of_an_interval():
    x = Interval([-3.0, 1.0], [1.0, 2.0])
    assert x.mag.tolist() == [3.0, 2.0] and x.mig.tolist() == [0.0, 1.0]
    assert np.all(x.mid - x.rad <= x.low) and np.all(x.mid + x.rad >= x.high)
    assert x.hull(point(5.0)).high.tolist() == [5.0, 5.0]
    assert x.intersect(Interval(0.0, 1.0)).low.tolist() == [0.0, 1.0]
    assert (np.array([2.0, 2.0]) * x).high.tolist()[1] >= 4.0
    assert holds(x.sum(), Fraction(-2)) and holds(x.sum(), Fraction(3))
