"""The guarantee as a property, and every exit of the shield by its reason."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safe_rl_core import Bundle, Reason, Shield, Verdict
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel import Rollout
from safe_rl_core.loop import recoverable_state
from safe_rl_core.shield import _Candidate
from shipped import NAMES, load

ANYTHING = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-50.0, 50.0),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e300, -1e300]),
)
_shields: dict[str, Shield] = {}


def shield_of(name: str) -> Shield:
    if name not in _shields:
        _shields[name] = Shield(load(name))
    return _shields[name]


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000), numbers=st.lists(ANYTHING, min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_proposal_leads_to_a_recoverable_state(
    name: str, seed: int, numbers: list[float]
) -> None:
    shield = shield_of(name)
    bundle = shield.bundle
    x = recoverable_state(bundle, np.random.default_rng(seed))
    shield.reset()
    result = shield.step(x, np.array(numbers[: len(bundle.inputs)]))
    assert np.all((result.action >= bundle.input_low) & (result.action <= bundle.input_high))
    following = x
    for u in [bundle.stop_action] * bundle.delay_steps + [result.action]:
        following = bundle.compiled("step", following, u)
    assert shield.kernel.rows(following).least >= -1e-8
    assert np.all(bundle.program("safe_set", following) >= 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_passed_returns_the_proposal_bit_for_bit_and_twice_is_once(name: str) -> None:
    shield, seen = shield_of(name), set()
    bundle, rng = shield.bundle, np.random.default_rng(1)
    for _ in range(200):
        x = recoverable_state(bundle, rng)
        proposal = rng.uniform(bundle.input_low, bundle.input_high)
        shield.reset()
        result = shield.step(x, proposal)
        seen.add(result.verdict)
        if result.verdict is Verdict.PASSED:
            assert result.action.tobytes() == proposal.tobytes()
            assert result.reason is Reason.PROPOSAL_SAFE
        elif result.reason is Reason.PROJECTED:
            shield.reset()
            again = shield.step(x, result.action)
            assert np.allclose(again.action, result.action, rtol=0.0, atol=1e-8)
    assert {Verdict.PASSED, Verdict.PROJECTED} <= seen


def test_reasons_of_bad_proposals(instant: Bundle) -> None:
    shield, x = Shield(instant), np.array([0.0, 0.1, 0.0, 5.0])
    for proposal, reason in (
        (None, Reason.NO_PROPOSAL),
        (np.array([math.nan, 0.0]), Reason.PROPOSAL_NOT_FINITE),
        (np.array([0.0, math.inf]), Reason.PROPOSAL_NOT_FINITE),
    ):
        result = shield.step(x, proposal)
        assert (result.verdict, result.reason) == (Verdict.BACKUP, reason)
        assert np.array_equal(result.action, instant.compiled("backup_policy", x))
        assert math.isnan(result.intervention)


def test_a_proposal_outside_of_the_box_is_projected(instant: Bundle) -> None:
    result = Shield(instant).step(np.array([0.0, 0.0, 0.0, 5.0]), np.array([9.0, 0.0]))
    assert result.verdict is Verdict.PROJECTED
    assert result.action[0] <= instant.input_high[0]


def test_infeasible_rows_give_the_backup(instant: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    shield, x = Shield(instant), np.array([0.0, 0.1, 0.0, 5.0])
    monkeypatch.setattr(shield, "_projection", lambda rows, v_d, row: None)
    result = shield.step(x, np.array([9.0, 0.0]))
    assert (result.verdict, result.reason) == (Verdict.BACKUP, Reason.QP_INFEASIBLE)


def test_a_wrong_answer_of_the_solver_is_caught(
    instant: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that would drive off the lane are blended or replaced, never sent."""
    shield, x = Shield(instant), np.array([0.0, 1.5, 0.25, 6.0])
    assert shield.kernel.rows(x).least > 0.0
    wrong = np.array([1.0, 1.0])
    assert shield.kernel.verify(x, wrong * instant.input_scale).least < 0.0
    monkeypatch.setattr(shield, "_projection", lambda rows, v_d, row: wrong)
    result = shield.step(x, np.array([9.0, 9.0]))
    assert result.reason in (Reason.BLENDED, Reason.NOT_VERIFIED)
    assert result.margin >= -1e-9
    assert result.blend < 1.0


