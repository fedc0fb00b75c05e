"""VALID as the audit computes it: against a twin written by hand, and against what can happen."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from audit_robot import DRAG, GAIN, Cart, D, N, plan_of, theorem, write, write_bundle
from safe_rl_core.audit import audit
from safe_rl_core.audit.exact import holds
from safe_rl_core.audit.plans import EPS, label, linearised, rolled_out, slacks
from safe_rl_core.audit.records import Theorem
from safe_rl_core.audit.report import CLOSE
from safe_rl_core.audit.slopes import jacobian
from safe_rl_core.program import Function, Instruction, Program, parse
from shipped import load

ONE = np.ones(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "cart_robust")


@pytest.fixture(scope="module")
def t(folder: Path) -> Theorem:
    return theorem(folder)


def with_entries(t: Theorem, **entries: object) -> Theorem:
    return replace(t, c=SimpleNamespace(**(vars(t.c) | entries)))


def plans(t: Theorem, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z_0 = rng.uniform([-0.95, -0.9], [0.95, 0.9], (count, 2))
    return z_0, plan_of(t, z_0, rng.uniform(-1.0, 1.0, (count, 1)))


def twin(t: Theorem, z: np.ndarray, ubar: np.ndarray) -> float:
    """Least slack of one plan of the cart, by hand: scalars, closed derivatives, no matrices."""
    c, (p, v), found = t.c, z, []
    generators = [[c.prediction_error[0], 0.0], [0.0, c.prediction_error[1]]]
    k0, k1 = GAIN[0]
    for j in range(N + 1):
        e0 = sum(abs(g[0]) for g in generators)
        e1 = sum(abs(g[1]) for g in generators)
        tube = (e0, e0, sum(abs(-2.0 * v * g[1]) for g in generators))
        rows = (1.0 - p, 1.0 + p, 1.0 - v * v)
        bend = (0.0, 0.0, e1 * e1)
        for h, m, b, gap in zip(rows, tube, bend, c.sampling_margin, strict=True):
            found.append(h - m - b - gap - EPS)
        if j == N:
            break
        u = float(ubar[j, 0])
        reach = 0.0
        if j:
            reach = sum(abs(k0 * g[0] + k1 * g[1]) for g in generators)
            reach += abs(k0) * c.tracking_error[0] + abs(k1) * c.tracking_error[1]
        found += [u - reach + 1.0, 1.0 - u - reach]
        f0, f1 = (k0, k1) if j else (0.0, 0.0)
        a = ((1.0 + D * D / 2 * f0, D + D * D / 2 * f1), (D * f0, 1.0 - 2 * D * DRAG * v + D * f1))
        noise = [abs(b * f0) * c.tracking_error[0] + abs(b * f1) * c.tracking_error[1]
                 for b in (D * D / 2, D)]  # fmt: skip
        w0 = c.disturbance[0] + noise[0] + EPS
        w1 = c.disturbance[1] + noise[1] + EPS + D * DRAG * e1 * e1
        generators = [[a[0][0] * g[0] + a[0][1] * g[1], a[1][0] * g[0] + a[1][1] * g[1]]
                      for g in generators] + [[w0, 0.0], [0.0, w1]]  # fmt: skip
        p, v = p + D * v + D * D / 2 * u, v + D * u - D * DRAG * v * v
    (l00, _), (l10, l11) = c.base_factor
    centre = min(max(p, -0.5), 0.5)
    off, sums = (l00 * (p - centre) + l10 * v, l11 * v), [0.0, 0.0]
    for g in generators:
        sums[0] += abs(l00 * g[0] + l10 * g[1])
        sums[1] += abs(l11 * g[1])
    found.append(1.0 - EPS - float(np.hypot(*off)) - float(np.hypot(*sums)))
    inside = c.sampling_margin + EPS
    # The support of {|L'e| <= 1} in direction p is |L^-1 (1, 0)|.
    reach = float(np.hypot(1.0 / l00, l10 / (l00 * l11)))
    found += [1.0 - centre - reach - inside[0], 1.0 + centre - reach - inside[1]]
    found.append(1.0 - c.base_extent[1] ** 2 - inside[2])
    return min(found)


def test_it_agrees_with_a_twin_written_by_hand(t: Theorem) -> None:
    z_0, ubar = plans(t, 60)
    found = slacks(t, z_0, ubar, np.ones(60))
    assert np.isinf(found[:, -1]).all()
    domain = found[:, -6] > -np.inf  # where |e*| is within the base set's extents
    assert domain.sum() > 20
    by_hand = np.array([twin(t, z, u) for z, u in zip(z_0, ubar, strict=True)])
    np.testing.assert_allclose(found[domain, :-1].min(1), by_hand[domain], atol=1e-12)
    assert (by_hand > 0.0).any()
    assert (by_hand < 0.0).any()


def test_the_tube_holds_every_motion_and_is_reached(t: Theorem) -> None:
    """Corners of estimate error and disturbance in closed loop: |e| <= E always, and nearly E."""
    rng, c, runs = np.random.default_rng(2), t.c, 4000
    z_0, ubar = np.array([[-0.2, 0.3]]), plan_of(t, np.array([[-0.2, 0.3]]), np.array([[0.5]]))
    z = rolled_out(t, z_0, ubar[:, :N])[0]
    hold = rng.integers(1, 12, runs)[:, None]

    def corner(size: np.ndarray, j: int) -> np.ndarray:
        signs = rng.choice([-1.0, 1.0], (runs, 2))
        corner.last = np.where(j % hold == 0, signs, getattr(corner, "last", signs))
        return corner.last * size

    e = rng.choice([-1.0, 1.0], (runs, 2)) * c.prediction_error
    widest = np.zeros((N + 1, 2))
    for j in range(N + 1):
        widest[j] = np.abs(e).max(0)
        if j == N:
            break
        x = z[j] + e
        v = (e + corner(c.tracking_error, j)) @ GAIN.T * (j > 0)
        e = t.program("step", x, ubar[0, j] + v) + corner(c.disturbance, j) - z[j + 1]
    boxes = _boxes(t, z_0, ubar)[0]
    assert (widest <= boxes).all()
    assert (widest[:4] > 0.9 * boxes[:4]).all()
    assert (widest > 0.5 * boxes).all()


def _boxes(t: Theorem, z_0: np.ndarray, ubar: np.ndarray) -> np.ndarray:
    from safe_rl_core.audit import plans as module

    z = rolled_out(t, z_0, ubar[:, :N])
    _, cell, a, b = linearised(t, z[:, :N], ubar[:, :N])
    grad = np.zeros((len(z), N + 1, 3, 2))
    return module._tube(t, cell, a, b, grad, np.ones(len(z)))[1]


def test_no_adversary_leaves_the_safe_set(t: Theorem) -> None:
    for seed in range(3):
        cart = Cart(t, seed=seed, outage=(20, 60))
        cart.fly(80)
        assert cart.worst >= t.c.sampling_margin.min()


@pytest.mark.parametrize(
    ("z_0", "entries", "text"),
    [
        ((0.9, 0.6), {}, "V2 right at node"),
        ((-0.9, -0.6), {}, "V2 left at node"),
        ((-0.9, 1.05), {}, "V2 speed at node"),
        (None, {"base_factor": np.diag([40.0, 40.0])}, "V4 terminal set"),
        (None, {"base_extent": np.array([1e-9, 1e-9])}, "V4 terminal set"),
        (None, {"base_factor": np.diag([1.0, 3.0])}, "V5 right of the base set"),
        (None, {"base_factor": np.diag([4.0, 0.9]), "base_extent": np.ones(2)}, "V5 speed"),
        (None, {"base_input": np.array([0.1])}, "V5 rest"),
        (None, {"base_schedule": np.array([1e-6])}, "V5 rest"),
        (None, {"error_domain": np.array([1e-4, 0.4])}, "the certified domain"),
        (None, {"error_domain": np.array([0.4, 1e-4])}, "the certified domain"),
        (None, {"input_domain": np.array([1e-4])}, "the certified domain"),
        (None, {"state_high": np.array([1.5, 0.1])}, "the certified domain"),
        (None, {"state_low": np.array([0.0, -2.0])}, "the certified domain"),
        (None, {"schedule_high": np.array([0.1])}, "the certified domain"),
        (None, {"disturbance": np.array([np.nan, 0.0])}, "V2"),
    ],
)
def test_each_inequality_can_refuse(
    t: Theorem, z_0: tuple[float, float] | None, entries: dict, text: str
) -> None:
    z = np.array([z_0 or (-0.1, 0.2)])
    ubar = plan_of(t, z, np.array([[0.3]]))
    assert holds(t, z[0], ubar[0], N + 1) == (z_0 is None)
    other = with_entries(t, **entries)
    with np.errstate(all="ignore"):
        found = slacks(other, z, ubar, ONE)[0]
    assert found.min() < 0.0
    assert text in label(other, int(found.argmin()))
    assert not holds(other, z[0], ubar[0], N + 1)


def test_tracking_needs_room_in_the_box(t: Theorem) -> None:
    z_0 = np.array([[-0.1, 0.2]])
    ubar = plan_of(t, z_0, np.array([[0.3]]))
    ubar[0, 9] = 0.999
    found = slacks(t, z_0, ubar, ONE)[0]
    assert label(t, int(found.argmin())) == "V3 accel at node 9"
    assert found.min() < 0.0
    assert not holds(t, z_0[0], ubar[0], N + 1)


def test_the_first_input_must_lie_in_the_box(t: Theorem) -> None:
    z_0 = np.array([[-0.1, 0.2]])
    for u, valid in ((1.0, True), (np.nextafter(1.0, 2.0), False)):
        found = slacks(t, z_0, plan_of(t, z_0, np.array([[u]])), ONE)[0]
        assert (found.min() >= 0.0) == valid
        assert label(t, int(found.argmin())) == "V3 accel at node 0"


@pytest.mark.parametrize(
    "name",
    ["disturbance", "prediction_error", "tracking_error", "tracking_gain", "remainder",
     "safe_remainder", "sampling_margin", "base_factor", "base_extent"],
)  # fmt: skip
def test_every_constant_counts(t: Theorem, name: str) -> None:
    z_0 = np.full((8, 2), 0.1)
    ubar = plan_of(t, z_0, np.full((8, 1), 0.2))
    before = slacks(t, z_0, ubar, np.ones(8))
    after = slacks(with_entries(t, **{name: 1.02 * getattr(t.c, name)}), z_0, ubar, np.ones(8))
    with np.errstate(invalid="ignore"):
        changed = np.abs(after - before)
    assert (changed[:, :-2] > 1e-7).any()


@pytest.mark.parametrize("sigma", [0.6, 1.7])
def test_sigma_scales_all_that_the_disturbance_is_part_of(t: Theorem, sigma: float) -> None:
    """The sampling margin only upwards, and not in the base set, which is certified for 1."""
    z_0, ubar = plans(t, 4)
    names = ("disturbance", "prediction_error", "tracking_error")
    worse = {n: sigma * getattr(t.c, n) for n in names}
    along = worse | {"sampling_margin": max(sigma, 1.0) * t.c.sampling_margin}
    scaled, ones = slacks(t, z_0, ubar, np.full(4, sigma)), np.ones(4)
    nodes = (t.horizon + 1) * len(t.rows)
    expected = slacks(with_entries(t, **worse), z_0, ubar, ones)
    expected[:, :nodes] = slacks(with_entries(t, **along), z_0, ubar, ones)[:, :nodes]
    np.testing.assert_allclose(scaled, expected, atol=1e-13)


def test_blocks_of_plans_change_nothing(t: Theorem) -> None:
    z_0, ubar = plans(t, 40)
    together = slacks(t, z_0, ubar, np.ones(40))
    alone = [slacks(t, z_0[i, None], ubar[i, None], ONE)[0] for i in range(40)]
    np.testing.assert_allclose(together, alone, atol=1e-13)


# --------------------------------------------------------------------- close to zero


def close_factor(t: Theorem, z_0: np.ndarray, ubar: np.ndarray, distance: float) -> np.ndarray:
    """A base set in whose norm the plan ends at 1 - `distance`."""
    size = 1.0 - EPS - slacks(t, z_0, ubar, ONE)[0, -6]
    return t.c.base_factor * (1.0 - distance) / size


@pytest.mark.parametrize(("distance", "valid"), [(1e-12, True), (-1e-12, False)])
def test_close_calls_are_decided_in_ball_arithmetic(
    t: Theorem, distance: float, valid: bool
) -> None:
    z_0 = np.array([[-0.1, 0.2]])
    ubar = plan_of(t, z_0, np.array([[0.3]]))
    other = with_entries(t, base_factor=close_factor(t, z_0, ubar, distance))
    found = slacks(other, z_0, ubar, ONE)[0]
    assert label(other, int(found.argmin())) == "V4 terminal set"
    assert abs(found.min()) < 2 * EPS
    assert holds(other, z_0[0], ubar[0], N + 1) == valid


def test_the_audit_says_when_it_cannot_decide(
    t: Theorem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan within CLOSE of zero: decided with python-flint, refused without it."""
    first = Cart(t).fly(1)[0]
    factor = close_factor(t, first.z_0[None], first.ubar[None], 0.5 * CLOSE)
    folder = write_bundle(tmp_path / "cart_robust", {"base_factor": factor})
    data = b"".join(write(folder, [replace(first, slack=0.4 * CLOSE, sigma=np.nan)]))
    report = audit(data, folder)
    assert report.accepted, report.findings
    assert report.proved == 1
    monkeypatch.setitem(sys.modules, "flint", None)
    monkeypatch.delitem(sys.modules, "safe_rl_core.audit.exact")
    report = audit(data, folder)
    assert not report.accepted
    assert [f.kind for f in report.findings] == ["unchecked"]
    assert "flint" in report.findings[0].text


