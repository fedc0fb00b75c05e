"""The plant on the edge of the assumptions stays within them, and uses them."""

from __future__ import annotations

import numpy as np
import pytest
from safe_rl_core.adversary import make_proposer
from safe_rl_core.assumed import ADVERSARIES, AssumedPlant, displaced
from safe_rl_core.bundle import Bundle
from safe_rl_core.chain import Kind
from safe_rl_core.errors import PlantError
from safe_rl_core.loop import recoverable_state, run_episode
from safe_rl_core.robust_shield import RobustShield, make_shield
from safe_rl_core.shield import Reason
from shipped import MODELS

ROBUST = ["unicycle_robust", "quadrotor_robust"]


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("name", ROBUST)
def test_both_bounds_are_kept_and_reached(name: str, adversary: str) -> None:
    bundle = Bundle.load(MODELS / name)
    plant = AssumedPlant(bundle, adversary)
    assumed, shares = bundle.robust, []
    measured = plant.reset(3)
    sent = [bundle.stop_action]
    for k in range(40):
        eta = bundle.compiled("difference", plant.state, measured)
        before = plant.state
        u = bundle.compiled("backup_policy", measured)
        measured = plant.step(u)
        w = bundle.compiled("difference", plant.state, bundle.compiled("step", before, sent[k]))
        sent.append(u)
        shares.append((np.abs(eta) / assumed.estimate_error, np.abs(w) / assumed.disturbance))
    largest = np.max(shares, axis=0)
    assert (largest <= 1.0 + 1e-6).all()
    assert (largest > 0.8).all()


@pytest.mark.parametrize("name", ROBUST)
def test_an_estimate_is_off_by_exactly_what_was_asked(name: str) -> None:
    bundle = Bundle.load(MODELS / name)
    x = AssumedPlant(bundle).reset(1)
    eta = 20.0 * bundle.robust.estimate_error
    estimate = displaced(bundle, x, eta)
    np.testing.assert_allclose(bundle.compiled("difference", x, estimate), eta, atol=1e-12)


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("name", ROBUST)
def test_no_adversary_leads_out_of_the_safe_set(name: str, adversary: str) -> None:
    bundle = Bundle.load(MODELS / name)
    shield, plant = make_shield(bundle), AssumedPlant(bundle, adversary)
    for seed in range(4):
        rng = np.random.default_rng([seed, 7])
        log = run_episode(
            bundle, plant, make_proposer("adversarial", bundle, rng), shield,
            steps=60, seed=seed, x0=recoverable_state(bundle, rng),
        )  # fmt: skip
        assert bundle.program("safe_set", log.x_true).min() >= 0.0
        assert "no_plan_yet" not in log.reason


def test_a_nominal_bundle_assumes_nothing_to_play() -> None:
    with pytest.raises(PlantError, match="has no certificate"):
        AssumedPlant(Bundle.load(MODELS / "unicycle_lane"))
    with pytest.raises(PlantError, match="adversary must be"):
        AssumedPlant(Bundle.load(MODELS / "unicycle_robust"), "kind")


@pytest.mark.parametrize("name", ROBUST)
def test_outages_longer_than_a_plan_end_in_the_base_set(name: str) -> None:
    """From the edge of the implicit set nothing new is planned for three plans' time."""
    bundle = Bundle.load(MODELS / name)
    shield, plant = RobustShield(bundle), AssumedPlant(bundle, "corner")
    for seed in range(3):
        rng = np.random.default_rng([seed, 8])
        propose = make_proposer("adversarial", bundle, rng)
        x = plant.reset(seed, recoverable_state(bundle, rng))
        shield.reset()
        for _ in range(30):
            result = shield.step(x, propose(x, plant.time))
            x = plant.step(result.action)
        saturated, kinds = 0, set()
        for _ in range(3 * bundle.horizon):
            result = shield.continue_plan(x)
            saturated += result.reason is Reason.TRACKING_SATURATED
            kinds.add(result.decision.kind)
            x = plant.step(result.action)
            assert bundle.compiled("safe_set", plant.state).min() >= 0.0
        assert kinds == {Kind.CONTINUE, Kind.BASE} and saturated == 0
        assert bundle.compiled("base_set", plant.state)[0] >= 0.0
