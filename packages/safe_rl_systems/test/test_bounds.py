"""Interval derivatives and the constants derived from them, against samples and by hand."""

from dataclasses import replace

import numpy as np
import pytest
from safe_rl_core.certificate import SIGMA_MAX
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Program, parse
from safe_rl_systems.build import description, robot_program
from safe_rl_systems.robot import quadrotor_robust, unicycle_robust
from safe_rl_systems.verification import interval as iv
from safe_rl_systems.verification.assumptions import Assumptions, stated
from safe_rl_systems.verification.bounds import derive_bounds, unit_norm
from safe_rl_systems.verification.interval import Interval, point
from safe_rl_systems.verification.jets import (
    constant,
    gradients,
    hessian_sizes,
    propagate,
    seeded,
)
from safe_rl_systems.verification.remainder import error_remainder, second_order
from safe_rl_systems.verification.search import best_splits, subdivide, supremum


def program_of(text, weights=None):
    return Program(parse("safe_rl_program 1\n" + text), weights or {})


SMOOTH = """function f(x:3)
v0 = input x 0
v1 = input x 1
v2 = input x 2
v3 = mul v0 v1
v4 = sin v3
v5 = cos v2
v6 = div v4 v5
v7 = mul v2 v2
v8 = add v7 v0
v9 = sqrt v8
v10 = exp v1
v11 = atan2 v9 v10
v12 = tanh v6
v13 = log v9
v14 = sub v13 v12
v15 = asin v12
v16 = atan v14
v17 = neg v15
d18 = dense layer tanh v16 v17 v2
v19 = element d18 0
v20 = element d18 1
v21 = mul v19 v11
v22 = max v21 v20
v23 = abs v17
v24 = lt v0 v1
v25 = where v24 v22 v23
v26 = add v0 v1
return v25 v21 v26 v6
"""


@pytest.fixture(scope="module")
def smooth():
    rng = np.random.default_rng(0)
    layer = {"layer.weight": rng.normal(size=(2, 3)), "layer.bias": rng.normal(size=2)}
    return program_of(SMOOTH, layer)


def full_hessian(jets, variables, cells):
    low, high = np.zeros((2, len(jets), variables, variables, cells))
    for r, jet in enumerate(jets):
        for i, (a, b) in enumerate(jet.pairs):
            low[r, a, b] = low[r, b, a] = jet.hessian.low[i]
            high[r, a, b] = high[r, b, a] = jet.hessian.high[i]
    return np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)


def test_jets_at_points_are_the_derivatives(smooth):
    rng = np.random.default_rng(1)
    x = rng.uniform(0.2, 0.8, (60, 3))
    jets = propagate(smooth, "f", [seeded(point(x))], 2)
    slopes = gradients(jets, 3, 60)
    low, high = full_hessian(jets, 3, 60)
    assert np.max(high - low) < 1e-10
    for a in range(3):
        along = np.broadcast_to(np.eye(3)[a], x.shape)
        exact = smooth.jvp("f", (x,), (along,))
        assert np.all(
            (slopes.low[:, :, a] - 1e-12 <= exact) & (exact <= slopes.high[:, :, a] + 1e-12)
        )
        for b in range(3):
            step = 1e-5 * np.eye(3)[b]
            ahead, behind = (smooth.jvp("f", (x + h,), (along,)) for h in (step, -step))
            assert np.max(np.abs((ahead - behind) / 2e-5 - low[:, :, a, b])) < 1e-6


def test_jets_over_boxes_contain_those_at_points(smooth):
    rng = np.random.default_rng(2)
    center = rng.uniform(0.3, 0.7, (40, 3))
    center[:, 1] = center[:, 0] + np.where(rng.uniform(size=40) < 0.5, -0.1, 0.1)
    box = iv.ball(center, 0.01)
    wide = propagate(smooth, "f", [seeded(box)], 1)
    slopes = gradients(wide, 3, 40)
    bent = propagate(smooth, "f", [seeded(box)], 2)[1:]
    low, high = full_hessian(bent, 3, 40)
    sizes = hessian_sizes(bent, 3, 40)
    for _ in range(30):
        x = rng.uniform(box.low, box.high)
        jets = propagate(smooth, "f", [seeded(point(x))], 2)
        inside = gradients(jets, 3, 40)
        assert np.all((slopes.low <= inside.high) & (inside.low <= slopes.high))
        small_low, small_high = full_hessian(jets[1:], 3, 40)
        assert np.all((low <= small_high) & (small_low <= high))
        assert np.all(np.maximum(-small_high, small_low) <= sizes)


