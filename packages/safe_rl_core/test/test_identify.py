"""Identification on data whose truth is known: delay, split, coverage, and when it refuses."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import tug
from safe_rl_core.error_growth import WINDOWS, Growth
from safe_rl_core.extremes import FEWEST, SHARE, enough, largest_of
from safe_rl_core.identify import Flight, IdentifyError, Settings, identify
from scipy.stats import norm

TUG = tug.bundle()
HOUR = 3600.0
#: 99.9 % of the largest |value| of an hour of normal values, in standard deviations
LARGEST = norm.isf(0.5e-3 / (HOUR / tug.D))


def noise(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) with standard deviation 1."""
    if kind == "normal":
        return rng.normal(size=(count, 3))
    return rng.uniform(-np.sqrt(3.0), np.sqrt(3.0), (count, 3))


def record(
    count: int,
    seed: int = 0,
    kind: str = "uniform",
    delay: int = 1,
    wind: float = 0.0,
    w: float = 1.0,
    d: float = 1.0,
    excited: bool = True,
) -> Flight:
    """Estimates and commands of a flight; w, d: rms in units of a third of the assumed bounds.

    `wind`: a disturbance that keeps its sign for 50 periods, in the same units.
    """
    rng = np.random.default_rng(seed)
    held = rng.choice([-1.0, 1.0], (count // 50 + 1, 3)).repeat(50, 0)[:count]
    push = (w * noise(kind, count, rng) + wind * held) * tug.DISTURBANCE / 3.0
    error = d * noise(kind, count, rng) * tug.ESTIMATE_ERROR / 3.0
    u = rng.uniform([0.0, -tug.TURN], [tug.SPEED, tug.TURN], (count // 3 + 1, 2))
    u = u.repeat(3, 0)[:count] if excited else np.tile([1.0, 0.2], (count, 1))
    force = np.vstack((np.tile(u[0], (delay, 1)), u))
    plant, states, truth = tug.Tug(TUG, np.zeros(3)), [], []
    for k in range(count):
        states.append(plant.estimate(error[k]))
        truth.append(plant.x.copy())
        plant.step(force[k], push[k])
    return Flight(np.array(states), u, np.array(truth))


recorded = cache(record)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_delay_is_found(delay: int) -> None:
    found = identify(TUG, [record(1500, delay=delay)]).delay
    assert (found.assumed, found.found, found.used) == (1, delay, delay)
    assert int(np.argmin(found.sizes)) == delay


def test_delay_cannot_be_told_from_constant_commands() -> None:
    found = identify(TUG, [record(1500, delay=3, excited=False)]).delay
    assert (found.found, found.used) == (None, 1)


def test_disturbance_and_estimate_error_are_told_apart() -> None:
    """Both root mean squares within 20 %, whichever is the larger one."""
    for w, d in ((1.0, 1.0), (4.0, 0.5)):
        found = identify(TUG, [record(6000, w=w, d=d)])
        np.testing.assert_allclose(found.estimate_error.rms, d * tug.ESTIMATE_ERROR / 3, rtol=0.2)
        np.testing.assert_allclose(
            found.disturbance.rms[[0, 2]], w * tug.DISTURBANCE[[0, 2]] / 3, rtol=0.2
        )


def test_wind_that_lasts_is_disturbance_not_estimate_error() -> None:
    found = identify(TUG, [record(6000, w=0.5, wind=2.0)])
    np.testing.assert_allclose(found.estimate_error.rms, tug.ESTIMATE_ERROR / 3, rtol=0.25)
    expected = np.hypot(0.5, 2.0) * tug.DISTURBANCE / 3
    np.testing.assert_allclose(found.disturbance.rms, expected, rtol=0.35)


@pytest.mark.parametrize(("kind", "reach"), [("uniform", np.sqrt(3.0)), ("normal", LARGEST)])
def test_the_proposal_covers_the_truth_of_an_hour(kind: str, reach: float) -> None:
    """From 4 minutes, in nearly all channels and draws; and it is no more than 6 times it."""
    shares = []
    for seed in range(4):
        found = identify(TUG, [record(5000, seed, kind)])
        for bounds, scale in (
            (found.disturbance, tug.DISTURBANCE),
            (found.estimate_error, tug.ESTIMATE_ERROR),
        ):
            shares.append((bounds.proposed / (reach * scale / 3.0))[~found.undetermined])
    ratio = np.concatenate(shares)
    assert len(ratio) >= 16
    assert np.mean(ratio >= 1.0) >= 0.85
    assert ratio.min() > 0.8
    assert ratio.max() < 6.0


def test_the_proposal_is_raised_until_every_residual_is_explained() -> None:
    """By hand: A = 1, so a residual over M periods may reach 2 d + M w."""
    size = np.array([3.0, 3.1, 3.5, 8.0, 6.0])  # over 1, 2, 5, 10, 20 periods
    growth = Growth.of(np.ones((WINDOWS[-1], 1, 1, 1)), size.reshape(-1, 1, 1))
    w, d = np.array([0.1]), np.array([1.0])
    allowed = 2.0 + 0.1 * np.array(WINDOWS)
    np.testing.assert_allclose(growth.ratios(w, d).ravel(), size / allowed)
    more = growth.raised(w, d)
    np.testing.assert_allclose(np.concatenate(more), 8.0 / 3.0 * np.array([0.1, 1.0]))
    enough_already = growth.raised(10.0 * w, 4.0 * d)
    np.testing.assert_array_equal(np.concatenate(enough_already), [1.0, 4.0])
    assert np.isnan(np.concatenate(growth.raised(np.array([np.nan]), np.array([np.nan])))).all()


def test_assumptions_that_the_recordings_contradict_are_named() -> None:
    found = identify(TUG, [record(3000, w=6.0)])
    assert found.ratio.max() > 1.1
    assert (found.disturbance.proposed > 2.0 * tug.DISTURBANCE)[~found.undetermined].all()


def test_recordings_inside_the_assumptions_do_not_contradict_them() -> None:
    found = identify(TUG, [record(3000, 5, w=np.sqrt(3), d=np.sqrt(3))])
    assert (found.ratio <= 1.02).all()
    assert (found.ratio > 0.7).all()
    assert (found.disturbance.true <= tug.DISTURBANCE + 1e-12).all()
    assert (found.estimate_error.true <= tug.ESTIMATE_ERROR + 1e-12).all()
    assert (found.estimate_error.true >= 0.99 * tug.ESTIMATE_ERROR).all()


def test_what_cannot_be_seen_is_not_proposed_away() -> None:
    """Without any estimate error in the data the assumed one stays."""
    found = identify(TUG, [record(3000, 1, d=0.0)])
    assert found.estimate_error.hidden.all()
    assert (found.estimate_error.proposed >= tug.ESTIMATE_ERROR).all()
    assert not found.disturbance.hidden.any()


def test_several_flights_count_together_and_gaps_do_not() -> None:
    flights = [recorded(600, seed) for seed in range(3)]
    found = identify(TUG, flights)
    assert found.delay.found == 1
    assert found.periods == 3 * (600 - 1 - WINDOWS[-1])
    assert (found.ratio < 1.0).all()


@pytest.mark.parametrize("pieces", [1, 20])
def test_too_little_data_is_refused(pieces: int) -> None:
    """20 pieces of 40 periods are not 800 periods either: none holds a whole window."""
    flight = recorded(3000)
    length = 900 if pieces == 1 else 40
    parts = [
        Flight(flight.states[k : k + length], flight.commands[k : k + length])
        for k in range(0, pieces * length, length)
    ]
    with pytest.raises(IdentifyError, match=r"too little data: \d+ usable periods.*at least 1000"):
        identify(TUG, parts)


def test_a_tail_without_a_limit_is_not_a_proposal() -> None:
    """Heavy tails over a long exposure: the data set no limit, and nothing is proposed."""
    rng = np.random.default_rng(2)
    flight = recorded(1500)
    states = flight.states + 0.003 * rng.standard_t(2.0, (1500, 3))
    found = identify(TUG, [Flight(states, flight.commands)], Settings(exposure=100 * HOUR))
    assert found.undetermined.any()
    assert np.isnan(found.disturbance.proposed[found.undetermined]).all()
    assert np.isnan(found.estimate_error.proposed[found.undetermined]).all()
    assert np.isfinite(found.disturbance.proposed[~found.undetermined]).all()


def test_a_nominal_bundle_is_told_what_to_do() -> None:
    functions = {"step": TUG.program.functions["step"]}
    program = SimpleNamespace(functions=functions)
    nominal = SimpleNamespace(**(vars(TUG) | {"program": program, "assumptions": None}))
    with pytest.raises(IdentifyError, match="no error chart.*RobustDesign"):
        identify(nominal, [recorded(600)])


def test_a_recording_of_another_robot_is_refused() -> None:
    with pytest.raises(IdentifyError, match=r"states \(1200, 5\).*expected \(K, 3\)"):
        identify(TUG, [Flight(np.zeros((1200, 5)), np.zeros((1200, 2)))])


def test_a_perfect_model_leaves_nothing() -> None:
    found = identify(TUG, [record(1200, w=0.0, d=0.0)])
    assert found.delay.found == 1
    assert (found.ratio < 1e-6).all()
    assert (found.disturbance.rms < 1e-12).all()


# ------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize(
    ("kind", "truth", "least"), [("normal", LARGEST, 0.75), ("uniform", 1.0, 0.95)]
)
def test_the_limit_of_a_tail_covers_the_truth(kind: str, truth: float, least: float) -> None:
    rng, covered = np.random.default_rng(1), []
    for _ in range(20):
        values = rng.normal(size=6000) if kind == "normal" else rng.uniform(-1.0, 1.0, 6000)
        tail = largest_of(np.abs(values), HOUR / tug.D, 0.999, 0.95)
        assert tail.largest <= tail.level <= tail.upper
        covered.append(tail.upper >= 0.999 * truth)
    assert np.mean(covered) >= least


def test_more_confidence_and_more_exposure_cost_more() -> None:
    values = np.abs(np.random.default_rng(4).normal(size=4000))
    uppers = [largest_of(values, 1e5, 0.999, c).upper for c in (0.5, 0.9, 0.99)]
    assert uppers == sorted(uppers)
    levels = [largest_of(values, t, 0.999, 0.95).level for t in (1e3, 1e5, 1e7)]
    assert levels == sorted(levels)
    assert levels[0] < levels[2]


def test_clusters_say_less_than_as_many_separate_values() -> None:
    values = np.abs(np.random.default_rng(7).normal(size=3000))
    alone = largest_of(values, 1e5, 0.999, 0.95)
    clustered = largest_of(values.repeat(4), 1e5, 0.999, 0.95)
    assert clustered.upper > 0.9 * alone.upper


def test_values_without_a_tail() -> None:
    tail = largest_of(np.full(2000, 0.3), 1e6, 0.999, 0.95)
    assert (tail.level, tail.upper) == (0.3, 0.3)
    assert not enough(int(FEWEST / SHARE) - 1)
    assert enough(int(FEWEST / SHARE))