def test_outside_of_the_implicit_set_it_still_answers(instant: Bundle) -> None:
    shield, lost = Shield(instant), np.array([0.0, 1.79, 0.9, 11.0])
    assert shield.kernel.rows(lost).least < 0.0
    result = shield.step(lost, None)
    assert result.verdict is Verdict.BACKUP
    assert result.reason in (Reason.OUTSIDE_IMPLICIT_SET, Reason.PLAN_CONTINUED)
    assert result.margin < 0.0


def test_outside_the_better_of_backup_and_old_plan_is_taken(instant: Bundle) -> None:
    shield = Shield(instant)
    shield.step(np.array([0.0, 0.0, 0.0, 5.0]), None)
    shield._plan_inputs[1] = np.array([-5.0, -1.0])
    lost = np.array([0.0, 1.75, 0.6, 9.0])
    fresh, old = (
        shield.kernel.rows(lost).least,
        shield.kernel.verify(lost, np.array([-5.0, -1.0])).least,
    )
    result = shield.step(lost, None)
    assert result.margin == max(fresh, old)
    assert (result.reason is Reason.PLAN_CONTINUED) == (old > fresh)


def test_without_a_state_the_plan_goes_on_and_then_it_stops(unicycle: Bundle) -> None:
    shield, x = Shield(unicycle), np.array([0.0, 0.5, 0.1, 6.0])
    planned = shield.step(x, np.array([0.2, 0.1])).plan_inputs.copy()
    for k in range(1, unicycle.horizon + 1):
        result = shield.continue_plan()
        assert np.array_equal(result.action, planned[k])
        assert (result.verdict, result.reason) == (Verdict.BACKUP, Reason.STATE_UNKNOWN)
    assert np.array_equal(shield.continue_plan().action, unicycle.stop_action)
    assert np.array_equal(shield.continue_plan(x).action, unicycle.compiled("base_controller", x))


def test_a_state_that_is_not_a_number_continues_the_plan(unicycle: Bundle) -> None:
    shield = Shield(unicycle)
    planned = shield.step(np.array([0.0, 0.5, 0.1, 6.0]), None).plan_inputs.copy()
    result = shield.step(np.array([0.0, math.nan, 0.1, 6.0]), np.zeros(2))
    assert (result.verdict, result.reason) == (Verdict.BACKUP, Reason.STATE_NOT_FINITE)
    assert np.array_equal(result.action, planned[1])


def test_the_state_is_predicted_over_the_delay(unicycle: Bundle) -> None:
    shield, x = Shield(unicycle), np.array([0.0, 0.5, 0.1, 6.0])
    braked = unicycle.compiled("step", x, unicycle.stop_action)
    assert np.array_equal(shield.predict(x), braked)
    sent = shield.step(x, np.array([0.2, 0.1])).action
    assert np.array_equal(shield.predict(x), unicycle.compiled("step", x, sent))
    stopped = shield.continue_plan().action
    assert np.array_equal(shield.predict(x), unicycle.compiled("step", x, stopped))


def test_before_the_first_state_it_stops(unicycle: Bundle) -> None:
    assert np.array_equal(Shield(unicycle).continue_plan().action, unicycle.stop_action)


def test_wrong_shapes_are_wiring_mistakes(unicycle: Bundle) -> None:
    shield = Shield(unicycle)
    with pytest.raises(
        ModelError, match=r"state must have shape \(4,\) = \(px, py, theta, v\), got \(3,\)"
    ):
        shield.step(np.zeros(3), None)
    with pytest.raises(
        ModelError, match=r"proposal must have shape \(2,\) = \(accel, turn_rate\)"
    ):
        shield.step(np.zeros(4), np.zeros(3))


def test_times_and_rows_are_reported(quadrotor: Bundle) -> None:
    shield = Shield(quadrotor)
    result = shield.step(
        recoverable_state(quadrotor, np.random.default_rng(4)), np.array([39.0, 18, 0, 0])
    )
    assert set(result.times_us) == {"kernel", "qp", "verify", "total"}
    assert result.times_us["total"] >= result.times_us["kernel"] > 0.0
    assert result.critical_row.split("@")[0].removeprefix("base.") in (
        *quadrotor.safe_set_names,
        *quadrotor.base_set_names,
    )


def test_a_plan_without_a_number_is_never_the_better_one() -> None:
    """Of two unverified plans the one with a margin is taken, in either order."""
    nothing = Rollout(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), math.nan, 0)
    bad = replace(nothing, least=-3.0)
    for plans in ((nothing, bad), (bad, nothing)):
        options = [_Candidate(np.zeros(1), plan, Reason.NOT_VERIFIED, 0.0) for plan in plans]
        assert not any(option.verified for option in options)
        assert max(options, key=lambda option: option.rank).plan is bad
