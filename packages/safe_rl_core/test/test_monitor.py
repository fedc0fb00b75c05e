"""The premise monitor: never wrong when it says broken, tight, and the ladder that follows."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tug
from hypothesis import given, settings
from hypothesis import strategies as st
from safe_rl_core.assumed import AssumedPlant
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import CertificateError, ModelError
from safe_rl_core.findings import Fault, MonitorResult, Status
from safe_rl_core.kernel.robust import RobustKernel
from safe_rl_core.monitor import WINDOWS, PremiseMonitor
from safe_rl_core.response import INFLATION, Level, Response
from shipped import MODELS

TUG = tug.bundle()
PERIOD_NS = round(tug.D * 1e9)
STRAIGHT = np.array([1.0, 0.3])
CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
ROBUST = ("quadrotor_robust", "unicycle_robust")


def tug_monitor(of: SimpleNamespace = TUG) -> PremiseMonitor:
    return PremiseMonitor(of, tug.SlowKernel(of))


def watch(monitor: PremiseMonitor, states: np.ndarray, inputs: np.ndarray) -> list[MonitorResult]:
    pairs = zip(states, inputs, strict=True)
    return [monitor.update(k * PERIOD_NS, x, u) for k, (x, u) in enumerate(pairs)]


def still(k: int) -> np.ndarray:
    return np.zeros(3)


def jacobian(u: np.ndarray) -> np.ndarray:
    zero = np.zeros((3, 3))
    at = (np.tile(u, (3, 1)), zero, np.zeros((3, 2)), zero)
    tangents = (np.zeros((3, 2)), np.eye(3), np.zeros((3, 2)), zero)
    return TUG.program.jvp("error_map", at, tangents).T


def worst_ratio(
    of: SimpleNamespace, u: np.ndarray, row: int, sign: float, window: int
) -> tuple[float, Status]:
    """The largest ratio that the worst w and d inside the bounds reach in one window."""
    slope = jacobian(u)
    direction, pushes = sign * np.eye(3)[row], []
    for _ in range(window):
        pushes.append(np.where(direction >= 0, 1.0, -1.0))
        direction = slope.T @ direction
    start = np.where(direction >= 0, 1.0, -1.0)
    worst, status = 0.0, Status.OK
    for corner in CORNERS:
        states, inputs = tug.fly(
            TUG,
            window + 1,
            lambda k: u,
            lambda k: pushes[-1 - k] * tug.DISTURBANCE if k < window else still(k),
            lambda k, corner=corner: (start if k == 0 else corner) * tug.ESTIMATE_ERROR,
        )
        result = watch(tug_monitor(of), states, inputs)[-1]
        ratio = float(result.ratios[WINDOWS.index(window), row])
        if ratio > worst:
            worst, status = ratio, result.status
    return worst, status


@settings(max_examples=30, deadline=None)
@given(
    speed=st.floats(0.0, tug.SPEED),
    turn=st.floats(-tug.TURN, tug.TURN),
    row=st.integers(0, 2),
    sign=st.sampled_from((-1.0, 1.0)),
    window=st.sampled_from((1, 5)),
)
def test_no_alarm_on_the_edge_of_the_assumptions(
    speed: float, turn: float, row: int, sign: float, window: int
) -> None:
    ratio, status = worst_ratio(TUG, np.array([speed, turn]), row, sign, window)
    assert ratio <= 1.0
    assert status is not Status.BROKEN


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), hold=st.integers(1, 30))
def test_no_alarm_for_any_switching_corners(seed: int, hold: int) -> None:
    rng = np.random.default_rng(seed)
    w, d = (rng.choice([-1.0, 1.0], (50, 3)).repeat(hold, 0) for _ in range(2))
    u = rng.uniform([0.0, -tug.TURN], [tug.SPEED, tug.TURN], (50, 2))
    states, inputs = tug.fly(
        TUG, 50, lambda k: u[k], lambda k: w[k] * tug.DISTURBANCE,
        lambda k: d[k] * tug.ESTIMATE_ERROR,
    )  # fmt: skip
    results = watch(tug_monitor(), states, inputs)
    assert all(result.broken is None for result in results)
    assert all(np.isfinite(result.ratios).all() for result in results[20:])


@pytest.mark.parametrize(("window", "tight"), [(1, 0.99), (5, 0.97), (20, 0.92)])
def test_the_bound_is_tight(window: int, tight: float) -> None:
    """No slack hides in the test: inside the assumptions every channel nearly reaches it."""
    for row in range(3):
        assert tight < worst_ratio(TUG, STRAIGHT, row, 1.0, window)[0] <= 1.0


def test_without_the_turn_of_the_chart_there_would_be_false_alarms() -> None:
    """|r| <= E + estimate_error is not true where the error box is seen from a turned frame."""
    plain = tug.changed(TUG, shift_remainder=np.zeros((3, 6, 6)))
    assert worst_ratio(plain, STRAIGHT, 0, 1.0, 1)[0] > 1.01
    assert worst_ratio(TUG, STRAIGHT, 0, 1.0, 1)[0] <= 1.0


def test_beyond_the_bound_by_two_percent_is_proved() -> None:
    """The same worst case with 2 % less assumed than played."""
    less = tug.changed(
        TUG, disturbance=0.98 * tug.DISTURBANCE, estimate_error=0.98 * tug.ESTIMATE_ERROR
    )
    for row in range(3):
        ratio, status = worst_ratio(less, STRAIGHT, row, 1.0, 1)
        assert ratio > 1.01
        assert status is Status.BROKEN


@pytest.mark.parametrize(("row", "factor"), [(0, 3.0), (1, 6.0), (2, 3.0)])
def test_a_drift_is_found_by_a_longer_window(row: int, factor: float) -> None:
    """A steady push of some multiple of the bound, without any estimate error."""
    drift = factor * tug.DISTURBANCE * np.eye(3)[row]
    states, inputs = tug.fly(
        TUG, 60, lambda k: STRAIGHT, lambda k: drift if k >= 30 else still(k), still
    )
    results = watch(tug_monitor(), states, inputs)
    first = next(k for k, result in enumerate(results) if result.broken is not None)
    broken = results[first].broken
    assert 31 < first <= 50
    assert broken.fault is Fault.DRIFT
    assert broken.channel == tug.NAMES[row]
    assert broken.window in (5, 20)
    assert broken.void_from_ns == (first - broken.window) * PERIOD_NS
    assert abs(broken.observed) > broken.bound > 0.0
    assert results[-1].broken is broken  # latched
    assert "guarantee void from" in results[-1].note


def test_a_jump_is_found_at_once() -> None:
    states, inputs = tug.fly(TUG, 30, lambda k: STRAIGHT, still, still)
    states[25:, 0] += 0.05
    results = watch(tug_monitor(), states, inputs)
    assert results[24].status is Status.OK
    broken = results[25].broken
    assert (broken.fault, broken.window) == (Fault.JUMP, 1)
    assert broken.void_from_ns == 24 * PERIOD_NS


def test_one_more_period_of_delay_is_found() -> None:
    """The inputs act one period later than the caller believes."""
    rng = np.random.default_rng(3)
    u = rng.uniform([0.0, -tug.TURN], [tug.SPEED, tug.TURN], (40, 2))
    states, inputs = tug.fly(TUG, 40, lambda k: u[max(k - 1, 0)], still, still)
    assert watch(tug_monitor(), states, inputs)[-1].broken is None
    late = watch(tug_monitor(), states, u)
    assert late[-1].broken is not None
    assert late[-1].broken.stamp_ns < 5 * PERIOD_NS


def test_a_frozen_estimate_is_proved_when_the_inputs_say_it_moves() -> None:
    states, inputs = tug.fly(TUG, 40, lambda k: STRAIGHT, still, still)
    states[20:] = states[20]
    results = watch(tug_monitor(), states, inputs)
    assert "repeats bit for bit (2 periods)" in results[21].note or results[21].broken
    assert results[-1].broken.fault is Fault.FROZEN
    assert not results[-1].estimate_usable
    assert results[-1].broken.stamp_ns <= 24 * PERIOD_NS


def test_standing_still_is_not_frozen() -> None:
    results = watch(tug_monitor(), np.zeros((30, 3)), np.zeros((30, 2)))
    assert all(result.broken is None for result in results)
    assert results[-1].status is Status.WARN
    assert "proves nothing" in results[-1].note
    assert results[-1].worst < 1e-6


@pytest.mark.parametrize("step", [2.0, -1.0, 0.0])
def test_a_stamp_that_is_not_one_period_later_restarts_the_windows(step: float) -> None:
    """Otherwise the missing period would look like a jump."""
    states, inputs = tug.fly(TUG, 60, lambda k: STRAIGHT, still, still)
    kept = [*range(25), *range(26, 60)]
    monitor = tug_monitor()
    results = []
    for k in kept:
        shift = (step - 2.0) if k > 24 else 0.0
        results.append(monitor.update(round((k + shift) * PERIOD_NS), states[k], inputs[k]))
    assert results[25].status is Status.WARN
    assert "residual windows restart" in results[25].note
    assert np.isnan(results[25].ratios).all()
    assert results[-1].broken is None
    assert np.isfinite(results[-1].ratios).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad: float) -> None:
    states, inputs = tug.fly(TUG, 10, lambda k: STRAIGHT, still, still)
    states[5, 1] = bad
    monitor = tug_monitor()
    results = watch(monitor, states, inputs)
    assert (results[5].broken.fault, results[5].broken.premise) == (Fault.NOT_FINITE, "A2")
    assert results[5].broken.channel == "py"
    assert results[5].broken.void_from_ns == 4 * PERIOD_NS
    assert not results[5].estimate_usable
    assert results[6].estimate_usable
    assert results[9].status is Status.BROKEN
    monitor.reset()
    assert monitor.update(10 * PERIOD_NS, states[9], inputs[9]).status is Status.OK
    lost = tug_monitor().update(0, states[0], np.array([bad, 0.0]))
    assert (lost.broken.premise, lost.broken.channel) == ("A3", "v")


def test_near_the_bound_is_a_hint_that_proves_nothing() -> None:
    states, inputs = tug.fly(TUG, 3, lambda k: STRAIGHT, still, still)
    bound = tug.tube(TUG.program, TUG.robust, states[1], inputs[1:2], tug.ESTIMATE_ERROR)
    states[2, 2] += 0.9 * (bound + tug.ESTIMATE_ERROR)[2]
    result = watch(tug_monitor(), states, inputs)[2]
    assert result.status is Status.WARN
    assert (result.worst_channel, result.worst_window) == ("theta", 1)
    assert result.worst == pytest.approx(0.9, abs=1e-6)
    assert "proves nothing" in result.note


def test_a_tube_outside_the_certified_domain_is_not_used() -> None:
    small = tug.changed(TUG, error_domain=np.array([1.0, 1.0, 0.02]))
    states, inputs = tug.fly(TUG, 30, lambda k: STRAIGHT, still, still)
    result = watch(tug_monitor(small), states, inputs)[-1]
    assert "window 20 not tested" in result.note
    assert np.isnan(result.ratios[2]).all()
    assert np.isfinite(result.ratios[0]).all()


def test_wrong_use_says_what_was_expected() -> None:
    monitor = tug_monitor()
    with pytest.raises(ModelError, match=r"x_hat must have shape \(3,\) = \(px, py, theta\)"):
        monitor.update(0, np.zeros(4), STRAIGHT)
    with pytest.raises(ModelError, match=r"u_in_force must have shape \(2,\)"):
        monitor.update(0, np.zeros(3), np.zeros(3))
    nominal = SimpleNamespace(**(vars(TUG) | {"robust": None}))
    with pytest.raises(CertificateError, match="tug_robust is nominal"):
        PremiseMonitor(nominal)


def test_the_observed_disturbance_bounds_the_true_one() -> None:
    rng = np.random.default_rng(5)
    w, d = rng.uniform(-1, 1, (2, 60, 3)) * (tug.DISTURBANCE, tug.ESTIMATE_ERROR)[0]
    w[40] = np.array([0.0, 0.05, 0.0])
    states, inputs = tug.fly(TUG, 60, lambda k: STRAIGHT, lambda k: w[k], lambda k: d[k])
    results = watch(tug_monitor(), states, inputs)
    for k in range(1, 60):
        played = np.abs(w[max(k - 20, 0) : k]).max(0)
        assert (results[k].disturbance >= played - 1e-4).all()


# ------------------------------------------------------------------------------------- response


def verdict(disturbance: np.ndarray, broken: bool = True, usable: bool = True) -> MonitorResult:
    return MonitorResult(
        0, Status.BROKEN if broken else Status.OK, np.zeros((3, 3)), 0.0, 0, "none",
        disturbance, usable, None, "",
    )  # fmt: skip


def test_nothing_is_held_back_without_a_proof() -> None:
    decision = Response(TUG).update(verdict(9.0 * tug.DISTURBANCE, broken=False), np.nan, False)
    assert (decision.level, decision.proposals, decision.new_plans) == (Level.NORMAL, True, True)
    assert decision.guaranteed
    assert decision.scale == 1.0


def test_the_plan_is_finished_while_it_is_known_to_hold() -> None:
    response = Response(TUG)
    decision = response.update(verdict(2.0 * tug.DISTURBANCE), 2.0, True)
    assert decision.level is Level.FINISH_PLAN
    assert (decision.proposals, decision.new_plans, decision.stop) == (False, False, False)
    assert decision.guaranteed
    # the largest disturbance so far counts, not today's
    decision = response.update(verdict(0.1 * tug.DISTURBANCE), 1.9, True)
    assert decision.level is Level.BACKUP_ONLY
    assert (decision.proposals, decision.new_plans) == (False, True)
    assert not decision.guaranteed
    assert decision.scale == pytest.approx(INFLATION * 2.0)
    # and no way down but a person
    assert response.update(verdict(tug.DISTURBANCE), 99.0, True).level is Level.BACKUP_ONLY
    stopped = response.update(verdict(tug.DISTURBANCE), 99.0, False)
    assert (stopped.level, stopped.stop, stopped.new_plans) == (Level.MINIMAL_RISK, True, False)
    assert response.update(verdict(still(0), broken=False), 99.0, True).stop
    response.reset()
    assert response.update(verdict(still(0), broken=False), 1.0, True).level is Level.NORMAL


@pytest.mark.parametrize("sigma", [np.nan, 0.99])
def test_an_unknown_or_small_sigma_is_not_enough(sigma: float) -> None:
    decision = Response(TUG).update(verdict(tug.DISTURBANCE), sigma, True)
    assert decision.level is Level.BACKUP_ONLY


def test_an_unknown_disturbance_stays_unknown() -> None:
    response = Response(TUG)
    response.update(verdict(np.full(3, np.nan)), 99.0, True)
    assert response.update(verdict(still(0)), 99.0, True).level is Level.BACKUP_ONLY


def test_a_lost_estimate_makes_no_plans() -> None:
    response = Response(TUG)
    decision = response.update(verdict(still(0), usable=False), 9.0, True)
    assert (decision.level, decision.tracking) == (Level.FINISH_PLAN, False)
    assert not decision.new_plans
    assert not decision.guaranteed
    assert response.update(verdict(still(0), usable=False), 9.0, False).stop


# -------------------------------------------------------------------------------- real bundles


@pytest.fixture(params=ROBUST)
def shipped(request: pytest.FixtureRequest) -> Bundle:
    if not (MODELS / request.param / "certificate.json").is_file():
        pytest.skip(f"{request.param} is not shipped with a certificate")
    return Bundle.load(MODELS / request.param)


def fly_assumed(bundle: Bundle, adversary: str, seed: int) -> list[MonitorResult]:
    plant, monitor = AssumedPlant(bundle, adversary), PremiseMonitor(bundle)
    x, results = plant.reset(seed), []
    pending = [bundle.stop_action] * bundle.delay_steps
    for k in range(150):
        u = np.clip(bundle.compiled("backup_policy", x), bundle.input_low, bundle.input_high)
        force, *pending = [*pending, u]
        results.append(monitor.update(round(k * bundle.period * 1e9), x, force))
        x = plant.step(u)
    return results


@pytest.mark.parametrize("adversary", ["uniform", "corner"])
def test_no_alarm_on_the_shipped_robots(shipped: Bundle, adversary: str) -> None:
    for seed in range(6):
        results = fly_assumed(shipped, adversary, seed)
        assert all(result.broken is None for result in results)
        assert np.isfinite(results[-1].ratios).any()


def test_the_compiled_tube_is_the_slow_one(shipped: Bundle) -> None:
    rng, kernel, certificate = np.random.default_rng(0), RobustKernel.of(shipped), shipped.robust
    for _ in range(5):
        k = shipped.program.functions["operating_state"].input_size("w")
        x = shipped.program("operating_state", rng.uniform(-0.3, 0.3, k))
        u = rng.uniform(0.3, 0.7, (20, len(shipped.inputs)))
        u = shipped.input_low + u * (shipped.input_high - shipped.input_low)
        eta = certificate.estimate_error
        slow = tug.tube(shipped.program, certificate, x, u, eta)
        np.testing.assert_allclose(kernel.open_tube(x, u, eta), slow, rtol=1e-9)
