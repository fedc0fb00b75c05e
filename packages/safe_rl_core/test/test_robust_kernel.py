"""VALID in C: equal to its slow twin, never more optimistic, and true of the worst world."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robust_cart import (
    DISTURBANCE,
    GAIN,
    HORIZON,
    cart,
    prediction_error,
    text,
    with_bounds,
)
from robust_cart import factor as cart_factor
from robust_twin import judge, open_tube, roll
from safe_rl_core.bundle import Bundle
from safe_rl_core.certificate import JSON_FILE, SIGMA_MAX
from safe_rl_core.errors import CertificateError, KernelError
from safe_rl_core.kernel import Compiled, build
from safe_rl_core.kernel.kernel import compare
from safe_rl_core.kernel.robust import SIGMA_ACCURACY, RobustKernel
from safe_rl_core.loop import operating_state
from safe_rl_core.program import Program, parse
from shipped import MODELS, load

_kernel = RobustKernel.of(cart())
SHIPPED = [
    n for n in ("quadrotor_robust", "unicycle_robust") if (MODELS / n / JSON_FILE).is_file()
]
SIGNS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def start(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform([-2.0, -1.0], [2.0, 1.0]), rng.uniform(-1.0, 1.0, 1)


def valid_start(kernel: RobustKernel, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    for _ in range(200):
        x, u = start(rng)
        if kernel.valid(x, u).holds:
            return x, u
    raise ValueError("no valid plan in 200 draws")


def assert_equal_to_twin(bundle: Bundle, kernel: RobustKernel, x: np.ndarray, u: np.ndarray):
    found, slow = kernel.valid(x, u), judge(bundle, x, roll(bundle, x, u))
    assert found.slack == pytest.approx(slow.slack, abs=1e-9)
    assert slow.rooms[found.critical] == pytest.approx(slow.slack, abs=1e-9)
    known = len(slow.errors)
    assert np.allclose(found.states[:known], slow.states[:known], rtol=0.0, atol=1e-9)
    assert np.allclose(found.errors[:known], slow.errors, rtol=0.0, atol=1e-9)
    assert np.allclose(found.deviations[1:known], slow.deviations[1:], rtol=0.0, atol=1e-9)
    assert np.isinf(found.errors[known:]).all()
    return found


def test_equals_the_slow_twin() -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        seen.add(assert_equal_to_twin(cart(), _kernel, *start(rng)).holds)
    assert seen == {True, False}


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_slow_twin_with_full_tables(seed: int) -> None:
    """Every entry of every table, and a gain, a shape and bounds without zeros."""
    rng = np.random.default_rng(seed)
    shape = np.array([[3.0, 0.0], [rng.normal(), 2.0]])
    bundle = with_bounds(
        remainder=rng.uniform(0.0, 0.1, (12, 2, 5, 5)),
        shift_remainder=rng.uniform(0.0, 0.3, (2, 4, 4)),
        safe_remainder=rng.uniform(0.0, 0.5, (3, 2, 2)),
        tracking_gain=GAIN + rng.normal(size=(1, 2)) * 0.1,
        tracking_error=rng.uniform(1e-3, 4e-3, 2),
        base_factor=shape,
        base_input=rng.normal(size=1) * 1e-10,
        base_extent=rng.uniform(0.5, 1.0, 2),
    )
    kernel = RobustKernel.of(bundle)
    for _ in range(6):
        assert_equal_to_twin(bundle, kernel, *start(rng))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_plans_equal_the_slow_twin(name: str) -> None:
    bundle, rng = load(name), np.random.default_rng(0)
    kernel = RobustKernel.of(bundle)
    while True:
        x = operating_state(bundle, rng)
        u = bundle.compiled("backup_policy", x)
        if kernel.valid(x, u).holds:
            break
    assert assert_equal_to_twin(bundle, kernel, x, u).holds


#: Condition -> the certificate in which it fails first; a plan that passes with the cart's own.
BROKEN: dict[str, tuple[dict[str, object], list[float], float]] = {
    "domain p@": ({"error_domain": np.array([0.01, 0.4])}, [0.0, 0.0], 0.0),
    "domain v@": ({"error_domain": np.array([0.4, 0.01])}, [0.0, 0.0], 0.0),
    "domain accel@": ({"input_domain": np.array([0.04])}, [0.0, 0.0], 0.0),
    "domain s_0@": ({"schedule_low": np.array([-0.1, -1.0])}, [0.9, -0.3], 0.0),
    "domain s_1@": ({"schedule_high": np.array([1.2, 0.5])}, [-0.9, -0.3], 0.6),
    "domain x_0@": ({"state_high": np.array([0.5, 1.2])}, [0.9, 0.1], 0.0),
    "domain x_1@": ({"state_low": np.array([-2.5, -0.1])}, [0.9, -0.3], 0.0),
    "right@": ({"sampling_margin": np.array([0.15, 0.0, 0.0])}, [1.9, 0.0], 0.0),
    "left@": ({"sampling_margin": np.array([0.0, 0.15, 0.0])}, [-1.9, 0.0], 0.0),
    "speed@": ({"sampling_margin": np.array([0.0, 0.0, 0.1])}, [0.0, 0.95], 0.0),
    "input accel_low@": ({"input_low": np.array([-0.3])}, [0.9, 0.4], 0.0),
    "input accel_high@": ({"input_high": np.array([0.3])}, [0.9, -0.4], 0.0),
    "base@": ({"shift_remainder": np.full((2, 4, 4), 600.0)}, [0.0, 0.0], 0.0),
    "base_extent p@": ({"base_extent": np.array([0.02, 0.45])}, [0.0, 0.0], 0.0),
    "base right@": ({"sampling_margin": np.array([0.6, 0.0, 0.0])}, [1.2, 0.0], 0.0),
    "base speed@": ({"sampling_margin": np.array([0.0, 0.0, 0.85])}, [0.0, 0.0], 0.0),
    "base equilibrium@": ({"base_input": np.array([1e-7])}, [0.0, 0.0], 0.0),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_condition_can_refuse(name: str) -> None:
    entries, x, u = BROKEN[name]
    state, action = np.array(x), np.array([u])
    assert _kernel.valid(state, action).holds
    bundle = with_bounds(**entries)
    found = assert_equal_to_twin(bundle, RobustKernel.of(bundle), state, action)
    assert not found.holds
    assert found.critical.startswith(name)


def test_a_plan_along_the_edge_of_the_domain_is_in_the_last_cell() -> None:
    """Speed and input start exactly on the upper bounds; every cell has its own table."""
    table = np.arange(1.0, 13.0)[:, None, None, None] * np.full((12, 2, 5, 5), 1e-3)
    bundle = with_bounds(remainder=table, schedule_high=np.array([0.5, 0.4]))
    found = assert_equal_to_twin(
        bundle, RobustKernel.of(bundle), np.array([0.0, 0.5]), np.array([0.4])
    )
    assert found.critical == "domain s_0@1"
    assert assert_equal_to_twin(
        bundle, RobustKernel.of(bundle), np.array([1.2, 0.5]), np.array([-0.7])
    ).holds


def test_a_channel_without_bounds_must_still_be_a_number() -> None:
    free = np.array([math.inf, math.inf])
    kernel = _unchecked(with_bounds(state_low=-free, state_high=free))
    assert kernel.valid(np.zeros(2), np.zeros(1)).holds
    for bad in (math.nan, math.inf, -math.inf):
        found = kernel.valid(np.array([bad, 0.0]), np.zeros(1))
        assert (found.holds, found.critical) == (False, "domain x_0@0")


def test_the_schedule_of_the_base_point_is_checked() -> None:
    bundle = with_bounds(base_schedule=np.array([0.0, 1e-7]))
    found = RobustKernel.of(bundle).valid(np.zeros(2), np.zeros(1))
    assert (found.holds, found.critical) == (False, f"base equilibrium@{HORIZON}")


@pytest.mark.parametrize("seed", range(6))
def test_order_reduction_is_never_more_optimistic(seed: int) -> None:
    """With room for 33 of 82 generators only; rounding aside, every bound is larger or equal."""
    rng, bundle = np.random.default_rng(seed), cart()
    small = RobustKernel(
        bundle.kernel(),
        bundle.robust,
        safe_names=bundle.safe_set_names,
        input_names=["accel"],
        input_scale=bundle.input_scale,
        generators=8,
    )
    assert small._workspace.capacity < 2 * (HORIZON + 1)
    for _ in range(5):
        x, u = valid_start(_kernel, rng)
        exact, found = judge(bundle, x, roll(bundle, x, u)), small.valid(x, u)
        known = np.isfinite(found.errors).all(1)
        errors = np.array(exact.errors)[known[: len(exact.errors)]]
        assert np.all(found.errors[known] >= errors - 1e-12)
        assert found.slack <= exact.slack + 1e-9
        assert found.errors[-1] == pytest.approx(exact.errors[-1], rel=0.2)


def test_a_number_that_is_missing_is_never_valid() -> None:
    bundle, x, u = cart(), np.zeros(2), np.zeros(1)
    for bad in (math.nan, math.inf, -math.inf):
        for i in range(2):
            state = x.copy()
            state[i] = bad
            assert not _kernel.valid(state, u).holds
            assert not _kernel.screen(state, u)[0] >= 0.0
        assert not _kernel.valid(x, np.array([bad])).holds
        inputs = np.zeros((HORIZON + 1, 1))
        inputs[7] = bad
        assert not _kernel.replay(x, inputs).holds
    names = [f for f in vars(bundle.robust) if isinstance(getattr(bundle.robust, f), np.ndarray)]
    used = set(names) - {"estimate_error", "remainder_splits", "schedule_cells"}  # of no tube
    for name in (*sorted(used), "base_input", "base_extent", "base_schedule"):
        of = bundle.robust.base if name.startswith("base_") else bundle.robust
        entry = np.array(getattr(of, name.removeprefix("base_")))
        entry[(-1,) * entry.ndim] = math.nan
        if name in ("shift_remainder", "remainder"):  # not every entry is read
            entry[:] = math.nan
        kernel = _unchecked(with_bounds(**{name: entry}))
        assert not kernel.valid(np.array([0.1, 0.7]), u).holds, name


def _unchecked(bundle: Bundle) -> RobustKernel:
    return RobustKernel(
        bundle.kernel(),
        bundle.robust,
        safe_names=bundle.safe_set_names,
        input_names=["accel"],
        input_scale=bundle.input_scale,
    )


@given(
    seed=st.integers(0, 10_000),
    grown=st.lists(st.floats(1.0, 3.0), min_size=6, max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_valid_is_monotone_in_disturbance_and_errors(seed: int, grown: list[float]) -> None:
    """Whatever is valid under larger bounds is valid, with more room, under smaller ones."""
    c, factors = cart().robust, np.array(grown).reshape(3, 2)
    larger = with_bounds(
        disturbance=c.disturbance * factors[0],
        prediction_error=c.prediction_error * factors[1],
        tracking_error=c.tracking_error * factors[2],
    )
    kernel, rng = _unchecked(larger), np.random.default_rng(seed)
    x, u = start(rng)
    worse, better = kernel.valid(x, u).slack, _kernel.valid(x, u).slack
    if worse >= 0.0:
        assert better >= worse - 1e-12


@given(seed=st.integers(0, 10_000), corner=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_valid_plan_holds_in_the_worst_world(seed: int, corner: int) -> None:
    """Corner disturbances and estimate errors: tube, box and safe set, then the base set."""
    rng, bundle, c = np.random.default_rng(seed), cart(), cart().robust
    x, u = valid_start(_kernel, rng)
    plan = _kernel.valid(x, u)
    states, inputs, errors = plan.states.copy(), plan.inputs.copy(), plan.errors.copy()
    point = bundle.program("base_point", states[-1])
    true = bundle.program("retract", states[0], SIGNS[corner] * prediction_error())
    for j in range(HORIZON + 60):
        along = j < HORIZON
        if along:
            assert np.all(
                np.abs(bundle.program("difference", true, states[j])) <= errors[j] + 1e-12
            )
        else:
            away = bundle.program("difference", true, point)
            assert np.linalg.norm(c.base.factor.T @ away) <= 1.0 + 1e-12
        assert np.all(bundle.program("safe_set", true) >= c.sampling_margin)
        eta = SIGNS[rng.integers(4) if j % 3 else corner] * prediction_error()
        seen = bundle.program("retract", true, -eta)
        action = inputs[0] if along else c.base.input
        if along and j:
            action = inputs[j] + c.tracking_gain @ bundle.program("difference", seen, states[j])
        if not along:
            action = action + c.base.gain @ bundle.program("difference", seen, point)
        assert np.all((action >= c.input_low) & (action <= c.input_high))
        w = SIGNS[rng.integers(4) if j % 5 else corner] * DISTURBANCE
        true = bundle.program("retract", bundle.program("step", true, action), w)


def test_the_tube_is_no_larger_than_it_must_be() -> None:
    """Without curvature the worst corner reaches the bound: nothing is hidden in it."""
    bundle = with_bounds(remainder=np.zeros((12, 2, 5, 5)))
    kernel, x, u = RobustKernel.of(bundle), np.zeros(2), np.zeros(1)
    plan = kernel.valid(x, u)
    for j in (1, 2, 3):  # at rest in the origin the drag's slope is zero: a linear loop
        a = np.array([[1.0, 0.1], [0.0, 1.0]])
        b = np.array([[0.005], [0.1]])
        g = np.diag(prediction_error())
        for i in range(j):
            held = b @ GAIN * (i > 0)
            g = np.hstack(
                ((a + held) @ g, np.diag(DISTURBANCE + np.abs(held) @ prediction_error()))
            )
        assert plan.errors[j] == pytest.approx(np.abs(g).sum(1), abs=1e-8)


def test_sigma_is_the_largest_factor_that_holds() -> None:
    rng, found = np.random.default_rng(4), 0
    bundle = with_bounds(disturbance=8.0 * DISTURBANCE)
    kernel = _unchecked(bundle)
    for _ in range(10):
        x, u = valid_start(kernel, rng)
        inputs = kernel.valid(x, u).inputs.copy()
        sigma = kernel.sigma()
        assert sigma >= 1.0
        assert judge(bundle, x, inputs, sigma).slack >= -1e-9
        if sigma < SIGMA_MAX:
            found += 1
            above = sigma * (1.0 + 1.1 * SIGMA_ACCURACY)
            assert judge(bundle, x, inputs, above).slack < 0.0
        assert kernel.valid(x, u).slack == kernel.replay(x, inputs).slack
        kept = kernel._arrays["kept"].copy()
        assert kernel.sigma() == sigma
        assert np.array_equal(kept, kernel._arrays["kept"])  # the projection's margins stay
    assert found > 3


def test_sigma_of_plans_that_do_not_hold() -> None:
    harsh = _unchecked(with_bounds(disturbance=DISTURBANCE * 12.0))
    assert not harsh.valid(np.zeros(2), np.zeros(1)).holds
    assert 0.05 < harsh.sigma() < 1.0
    assert not _kernel.valid(np.array([1.99, 0.9]), np.ones(1)).holds
    assert _kernel.sigma() == 0.0


def test_sigma_ends_where_nothing_is_assumed() -> None:
    none = np.zeros(2)
    kernel = _unchecked(with_bounds(disturbance=none, prediction_error=none, tracking_error=none))
    assert kernel.valid(np.zeros(2), np.zeros(1)).holds
    assert kernel.sigma() == SIGMA_MAX


def test_the_screen_never_refuses_what_is_valid() -> None:
    rng, refused = np.random.default_rng(8), 0
    for _ in range(400):
        x, u = start(rng)
        possible, _ = _kernel.screen(x, u)
        found = _kernel.valid(x, u)
        refused += not possible >= 0.0
        if np.isfinite(found.errors).all():
            assert found.slack <= possible
        if found.holds:
            assert possible >= 0.0
            assert _kernel.screen(x, u)[1] >= -1e-12
    assert refused > 20


@given(seed=st.integers(0, 10_000), count=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_the_open_tube_equals_its_twin_and_holds(seed: int, count: int) -> None:
    rng, bundle, c = np.random.default_rng(seed), cart(), cart().robust
    x, inputs = rng.uniform(-0.5, 0.5, 2), rng.uniform(-0.5, 0.5, (count, 1))
    found = _kernel.open_tube(x, inputs, c.estimate_error)
    assert np.allclose(found, open_tube(bundle, x, inputs, c.estimate_error), atol=1e-12)
    z, true = x, bundle.program("retract", x, SIGNS[seed % 4] * c.estimate_error)
    for u in inputs:
        z = bundle.program("step", z, u)
        true = bundle.program("step", true, u) + SIGNS[rng.integers(4)] * c.disturbance
    assert np.all(np.abs(bundle.program("difference", true, z)) <= found)


def test_the_open_tube_knows_where_it_knows_nothing() -> None:
    start = cart().robust.estimate_error
    fast = np.array([0.0, 1.3])
    assert np.isinf(_kernel.open_tube(fast, np.zeros((1, 1)), start)).all()
    assert np.isinf(_kernel.open_tube(np.zeros(2), np.zeros((1, 1)), start * 1e3)).all()
    assert np.isinf(_kernel.open_tube(np.full(2, math.nan), np.zeros((1, 1)), start)).all()
    assert np.array_equal(_kernel.open_tube(fast, np.zeros((0, 1)), start), start)
    x, u = np.zeros(2), np.zeros(1)
    before = _kernel.valid(x, u).slack
    _kernel.open_tube(fast, np.zeros((3, 1)), start)
    assert _kernel.slack_at(1.0) == before


def test_tightened_rows_are_the_derivatives_less_what_the_tube_needs() -> None:
    x, u, step = np.array([0.9, 0.75]), np.array([0.4]), 1e-6
    plan = _kernel.valid(x, u)
    need, states = _kernel._arrays["kept"].copy(), plan.states.copy()
    rows = _kernel.tightened_rows(x, u)
    assert np.allclose(rows.states, states, rtol=0.0, atol=1e-12)
    a, b = rows.a[0, : _kernel.num_rows].copy(), rows.b[: _kernel.num_rows].copy()
    box = rows.a[0, _kernel.num_rows :][:2].copy(), rows.b[_kernel.num_rows :][:2].copy()
    assert np.array_equal(box, [[1.0, -1.0], [-2.0, -2.0]])
    ahead = _kernel.tightened_rows(x, u + step).h.copy()
    slope = (ahead - _kernel.tightened_rows(x, u - step).h) / (2.0 * step) * 0.5
    assert np.allclose(a[3:], np.sign(slope)[3:])
    assert np.all(b[:3] == -1.0)  # the first node is where it is, whatever the input
    safe = _kernel.tightened_rows(x, u).h[:-1].reshape(-1, 3)
    room = (safe - need[: safe.size].reshape(-1, 3)).ravel()[3:]
    slack = (a * u / 0.5 - b)[3:-1]
    assert np.allclose(slack * np.abs(slope)[3:-1], room, rtol=1e-4, atol=1e-6)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(CertificateError, match="has no certificate .* run safe-rl verify"):
        RobustKernel.of(load("unicycle_lane"))
    with pytest.raises(KernelError, match="the certificate speaks of sizes"):
        RobustKernel.of(replace(cart(), robust=replace(cart().robust, schedule_low=np.zeros(3))))
    for flat in (
        np.zeros((2, 2)),
        np.array([[1e-9, 1.0], [1.0, 1e9 + 1e-6]]),
        np.full((2, 2), np.nan),
    ):
        with pytest.raises(KernelError, match="cannot be inverted"):
            RobustKernel.of(with_bounds(base_factor=flat))
    functions = dict(cart().program.functions)
    del functions["schedule"], functions["shifted"]
    with pytest.raises(KernelError, match="lacks shifted, schedule; build the bundle again"):
        build.source(Program(functions, {}))


def test_a_tube_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = RobustKernel.of(cart())
    monkeypatch.setattr(kernel, "certificate", with_bounds(disturbance=DISTURBANCE * 1.01).robust)
    with pytest.raises(KernelError, match="compiled tube differs"):
        kernel.check_tube()


def test_a_wrong_derivative_of_the_error_map_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted: Callable[..., str] = build.emit_tangents

    def doubled(function, seeded):
        source = emitted(function, seeded)
        return source.replace("d_out[1] =", "d_out[1] = 2.0 *", function.name == "error_map")

    monkeypatch.setattr(build, "emit_tangents", doubled)
    with pytest.raises(KernelError, match="derivative of error_map"):
        Compiled(Program(parse(text(cart_factor()) + "# another hash\n"), {}))


LAYERED = """function error_map(s:2, e:2, v:1, w:2)
s0 = input s 0
e0 = input e 0
e1 = input e 1
a = input v 0
d4 = dense hidden tanh s0 e0 e1 a
h0 = element d4 0
h1 = element d4 1
h2 = element d4 2
d8 = dense last relu h0 h1 h2
v9 = element d8 0
v10 = element d8 1
return v9 v10
"""


def test_an_error_map_with_layers_carries_every_direction() -> None:
    """A learned part of the model: the self-test of `Compiled` is the check."""
    rng = np.random.default_rng(0)
    shapes = {"hidden": (3, 4), "last": (2, 3)}
    weights = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": rng.normal(size=shape[0]) for name, shape in shapes.items()}
    whole = text(cart_factor())
    begin, end = whole.index("function error_map"), whole.index("function shifted")
    program = Program(parse(whole[:begin] + LAYERED + whole[end:]), weights)
    compiled = Compiled(program)
    point = np.array([0.3, 0.0]), np.array([0.1, 0.2]), np.array([0.4]), np.zeros(2)
    compare("error_map", compiled("error_map", *point), program("error_map", *point))


@pytest.mark.parametrize("name", ["unicycle_lane", "quadrotor_powerloop"])
def test_a_nominal_program_gets_none_of_this(name: str) -> None:
    source = build.source(load(name).program)
    assert "safe_rl_valid" not in source
    assert "wide" not in source