def test_only_structural_derivatives_are_kept(smooth):
    jets = propagate(smooth, "f", [seeded(Interval([[0.3, 0.4, 0.5]]))], 2)
    assert jets[2].variables == (0, 1) and jets[2].pairs == ()
    assert jets[2].gradient.low.tolist() == [[1.0], [1.0]]
    assert constant(Interval([[1.0]]))[0].variables == ()


def test_an_open_choice_has_no_derivative():
    program = program_of(
        "function f(x:2)\nv0 = input x 0\nv1 = input x 1\nv2 = lt v0 v1\nv3 = mul v0 v0\n"
        "v4 = where v2 v3 v1\nreturn v4\n"
        "function g(x:1)\nv0 = input x 0\nv1 = abs v0\nreturn v1\n"
        "function h(x:1)\nv0 = input x 0\nv1 = floor v0\nv2 = mul v0 v1\nreturn v2\n"
    )
    cells = Interval([[0.0, 2.0], [0.0, 2.0]], [[1.0, 3.0], [2.5, 3.0]])
    with pytest.raises(CertificateError, match="choice is open in 1 of 2 cells.*cell 1.*split"):
        propagate(program, "f", [seeded(cells)], 2)
    jets = propagate(program, "f", [seeded(cells[:1])], 2)
    assert hessian_sizes(jets, 2, 1)[0, 0, 0, 0] == pytest.approx(2.0)

    kink = Interval([[-1.0], [1.0]], [[1.0], [2.0]])
    slope = gradients(propagate(program, "g", [seeded(kink)], 1), 1, 2)
    assert slope.low[:, 0, 0].tolist() == [-1.0, 1.0]
    assert slope.high[:, 0, 0].tolist() == [1.0, 1.0]
    with pytest.raises(CertificateError, match="may change sides"):
        propagate(program, "g", [seeded(kink)], 2)

    with pytest.raises(CertificateError, match="may jump"):
        propagate(program, "h", [seeded(kink)], 1)
    steady = propagate(program, "h", [seeded(Interval([[1.25]], [[1.75]]))], 1)
    assert steady[0].gradient.contains(1.0) and steady[0].gradient.width < 1e-14
    with pytest.raises(CertificateError, match="order 1 or 2"):
        propagate(program, "h", [seeded(kink)], 3)


def test_a_supremum_is_tight_and_never_below():
    def rows(boxes):
        x, y = boxes[:, 0], boxes[:, 1]
        return np.stack([(x + y).high, (x * y).high, -1.0 - iv.sqr(x).low], -1)

    box = Interval([-2.0, -2.0], [2.0, 1.0])
    top = supremum(rows, box)
    assert np.all(top >= [3.0, 4.0, 0.0]) and np.all(top <= [3.001, 4.001, 0.0])
    circle = supremum(rows, box, unit_norm((0, 1)))
    assert np.sqrt(2.0) <= circle[0] <= 1.05 * np.sqrt(2.0)
    assert 0.5 <= circle[1] <= 0.55
    with pytest.raises(CertificateError, match="no box of the domain"):
        supremum(rows, Interval([2.0, 2.0], [3.0, 3.0]), unit_norm((0, 1)))


def test_subdivision_covers_and_follows_the_nonlinearity():
    box = Interval([0.0, -1.0, 5.0], [0.1, 1.0, 5.0])
    parts = subdivide(box, np.array([3, 2, 1]))
    assert parts.shape == (6, 3)
    assert np.all(parts.low.min(axis=0) == box.low) and np.all(parts.high.max(axis=0) == box.high)
    assert np.all(np.unique(parts.low[1:, 0])[1:] == np.unique(parts.high[:, 0])[:-1])
    splits = best_splits(lambda b: (iv.sqr(b[:, 1]) * b[:, 1] - b[:, 1]).mag, box, 8)
    assert splits.tolist()[0] == 1 and splits.tolist()[2] == 1 and splits[1] > 1


