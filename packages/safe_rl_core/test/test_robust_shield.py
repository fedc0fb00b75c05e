"""The robust shield: every exit by its reason and kind, and the theorem as a property."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robust_cart import DISTURBANCE, ESTIMATE, GAIN, HORIZON, cart, shared, with_bounds
from safe_rl_core.bundle import Channel
from safe_rl_core.chain import Kind
from safe_rl_core.errors import CertificateError, ModelError
from safe_rl_core.kernel.robust import RobustKernel
from safe_rl_core.robust_shield import RobustShield, make_shield
from safe_rl_core.shield import Reason, Shield, ShieldResult, Verdict
from shipped import load

REST, STILL = np.zeros(2), np.zeros(1)
ANYTHING = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-3.0, 3.0),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e300, 1.0, -1.0]),
)


class World:
    """The cart with delay, disturbances and estimate errors in corners of the assumed boxes."""

    def __init__(self, shield: RobustShield, seed: int, x: np.ndarray = REST) -> None:
        self.shield, self.x, self._rng = shield, np.array(x), np.random.default_rng(seed)
        self._pending = [shield.bundle.stop_action] * shield.bundle.delay_steps
        self._corners = [np.ones(2), np.ones(2)]

    def estimate(self) -> np.ndarray:
        if self._rng.random() < 0.2:
            self._corners = [self._rng.choice([-1.0, 1.0], 2) for _ in range(2)]
        return self.x - self._corners[0] * ESTIMATE

    def move(self, result: ShieldResult) -> None:
        force, *self._pending = [*self._pending, result.action]
        assert np.array_equal(force, result.decision.u_in_force)
        moved = self.shield.bundle.program("step", self.x, force)
        self.x = moved + self._corners[1] * DISTURBANCE

    def period(self, proposal: np.ndarray | None) -> ShieldResult:
        result = self.shield.step(self.estimate(), proposal)
        self.move(result)
        return result


def shield(**changes: object) -> RobustShield:
    return RobustShield(shared(replace(cart(), **changes)))


def refuse_all(shield: RobustShield, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that finds nothing from now on."""
    found = replace(shield.kernel.valid(REST, STILL), slack=-1.0)
    monkeypatch.setattr(shield.kernel, "valid", lambda x, u: found)


def edge() -> tuple[RobustShield, np.ndarray, np.ndarray]:
    """A shield without delay, a state near the wall, and a proposal that would hit it."""
    return shield(delay_steps=0), np.array([1.8, 0.5]), np.array([0.9])


