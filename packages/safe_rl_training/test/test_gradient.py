"""The analytic-gradient learner: its gradient, its safety, its memory, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.build import batch_kernel
from safe_rl_systems.robot import ROBOTS
from safe_rl_training import gradient
from safe_rl_training.gradient import GradientLearner, GradientSettings

QUICK = GradientSettings(
    iterations=40, batch=8, horizon=(10, 20), hidden=16, starts="task", compiled=False
)


@pytest.fixture(scope="module")
def kernel() -> BatchKernel:
    return batch_kernel(ROBOTS["unicycle_lane_paper"]())


def learner(kernel: BatchKernel, **changes: Any) -> GradientLearner:
    return GradientLearner(
        ROBOTS["unicycle_lane_paper"](), replace(QUICK, **changes), seed=0, kernel=kernel
    )


def test_the_gradient_is_that_of_the_flown_return(kernel: BatchKernel) -> None:
    """Against differences of flights from the same states, where the shield lets all pass."""
    one = learner(kernel, batch=4, state_gradient_limit=1e9, shielded=False)
    before = one.env.state_dict()
    rewards, _, _ = one._fly(5)
    rewards.sum().backward()
    weight = one.policy.body[-1].bias
    assert weight.grad is not None
    slope = weight.grad[0].item()

    def flown(shift: float) -> float:
        one.env.load_state_dict(before)
        with torch.no_grad():
            weight[0] += shift
            rewards, _, _ = one._fly(5)
            weight[0] -= shift
        return rewards.double().sum().item()

    step = 1e-2
    assert slope == pytest.approx((flown(step) - flown(-step)) / (2.0 * step), rel=0.01)


def test_a_blocked_action_has_no_slope(kernel: BatchKernel) -> None:
    one = learner(kernel)
    with torch.no_grad():
        one.policy.body[-1].bias[1] = 5.0  # always turn as hard as it goes
    _, _, flown = one._fly(20)
    inside = np.concatenate([period.slope[period.verdict == 1] for period in flown])
    assert len(inside) > 10
    assert (np.linalg.svd(inside, compute_uv=False).min(-1) < 1e-9).all()


def test_nothing_is_violated_and_the_return_grows(kernel: BatchKernel) -> None:
    settings = {"batch": 32, "horizon": (20, 20), "learning_rate": (1e-2, 1e-3)}
    one = learner(kernel, iterations=60, **settings)
    rewards = [one.iterate()["reward"] for _ in range(60)]
    lap = 20  # windows in an episode; rewards are negative
    assert np.mean(rewards[-lap:]) > 0.75 * np.mean(rewards[:lap])
    assert one.violations == 0
    assert one.env_steps == 60 * 20 * 32


def test_a_resumed_run_is_the_same_run(kernel: BatchKernel) -> None:
    straight, first, second = (learner(kernel) for _ in range(3))
    expected = [straight.iterate() for _ in range(4)]
    for _ in range(2):
        first.iterate()
    second.load_state_dict(first.state_dict())
    assert [second.iterate() for _ in range(2)] == expected[2:]


def test_a_cost_that_is_no_number_is_named(kernel: BatchKernel) -> None:
    one = learner(kernel)
    with torch.no_grad():
        one.policy.mean.fill_(torch.nan)
    with pytest.raises(ModelError, match="loss/policy is nan at iteration 0"):
        one.iterate()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ModelError, match="horizon must be 0 < first <= last"):
        GradientSettings(horizon=(5, 2))
    with pytest.raises(ModelError, match="CPU"):
        gradient.make(ROBOTS["unicycle_lane_paper"](), QUICK, 0, 1, "cuda")