# One error, one input, one schedule variable; every constant can be worked out by hand.
CART = """function error_map(s:1, e:1, v:1, w:1)
v0 = input s 0
v1 = input e 0
v2 = input v 0
v3 = input w 0
v4 = const 0.5
v5 = const 0.1
v6 = const 0.25
v7 = mul v1 v1
v8 = mul v0 v7
v9 = mul v4 v8
v10 = mul v5 v2
v11 = mul v1 v2
v12 = mul v6 v11
v13 = add v1 v9
v14 = add v13 v10
v15 = add v14 v12
v16 = add v15 v3
return v16
function shifted(e:1, d:1)
v0 = input e 0
v1 = input d 0
v2 = const 0.5
v3 = mul v0 v1
v4 = mul v2 v3
v5 = add v0 v1
v6 = add v5 v4
return v6
function safe_at(z:1, e:1)
v0 = input z 0
v1 = input e 0
v2 = add v0 v1
v3 = mul v2 v2
v4 = const 9.0
v5 = sub v4 v3
v6 = sub v3 v4
return v5 v6
function safe_set(x:1)
v0 = input x 0
v1 = mul v0 v0
v2 = const 9.0
v3 = sub v2 v1
v4 = sub v1 v2
return v3 v4
function dynamics(x:1, u:1)
v0 = input x 0
v1 = input u 0
v2 = mul v0 v1
return v2
function difference(x:1, z:1)
v0 = input x 0
v1 = input z 0
v2 = sub v0 v1
return v2
function retract(z:1, e:1)
v0 = input z 0
v1 = input e 0
v2 = add v0 v1
return v2
function base_point(x:1)
v0 = input x 0
return v0
"""
GIVEN = Assumptions(
    period=0.1,
    delay_steps=2,
    jitter=0.01,
    disturbance=[0.002],
    estimate_error=[0.01],
    error_domain=[0.5],
    input_domain=[0.4],
    base_extent=[0.2],
    input_low=[-1.0],
    input_high=[1.0],
    state_low=[1.0],
    state_high=[2.0],
    schedule_low=[-1.0],
    schedule_high=[3.0],
    schedule_cells=[2],
)


def test_every_constant_of_a_system_worked_out_by_hand():
    told = []
    bounds = derive_bounds(
        program_of(CART), GIVEN, progress=lambda what, done, parts: told.append((what, done))
    )
    w = 0.002
    expected = np.zeros((2, 1, 3, 3))
    expected[:, 0, 0, 0], expected[:, 0, 0, 1], expected[:, 0, 1, 0] = (1.0, 3.0), 0.25, 0.25
    assert bounds.remainder == pytest.approx(expected, rel=2e-6)
    assert np.all(bounds.remainder[expected == 0.0] == 0.0)
    assert np.all(bounds.remainder >= expected)
    assert bounds.shift_remainder[0] == pytest.approx(np.array([[0.0, 0.5], [0.5, 0.0]]), rel=2e-6)
    assert bounds.safe_remainder[:, 0, 0] == pytest.approx([2.0, 2.0], rel=2e-6)
    once = 0.01 + w + 0.5 * 3.0 * 0.01**2
    twice = once + w + 0.5 * 3.0 * once**2
    assert bounds.prediction_error == pytest.approx([twice], rel=1e-5)
    assert twice <= bounds.prediction_error[0]
    assert 1.25 * twice <= bounds.tracking_error[0] <= 1.25 * 1.021 * twice
    # |x| grows to at least 2 / 0.9 within a period; (x²)'' = 4 x² u², and 2 |x| w on top
    reach = 2.0 / 0.9
    least = 0.1**2 / 8.0 * 4.0 * reach**2
    slope = 2.0 * (reach + w) * w
    assert bounds.sampling_margin[0] == pytest.approx(slope, rel=0.06)
    assert least + slope <= bounds.sampling_margin[1] <= 1.1 * (least + slope)
    assert told[-1] == ("sampling_margin", 1) and ("remainder", 1) in told


def test_bounds_refuse_what_they_cannot_derive():
    program = program_of(CART)
    with pytest.raises(CertificateError, match="estimate_error needs 1 numbers, got"):
        replace(GIVEN, estimate_error=[0.1, 0.1])
    with pytest.raises(CertificateError, match="disturbance must be finite and >= 0"):
        replace(GIVEN, disturbance=[-0.1])
    with pytest.raises(CertificateError, match="jitter < period"):
        replace(GIVEN, jitter=0.2)
    with pytest.raises(CertificateError, match="leaves error_domain"):
        derive_bounds(program, replace(GIVEN, error_domain=[0.01]))
    with pytest.raises(CertificateError, match="cannot be enclosed"):
        derive_bounds(program, replace(GIVEN, input_high=[50.0], jitter=0.0))
    broken = program_of(CART.replace("v12 = mul v6 v11", "v12 = div v6 v11"))
    with pytest.raises(CertificateError, match="remainder is not finite"):
        derive_bounds(broken, replace(GIVEN, jitter=0.0, delay_steps=0))