# --------------------------------------------------------------------- derivatives

MIXED = """safe_rl_program 1
function f(x:2, u:1)
a = input x 0
b = input x 1
c = input u 0
k = const 0.3
s = sin a
m = mul s b
n = neg m
q = lt a k
w = where q n c
w2 = abs w
r = sqrt w2
d = div r b
e = abs d
g = sign b
y = min e a
return y g w a
"""


def test_derivatives_are_those_of_the_interpreter() -> None:
    rng = np.random.default_rng(4)
    program, bundle = Program(parse(MIXED), {}), load("quadrotor_powerloop")
    x = bundle.program("operating_state", rng.uniform(-0.5, 0.5, (30, 9)))
    u = rng.uniform(1.0, 5.0, (30, 4))
    for p, name, point in (
        (program, "f", (rng.uniform(0.1, 1, (30, 2)), rng.uniform(0.1, 1, (30, 1)))),
        (bundle.program, "step", (x, u)),
        (bundle.program, "backup_policy", (x,)),
    ):
        of = tuple(range(len(point)))
        found = jacobian(p, name, point, of)
        column = 0
        for i in of:
            for j in range(point[i].shape[-1]):
                seeds = [np.zeros_like(q) for q in point]
                seeds[i][:, j] = 1.0
                slow = p.jvp(name, point, tuple(seeds))
                np.testing.assert_array_equal(found[..., column], slow)
                column += 1


def test_derivatives_through_a_layer() -> None:
    weights = {"l.weight": np.array([[1.0, -2.0], [0.5, 3.0]]), "l.bias": np.array([0.1, -0.2])}
    body = (
        Instruction("input", name="x", index=0),
        Instruction("input", name="u", index=0),
        Instruction("dense", (0, 1), name="l", activation="tanh"),
        Instruction("element", (2,), index=1),
    )
    program = Program({"f": Function("f", (("x", 1), ("u", 1)), body, (3,))}, weights)
    x, u = np.array([[0.3], [0.1]]), np.array([[0.2]])
    slope = 1.0 - program("f", x, u + 0.0 * x) ** 2
    found = jacobian(program, "f", (x, u), (0, 1))
    np.testing.assert_allclose(found[:, 0], slope * [[0.5, 3.0]], atol=1e-15)
    only = jacobian(program, "f", (x, u), (1,))
    np.testing.assert_allclose(only[:, 0], slope * 3.0, atol=1e-15)