@given(
    seed=st.integers(0, 10_000),
    proposals=st.lists(ANYTHING, min_size=4, max_size=12),
    outage=st.tuples(st.integers(1, 30), st.integers(0, 70)),
)
@settings(max_examples=25, deadline=None)
def test_whatever_is_proposed_the_cart_stays_safe(
    seed: int, proposals: list[float | None], outage: tuple[int, int]
) -> None:
    """Corners of every assumed bound, any proposals, and outages longer than a plan."""
    c, kernel, rng = cart().robust, RobustKernel.of(cart()), np.random.default_rng(seed)
    x = rng.uniform([-2.0, -1.0], [2.0, 1.0])
    while not kernel.valid(cart().program("step", x, STILL), STILL).slack >= 0.05:
        x = rng.uniform([-2.0, -1.0], [2.0, 1.0])
    world = World(shield(), seed, x)
    bundle, kernel = world.shield.bundle, world.shield.kernel
    valid = kernel.valid
    for k in range(110):
        if outage[0] <= k < sum(outage):  # the planner is gone: the old plan must do
            kernel.valid = lambda x, u: replace(valid(x, u), slack=-1.0)
        else:
            kernel.valid = valid
        wish = proposals[(k // 5) % len(proposals)]
        result = world.period(None if wish is None else np.array([wish]))
        decision, plan = result.decision, world.shield._plan
        assert np.all((result.action >= c.input_low) & (result.action <= c.input_high))
        assert result.reason not in (Reason.TRACKING_SATURATED, Reason.NO_PLAN_YET)
        # where the answer acts, the state is in the plan's tube or in its base set
        if decision.index < HORIZON:
            tube = kernel.replay(plan.states[0], plan.inputs).errors[decision.index]
            away = bundle.program("difference", world.x, plan.states[decision.index])
            assert np.all(np.abs(away) <= tube + 1e-12)
        else:
            away = bundle.program("difference", world.x, plan.base_point)
            assert np.linalg.norm(c.base.factor.T @ away) <= 1.0 + 1e-12
        assert np.all(bundle.program("safe_set", world.x) >= 0.0)


def test_an_outage_ends_in_the_base_set_and_a_new_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(shield(), 0)
    kinds = []
    for k in range(2 * HORIZON):
        if k == 10:
            refuse_all(world.shield, monkeypatch)
        kinds.append(world.period(np.array([0.4])).decision.kind)
    assert set(kinds[:10]) <= {Kind.ACCEPT, Kind.PROJECTED, Kind.BLENDED}
    assert kinds[10 : 9 + HORIZON] == [Kind.CONTINUE] * (HORIZON - 1)
    assert set(kinds[9 + HORIZON :]) == {Kind.BASE}
    monkeypatch.undo()
    assert world.period(STILL).decision.kind is Kind.ACCEPT


def test_a_valid_proposal_passes_bit_for_bit() -> None:
    for value in (0.3, -0.0, 1.0, -1.0):
        robust = shield()
        result = robust.step(REST, np.array([value]))
        assert (result.verdict, result.reason) == (Verdict.PASSED, Reason.PROPOSAL_SAFE)
        assert result.action.tobytes() == np.array([value]).tobytes()
        assert result.decision.kind is Kind.ACCEPT
        assert not result.qp_used
        assert (result.intervention, result.blend) == (0.0, 1.0)


def test_a_zero_on_the_bound_keeps_its_sign() -> None:
    """-0.0 equals a lower bound of 0.0; clipping it would change a bit."""
    robust = shield(inputs=(Channel("accel", "m/s^2", 0.0, 1.0),), delay_steps=0)
    result = robust.step(np.array([-0.5, 0.2]), np.array([-0.0]))
    assert result.verdict is Verdict.PASSED
    assert result.action.tobytes() == np.array([-0.0]).tobytes()


def test_the_record_of_a_committed_plan() -> None:
    robust, x, proposal = shield(), np.array([0.4, 0.2]), np.array([0.1])
    result = robust.step(x, proposal)
    decision, program = result.decision, cart().program
    assert np.allclose(decision.z_0, program("step", x, STILL), rtol=0.0, atol=1e-15)
    assert decision.inputs.shape == (HORIZON + 1, 1)
    assert decision.inputs[0].tobytes() == result.action.tobytes()
    assert np.array_equal(decision.x_hat, x)
    assert np.array_equal(decision.proposal, proposal)
    assert np.array_equal(decision.u_in_force, robust.bundle.stop_action)
    assert decision.index == 0
    assert result.margin == robust.kernel.replay(decision.z_0, decision.inputs).slack
    x += 1.0
    proposal += 1.0
    assert np.array_equal(decision.x_hat + 1.0, x)
    assert np.array_equal(decision.proposal + 1.0, proposal)


def test_the_committed_plan_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    robust = shield()
    first = robust.step(np.array([0.4, 0.2]), np.array([0.1]))
    refuse_all(robust, monkeypatch)
    for j in (1, 2, 3):
        x = first.plan_states[j] + [0.01, -0.02]
        ahead = robust.predict(x)
        result = robust.step(x, np.array([0.9]))
        expected = first.plan_inputs[j] + GAIN @ (ahead - first.plan_states[j])
        assert result.action == pytest.approx(expected, abs=1e-14)
        assert (result.verdict, result.reason) == (Verdict.BACKUP, Reason.PLAN_CONTINUED)
        decision = result.decision
        assert (decision.kind, decision.index) == (Kind.CONTINUE, j)
        assert decision.z_0 is decision.inputs is None
        assert (result.margin, result.critical_row) == (first.margin, first.critical_row)
    assert np.array_equal(robust._plan.states, first.plan_states)
    x = first.plan_states[4] + [0.01, -0.02]
    ahead = robust.predict(x)
    result = robust.continue_plan(x)
    expected = first.plan_inputs[4] + GAIN @ (ahead - first.plan_states[4])
    assert result.action == pytest.approx(expected, abs=1e-14)
    assert (result.reason, result.decision.index) == (Reason.PLAN_CONTINUED, 4)


def test_after_the_plan_its_own_base_point_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    robust = shield()
    plan = robust.step(np.array([1.7, 0.2]), STILL)
    refuse_all(robust, monkeypatch)
    for _ in range(HORIZON - 1):
        assert robust.continue_plan().decision.kind is Kind.CONTINUE
    x = np.array([1.15, 0.05])
    ahead, point = robust.predict(x), cart().program("base_point", plan.plan_states[-1])
    result = robust.step(x, None)
    assert result.action == pytest.approx(GAIN @ (ahead - point), abs=1e-14)
    assert not np.array_equal(point, cart().program("base_point", ahead))
    assert (result.reason, result.decision.kind) == (Reason.BASE_CONTROLLER, Kind.BASE)
    assert result.decision.index == HORIZON


def test_without_a_state_the_plan_goes_on_and_then_it_stops() -> None:
    robust = shield(stop_action=np.array([-0.5]))
    planned = robust.step(np.array([0.4, 0.2]), np.array([0.1])).plan_inputs.copy()
    for j in range(1, HORIZON):
        result = robust.continue_plan()
        assert np.array_equal(result.action, planned[j])
        assert (result.reason, result.decision.kind) == (Reason.STATE_UNKNOWN, Kind.CONTINUE)
        assert result.decision.x_hat is None
    for _ in range(2):
        result = robust.continue_plan()
        assert np.array_equal(result.action, [-0.5])
        assert (result.reason, result.decision.kind) == (Reason.STATE_UNKNOWN, Kind.STOP)
    assert robust.continue_plan(REST).decision.kind is Kind.BASE


def test_states_that_are_no_numbers_continue_the_plan_untracked() -> None:
    robust = shield()
    planned = robust.step(np.array([0.4, 0.2]), np.array([0.1])).plan_inputs.copy()
    bad = [np.array([0.1, math.nan]), np.array([math.inf, 0.0]), np.array([1e200, 1e200])]
    for j, x in enumerate(bad, start=1):
        result = robust.step(x, STILL)
        assert np.array_equal(result.action, planned[j])
        assert (result.verdict, result.reason) == (Verdict.BACKUP, Reason.STATE_NOT_FINITE)
        assert np.array_equal(result.decision.x_hat, x, equal_nan=True)
    result = robust.continue_plan(bad[0])
    assert (result.reason, result.decision.kind) == (Reason.STATE_NOT_FINITE, Kind.CONTINUE)


def test_a_state_whose_difference_is_no_number() -> None:
    robust = shield(delay_steps=0)
    planned = robust.step(REST, STILL).plan_inputs.copy()
    steep = with_bounds(tracking_gain=GAIN * 1e300).robust
    robust._certificate = steep
    with np.errstate(over="ignore"):
        result = robust.continue_plan(np.array([1e300, 1e300]))
    assert np.array_equal(result.action, planned[1])
    assert result.reason is Reason.STATE_NOT_FINITE


def test_reasons_of_proposals_that_cannot_be_judged() -> None:
    for proposal, reason in (
        (None, Reason.NO_PROPOSAL),
        (np.array([math.nan]), Reason.PROPOSAL_NOT_FINITE),
        (np.array([-math.inf]), Reason.PROPOSAL_NOT_FINITE),
    ):
        robust = shield(delay_steps=0)
        x = np.array([0.3, 0.1])
        result = robust.step(x, proposal)
        assert (result.verdict, result.reason) == (Verdict.BACKUP, reason)
        assert np.array_equal(result.action, cart().compiled("backup_policy", x))
        assert (result.decision.kind, result.decision.index) == (Kind.BACKUP, 0)
        assert result.decision.inputs is not None
        assert math.isnan(result.intervention)
        received = result.decision.proposal
        assert (received is None) == (proposal is None)


def test_a_proposal_outside_of_the_box_is_moved_onto_it() -> None:
    result = shield().step(REST, np.array([3.0]))
    assert (result.verdict, result.reason) == (Verdict.PROJECTED, Reason.PROJECTED)
    assert np.array_equal(result.action, [1.0])
    assert np.array_equal(result.decision.proposal, [3.0])


def test_a_proposal_that_goes_too_far_is_projected() -> None:
    robust, x, proposal = edge()
    result = robust.step(x, proposal)
    assert not robust.kernel.valid(x, proposal).holds
    assert (result.verdict, result.decision.kind) == (Verdict.PROJECTED, Kind.PROJECTED)
    backup = cart().compiled("backup_policy", x)
    assert backup[0] < result.action[0] < proposal[0]
    assert result.qp_used
    further = 0.98 * result.action + 0.02 * proposal  # nearly nothing is given away
    assert not robust.kernel.valid(x, further).holds


def test_a_wrong_answer_of_the_solver_only_wastes_a_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for answer in (np.array([2.0]), np.array([math.nan]), None):
        robust, x, proposal = edge()
        monkeypatch.setattr(robust, "_projection", lambda *a, answer=answer: answer)
        result = robust.step(x, proposal)
        assert (result.verdict, result.reason) == (Verdict.PROJECTED, Reason.BLENDED)
        assert 0.0 < result.blend < 1.0
        assert robust.kernel.valid(x, result.action).holds


def test_the_backup_when_nothing_on_the_way_to_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    robust, x, proposal = edge()
    monkeypatch.setattr(robust, "_projection", lambda *a: None)
    monkeypatch.setattr(robust.kernel, "screen", lambda x, u: (-1.0, -1.0))
    result = robust.step(x, proposal)
    assert (result.verdict, result.reason) == (Verdict.BACKUP, Reason.NOT_VERIFIED)
    assert np.array_equal(result.action, cart().compiled("backup_policy", x))
    assert result.decision.kind is Kind.BACKUP


def test_before_the_first_plan_nothing_is_claimed() -> None:
    robust, lost = shield(delay_steps=0), np.array([1.95, 0.9])
    before = robust.continue_plan()
    assert (before.decision.kind, before.reason) == (Kind.STOP, Reason.STATE_UNKNOWN)
    assert math.isnan(before.margin)
    for proposal in (None, np.array([0.2])):
        result = robust.step(lost, proposal)
        assert (result.verdict, result.reason) == (Verdict.BACKUP, Reason.NO_PLAN_YET)
        assert result.margin < 0.0
        assert result.critical_row.startswith(("right", "domain"))
        assert np.array_equal(result.action, cart().compiled("backup_policy", lost))
        assert result.decision.z_0 is None
        assert result.decision.index == -1
    assert math.isnan(robust.sigma())
    assert robust.step(REST, STILL).verdict is Verdict.PASSED


def test_a_backup_that_is_no_number_stops_before_the_first_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    robust = shield(delay_steps=0)
    compiled = robust.bundle.compiled
    monkeypatch.setitem(compiled._values, "backup_policy", lambda x: np.array([math.nan]))
    refuse_all(robust, monkeypatch)
    result = robust.step(REST, None)
    assert (result.reason, result.decision.kind) == (Reason.NO_PLAN_YET, Kind.STOP)
    assert np.array_equal(result.action, robust.bundle.stop_action)


def test_nothing_unverified_replaces_a_committed_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    robust = shield()
    robust.step(np.array([0.4, 0.2]), np.array([0.1]))
    plan = robust._plan
    for slack in (-1e-12, math.nan, -math.inf):
        found = replace(robust.kernel.valid(REST, STILL), slack=slack)
        monkeypatch.setattr(robust.kernel, "valid", lambda x, u, found=found: found)
        robust.step(np.array([0.4, 0.2]), np.array([0.9]))
        assert robust._plan is plan
        monkeypatch.undo()


def test_outside_of_the_assumptions_it_clips_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    robust = shield()
    robust.step(REST, STILL)
    refuse_all(robust, monkeypatch)
    result = robust.step(np.array([-1.5, 0.0]), STILL)
    assert np.array_equal(result.action, [1.0])
    assert (result.reason, result.decision.kind) == (Reason.TRACKING_SATURATED, Kind.CONTINUE)


def test_sigma_is_that_of_the_plan_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    robust = shield()
    robust.step(np.array([0.9, 0.6]), STILL)
    own = RobustKernel.of(cart())
    own.replay(robust._plan.states[0], robust._plan.inputs)
    expected = own.sigma()
    assert robust.sigma() == expected
    refuse_all(robust, monkeypatch)
    robust.step(np.array([0.9, 0.6]), np.array([0.9]))
    assert robust.sigma() == expected
    monkeypatch.undo()
    robust.step(np.array([0.9, 0.6]), STILL)
    own.replay(robust._plan.states[0], robust._plan.inputs)
    assert robust.sigma() == own.sigma() > 1.0


def test_sigma_after_other_plans_were_judged() -> None:
    robust, own = shield(delay_steps=0), RobustKernel.of(cart())
    robust.step(np.array([0.9, 0.6]), STILL)
    plan = robust._plan
    assert robust.step(np.array([1.95, 0.9]), STILL).decision.kind is Kind.CONTINUE
    own.replay(plan.states[0], plan.inputs)
    assert robust.sigma() == own.sigma()


def test_longer_delays_keep_every_pending_input() -> None:
    robust = shield(delay_steps=3)
    sent = [robust.bundle.stop_action] * 3
    for k in range(6):
        result = robust.step(REST, np.array([0.1 * k]))
        sent.append(result.action)
        assert np.array_equal(result.decision.u_in_force, sent[k])
    x = REST
    for u in sent[-3:]:
        x = cart().compiled("step", x, u)
    assert np.array_equal(robust.predict(REST), x)


def test_reset_forgets_the_plan() -> None:
    robust = shield()
    robust.step(REST, np.array([0.5]))
    robust.reset()
    assert math.isnan(robust.sigma())
    assert np.array_equal(robust.predict(REST), cart().compiled("step", REST, STILL))
    assert robust.continue_plan().decision.kind is Kind.STOP


def test_the_bundle_says_which_shield() -> None:
    assert isinstance(make_shield(cart()), RobustShield)
    nominal = load("unicycle_lane")
    assert isinstance(make_shield(nominal), Shield)
    assert make_shield(nominal).step(np.array([0.0, 0.0, 0.0, 5.0]), None).decision is None
    with pytest.raises(CertificateError, match="unicycle_lane has no certificate"):
        RobustShield(nominal)


def test_wrong_shapes_are_wiring_mistakes() -> None:
    robust = shield()
    with pytest.raises(ModelError, match=r"state must have shape \(2,\) = \(p, v\), got \(3,\)"):
        robust.step(np.zeros(3), None)
    with pytest.raises(ModelError, match=r"proposal must have shape \(1,\) = \(accel\)"):
        robust.step(REST, np.zeros(2))
    with pytest.raises(ModelError, match="state must have shape"):
        robust.continue_plan(np.zeros(1))


def test_times_are_reported() -> None:
    robust, x, proposal = edge()
    times = robust.step(x, proposal).times_us
    assert set(times) == {"kernel", "qp", "verify", "total"}
    assert times["total"] >= times["verify"] > 0.0
    assert times["qp"] > 0.0
    assert times["kernel"] > 0.0


def test_wider_bounds_can_be_required_of_new_plans() -> None:
    one = shield()
    assert one.step(REST, STILL).reason is Reason.PROPOSAL_SAFE
    most = one.sigma()
    assert 1.0 < most < 1e3
    one.require(0.95 * most)
    assert one.step(REST, STILL).decision.index == 0
    one.require(1.05 * most)
    goes_on = one.step(REST, STILL)
    assert (goes_on.decision.kind, goes_on.decision.index) == (Kind.CONTINUE, 1)
    one.reset()
    assert one.step(REST, STILL).decision.index == 0
    with pytest.raises(ModelError, match="scale 0.5"):
        one.require(0.5)


def test_a_stop_gives_the_plan_up() -> None:
    one = shield()
    one.step(REST, STILL)
    assert one.sigma() > 1.0
    stopped = one.stop(REST)
    assert math.isnan(one.sigma())
    assert (stopped.decision.kind, stopped.decision.index) == (Kind.STOP, -1)
    assert (stopped.action == one.bundle.stop_action).all()
    assert one.continue_plan(REST).decision.kind is Kind.STOP


def test_what_is_sent_instead_is_what_acts() -> None:
    one = shield()
    one.step(REST, STILL)
    halted = one.sent_instead(one.stop(REST), np.array([0.25]))
    assert halted.action.tolist() == [0.25]
    assert one.step(REST, STILL).decision.u_in_force.tolist() == [0.25]
    prompt = RobustShield(shared(replace(cart(), delay_steps=0)))
    halted = prompt.sent_instead(prompt.stop(REST), np.array([0.25]))
    assert halted.decision.u_in_force.tolist() == [0.25]