def given_of(robot):
    factor = robot.robust.base_set.factor
    return stated(
        description(robot)["assumptions"],
        np.sqrt(np.diag(np.linalg.inv(factor @ factor.T))),
        period=robot.system.period,
        delay_steps=robot.delay_steps,
        input_low=np.array([c.low for c in robot.system.inputs]),
        input_high=np.array([c.high for c in robot.system.inputs]),
    )


@pytest.fixture(scope="module", params=["unicycle", "quadrotor"])
def derived(request):
    """(program, assumptions, bounds): one schedule cell, the hardest, few sub-boxes."""
    quadrotor = request.param == "quadrotor"
    robot = quadrotor_robust() if quadrotor else unicycle_robust()
    program, given = robot_program(robot), given_of(robot)
    cells = given.schedule_cells
    low = given.schedule_high - (given.schedule_high - given.schedule_low) / cells
    given = replace(given, schedule_low=low, schedule_cells=np.ones(len(cells)))
    restrict = unit_norm(range(6, 10)) if quadrotor else None
    return program, given, derive_bounds(program, given, restrict=restrict, sub_boxes=256)


def corners(rng, low, high, count):
    """Mostly corners of a box, some points inside; 0 for what has no bound."""
    low, high = (np.where(np.isfinite(a), a, 0.0) for a in (np.asarray(low), np.asarray(high)))
    share = rng.uniform(size=(count, len(low)))
    at_corner = rng.uniform(size=share.shape) < 0.9
    share = np.where(at_corner, rng.integers(0, 2, share.shape), share)
    return np.clip(low + share * (high - low), low, high)


def states(rng, given, count):
    x = corners(rng, given.state_low, given.state_high, count)
    if x.shape[1] == 10:
        x[:, 6:10] = rng.normal(size=(count, 4))
        x[:, 6:10] /= np.linalg.norm(x[:, 6:10], axis=1, keepdims=True)
    return x


def parts(given, xi):
    k, m = len(given.disturbance), len(given.input_low)
    return xi[:, :k], xi[:, k : k + m], xi[:, k + m :]


def test_second_derivatives_of_the_error_map_are_bounded_tightly(derived):
    program, given, bounds = derived
    rng = np.random.default_rng(3)
    size = np.concatenate((given.error_domain, given.input_domain, SIGMA_MAX * given.disturbance))
    k, m, d, count = len(given.disturbance), len(given.input_low), len(size), 500
    best = np.zeros_like(bounds.remainder[0])
    for _ in range(6):
        s = corners(rng, given.schedule_low, given.schedule_high, count)
        e, v, w = (point(p) for p in parts(given, corners(rng, -size, size, count)))
        inputs = [constant(point(s)), seeded(e), seeded(v, k), seeded(w, k + m)]
        sizes = hessian_sizes(propagate(program, "error_map", inputs, 2), d, count)
        best = np.maximum(best, sizes.max(axis=0))
    assert np.all(best <= bounds.remainder[0])
    shares = 0.5 * bounds.remainder[0] * size[:, None] * size
    totals = shares.sum(axis=(1, 2), keepdims=True)
    dominating = shares > 0.1 * totals
    assert np.all(best[dominating] > 0.5 * bounds.remainder[0][dominating])
    rows = totals.reshape(-1) > 0.0
    assert np.all(second_order(best, size)[rows] > 0.7 * totals.reshape(-1)[rows])


def test_the_linear_error_map_is_off_by_at_most_the_remainder(derived):
    program, given, bounds = derived
    rng = np.random.default_rng(4)
    size = np.concatenate((given.error_domain, given.input_domain, given.disturbance))
    s = corners(rng, given.schedule_low, given.schedule_high, 4000)
    xi = corners(rng, -size, size, 4000)
    zero, still = parts(given, 0.0 * xi), np.zeros_like(s)
    linear = program.jvp("error_map", (s, *zero), (still, *parts(given, xi)))
    off = np.abs(program("error_map", s, *parts(given, xi)) - linear)
    bound = 0.5 * np.einsum("rab,na,nb->nr", bounds.remainder[0], np.abs(xi), np.abs(xi))
    assert np.all(off <= bound + 1e-12)
    rows = bound.max(axis=0) > 0.0
    assert np.all((off / np.maximum(bound, 1e-12)).max(axis=0)[rows] > 0.55)


