"""What the evidence makes of a broken premise: the response ladder, obeyed."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "std_msgs", reason="needs ROS 2: pip install the wheels or source a setup file"
)

from backup_shield_node.evidence import Evidence
from safe_rl_core.bundle import Bundle
from safe_rl_core.chain import Kind
from safe_rl_core.chain_reader import read_chain
from safe_rl_core.findings import Fault, Status
from safe_rl_core.loop import recoverable_state
from safe_rl_core.robust_shield import RobustShield

pytestmark = pytest.mark.ros

MODELS = Path(__file__).resolve().parents[3] / "models"


class Flight:
    """Unicycle, model and evidence; `push` disturbs the heading by so many times its bound."""

    def __init__(self) -> None:
        self.bundle = Bundle.load(MODELS / "unicycle_robust")
        self.shield = RobustShield(self.bundle)
        self.chain, self.counts = bytearray(), []
        self.evidence = Evidence(
            self.bundle,
            self.shield,
            lambda message: self.chain.extend(bytes(message.data)),
            lambda name, text: self.counts.append(name),
            None,
        )
        self.x = recoverable_state(self.bundle, np.random.default_rng(1))
        self.k = 0

    def step(self, push: float = 0.0, estimate: np.ndarray | None = None):
        seen = self.x if estimate is None else estimate
        result = self.evidence.decide(seen, np.zeros(2))
        self.evidence.keep(round(self.k * self.bundle.period * 1e9), result)
        w = push * self.bundle.robust.disturbance * np.array([0.0, 1.0, 0.0])
        moved = self.bundle.program("step", self.x, result.decision.u_in_force)
        self.x = self.bundle.program("retract", moved, w)
        self.k += 1
        return result


def test_while_all_is_well_proposals_pass() -> None:
    flight = Flight()
    kinds = [flight.step().decision.kind for _ in range(30)]
    assert Kind.ACCEPT in kinds
    assert flight.evidence.premises.status is not Status.BROKEN
    flight.evidence.close()
    chain = read_chain(bytes(flight.chain))
    assert chain.defect == "" and len(chain.records) == 30


def test_after_a_gust_no_proposal_passes_until_a_person_resets() -> None:
    flight = Flight()
    for _ in range(10):
        flight.step()
    flight.step(push=60.0)
    flight.step()
    assert flight.evidence.premises.broken.fault is Fault.JUMP
    assert flight.counts == ["premise_broken"]
    after = [flight.step().decision for _ in range(20)]
    assert all(d.kind >= Kind.BACKUP and d.proposal is None for d in after)


def test_new_plans_must_then_hold_for_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    flight = Flight()
    for _ in range(10):
        flight.step()
    flight.step(push=60.0)
    required: list[float] = []
    monkeypatch.setattr(flight.shield, "require", required.append)
    for _ in range(3):
        flight.step()
    assert required and min(required) >= 1.5 * 60.0 * 0.9


def test_without_any_plan_a_broken_premise_ends_in_the_stop() -> None:
    flight = Flight()
    for _ in range(10):
        flight.step()
    flight.step(push=60.0)
    flight.step()
    flight.shield.reset()  # the source of the states was restarted
    for _ in range(3):
        result = flight.step()
    assert result.decision.kind is Kind.STOP
    assert (result.action == flight.bundle.stop_action).all()


def test_a_lost_estimate_flies_the_plan_as_recorded() -> None:
    flight = Flight()
    for _ in range(10):
        flight.step()
    lost = np.full(4, np.nan)
    flight.step(estimate=lost)
    plan = flight.step(estimate=lost)
    assert plan.decision.kind is Kind.CONTINUE and plan.decision.x_hat is None
