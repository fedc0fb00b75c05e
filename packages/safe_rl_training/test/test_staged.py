"""The default learner: the hand-over between its parts, its counts, its memory."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS
from safe_rl_training import learners, staged
from safe_rl_training.export import export_policy
from safe_rl_training.parts.learner import Learner
from safe_rl_training.ppo import PpoSettings
from safe_rl_training.staged import Staged, StagedSettings

QUICK = StagedSettings(
    iterations=5,
    gradient_iterations=2,
    count=8,
    steps=16,
    minibatch=64,
    epochs=1,
    hidden=8,
    critic_first=1,
    compiled=False,
)


def fresh() -> Staged:
    return staged.make(ROBOTS["unicycle_lane_paper"](), QUICK, 0, 1, "cpu")


def weights(learner: Learner) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(learner.policy.parameters()).detach().clone()


def test_ppo_goes_on_from_the_best_that_the_gradient_flew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = fresh()
    returns, flown, iterate = iter([-2.0, -5.0]), [], one._first.iterate

    def with_return() -> dict[str, float]:
        flown.append(weights(one))
        return {**iterate(), "return": next(returns)}

    monkeypatch.setattr(one._first, "iterate", with_return)
    one.iterate()
    one.iterate()
    handed_over, gradient_steps = weights(one), one.env_steps
    assert torch.equal(handed_over, flown[0])
    assert not torch.equal(handed_over, flown[1])
    one.iterate()  # V alone learns
    assert torch.equal(weights(one), handed_over)
    assert one.env_steps == gradient_steps + 8 * 16
    one.iterate()
    assert not torch.equal(weights(one), handed_over)
    assert (one.iteration, one.violations) == (4, 0)


def test_a_resumed_run_is_the_same_run_in_either_part() -> None:
    for done in (1, 3):
        straight, first, second = fresh(), fresh(), fresh()
        expected = [straight.iterate() for _ in range(5)]
        for _ in range(done):
            first.iterate()
        second.load_state_dict(first.state_dict())
        assert [second.iterate() for _ in range(5 - done)] == expected[done:]


def test_both_parts_need_iterations() -> None:
    with pytest.raises(ModelError, match="gradient_iterations must be > 0 and less than"):
        StagedSettings(iterations=5, gradient_iterations=5)


def test_a_warm_start_replaces_the_gradient(tmp_path: Path) -> None:
    robot, source = ROBOTS["unicycle_lane_paper"](), fresh()
    file = tmp_path / "policy.onnx"
    export_policy(source.policy, robot, {}, file)
    changes = {f.name: getattr(QUICK, f.name) for f in fields(QUICK)}
    settings = learners.settings_of("staged", robot, changes=changes, warm_start=True)
    assert type(settings) is PpoSettings and settings.critic_first == QUICK.critic_first
    assert settings.iterations == QUICK.iterations - QUICK.gradient_iterations
    one = learners.make(robot, settings, 1, 1, "cpu", warm_start=file)
    assert torch.equal(weights(one), weights(source))
    one.iterate()
    assert one.env_steps == QUICK.count * QUICK.steps