def test_linear_channels_have_no_remainder(derived):
    program, given, bounds = derived
    flat = bounds.remainder[0] == 0.0
    k = len(given.disturbance)
    if k == 3:
        assert np.all(flat[1:])  # heading and speed add up
    else:
        assert np.all(flat[:, :6]) and np.all(flat[6:, :, k])  # position, velocity, thrust


def test_predictions_err_by_at_most_the_prediction_error(derived):
    program, given, bounds = derived
    rng = np.random.default_rng(5)
    count = 8000
    predicted = states(rng, given, count)
    u = corners(rng, given.schedule_low, given.schedule_high, count)
    if len(given.error_domain) == 3:
        predicted[:, 2:4], u = u[:, :2], u[:, 2:]
    true = program(
        "retract", predicted, corners(rng, -given.estimate_error, given.estimate_error, count)
    )
    for _ in range(given.delay_steps):
        w = corners(rng, -given.disturbance, given.disturbance, count)
        predicted, true = (
            program("step", predicted, u),
            program("retract", program("step", true, u), w),
        )
    share = np.abs(program("difference", true, predicted)) / bounds.prediction_error
    assert np.all(share <= 1.0)
    assert np.all(share.max(axis=0) > 0.9)


def test_the_tracked_error_is_off_by_at_most_the_tracking_error(derived):
    program, given, bounds = derived
    rng = np.random.default_rng(6)
    count, eta = 20_000, bounds.prediction_error
    z = states(rng, given, count)
    reach = np.maximum(given.error_domain, given.base_extent)
    true = program("retract", z, corners(rng, -reach, reach, count))
    believed = program("retract", true, 0.997 * corners(rng, -eta, eta, count))
    usable = np.all(np.abs(program("difference", true, believed)) <= eta, axis=1)
    off = program("difference", believed, z) - program("difference", true, z)
    share = np.abs(off[usable]) / bounds.tracking_error
    assert np.all(share <= 1.0)
    assert np.all(share.max(axis=0) > 0.8)


def test_between_samples_the_safe_set_sags_by_at_most_the_margin(derived):
    program, given, bounds = derived
    rng = np.random.default_rng(7)
    x, parts_of_period = states(rng, given, 2000), 32
    u, dt = corners(rng, given.input_low, given.input_high, 2000), given.period / parts_of_period
    h = [program("safe_set", x)]
    for _ in range(parts_of_period):  # classical Runge-Kutta
        k1 = program("dynamics", x, u)
        k2 = program("dynamics", x + 0.5 * dt * k1, u)
        k3 = program("dynamics", x + 0.5 * dt * k2, u)
        x = x + dt / 6.0 * (k1 + 2.0 * (k2 + k3) + program("dynamics", x + dt * k3, u))
        h.append(program("safe_set", x))
    at = np.linspace(0.0, 1.0, parts_of_period + 1)[:, None, None]
    sag = ((1.0 - at) * h[0] + at * h[-1] - np.stack(h)).max(axis=(0, 1))
    assert np.all(sag <= bounds.sampling_margin)
    bent = sag > 1e-9
    assert np.any(bent) and np.all(sag[bent] > 0.4 * bounds.sampling_margin[bent])


def test_a_smaller_domain_never_widens_a_bound(derived):
    program, given, bounds = derived
    smaller = replace(
        given,
        error_domain=0.6 * given.error_domain,
        input_domain=0.7 * given.input_domain,
        schedule_low=given.schedule_low + 0.3 * (given.schedule_high - given.schedule_low),
    )
    splits = np.minimum(bounds.remainder_splits, 2)
    tables = [
        error_remainder(program, which, splits, lambda *_: None)
        for which in (given, replace(smaller, disturbance=0.5 * given.disturbance))
    ]
    assert np.all(tables[1] <= tables[0] * (1.0 + 1e-12))
    assert np.any(tables[1] < 0.99 * tables[0])
    once_more = splits * np.where(np.arange(len(splits)) == int(np.argmax(splits)), 2, 1)
    finer = error_remainder(program, given, once_more, lambda *_: None)
    assert np.all(finer <= tables[0] * (1.0 + 1e-12))
