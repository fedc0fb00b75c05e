"""The run of phase II: what it keeps, that it resumes bit for bit, and what ends it."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import Robot, unicycle_lane
from safe_rl_training import learners, ps2
from safe_rl_training.parts import checkpoint
from safe_rl_training.parts.networks import network_for
from safe_rl_training.ps2 import RunSettings, best_network
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROBOT = unicycle_lane()
IDENTITY = {"seed": 0, "learner": "wanderer"}
OBSERVATIONS = torch.linspace(-1.0, 1.0, 8 * len(ROBOT.task.observation_names)).view(8, -1)


class Wanderer:
    """A learner whose weights walk at random, with Adam, so that all kinds of state are there."""

    robot: Robot = ROBOT
    violations = 0

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.policy = network_for(ROBOT.system, OBSERVATIONS.shape[1], 8)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), lr=0.1)
        self.generator = torch.Generator().manual_seed(seed)
        self.iteration = self.env_steps = 0

    def iterate(self) -> dict[str, float]:
        target = torch.randn(8, 2, generator=self.generator)
        loss = ((self.policy(OBSERVATIONS) - target) ** 2).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.iteration += 1
        self.env_steps += 10
        return {"return": -loss.item(), "loss/critic": math.nan if self.iteration < 3 else 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "count": (self.iteration, self.env_steps),
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        self.policy.load_state_dict(stored["policy"])
        self.optimiser.load_state_dict(stored["optimiser"])
        self.generator.set_state(stored["generator"])
        self.iteration, self.env_steps = stored["count"]


def scores(policy: ps2.PolicyFunction) -> dict[str, Any]:
    """Best where the actions are near 0.3, so that the best is neither first nor last."""
    distance = np.abs(policy(OBSERVATIONS.double().numpy()) - 0.3).mean()
    return {"return_mean": -float(distance), "unsafe_episodes": 0}


def go(learner: Any, folder: Path, iterations: int = 12, **more: Any) -> ps2.Standing:
    options = {"validate": scores, "identity": IDENTITY, **more}
    validate = options.pop("validate")
    return ps2.run(learner, validate, RunSettings(iterations, 2, 0.0), folder, **options)


def test_the_best_validation_is_kept_not_the_last(tmp_path: Path) -> None:
    learner = Wanderer()
    standing = go(learner, tmp_path)
    returns = [value for _, value, _ in standing.validated]
    assert [steps for steps, _, _ in standing.validated] == [0, 20, 40, 60, 80, 100, 120]
    assert standing.best_return == max(returns) != returns[-1]
    assert standing.best_at == 2 * returns.index(max(returns))
    best = ps2.as_function(best_network(learner, standing))
    assert scores(best)["return_mean"] == standing.best_return


def test_an_unsafe_validation_never_wins(tmp_path: Path) -> None:
    count = 0

    def only_the_second_is_safe(policy: ps2.PolicyFunction) -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"return_mean": float(count), "unsafe_episodes": 0 if count == 2 else 1}

    standing = go(Wanderer(), tmp_path / "a", validate=only_the_second_is_safe)
    assert (standing.best_return, standing.best_at) == (2.0, 2)
    with pytest.raises(ModelError, match="none of 3 validations was without an unsafe episode"):
        go(
            Wanderer(), tmp_path / "b", iterations=4,
            validate=lambda _: {"return_mean": 1.0, "unsafe_episodes": 1},
        )  # fmt: skip


@pytest.mark.parametrize("at", [1, 4, 7])
def test_an_interrupted_and_resumed_run_equals_an_unbroken_one(at: int, tmp_path: Path) -> None:
    whole = Wanderer()
    expected = go(whole, tmp_path / "whole")

    class Interrupted(Wanderer):
        def iterate(self) -> dict[str, float]:
            if self.iteration + 1 == at:
                os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
            return super().iterate()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        go(Interrupted(), tmp_path / "half")
    assert signal.getsignal(signal.SIGINT) is before
    again = Wanderer(seed=99)
    got = go(again, tmp_path / "half", resume=True)
    assert got.validated == expected.validated and got.collected == expected.collected
    assert (got.best_return, got.best_at) == (expected.best_return, expected.best_at)
    states = (whole.policy.state_dict(), again.policy.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(whole.generator.get_state(), again.generator.get_state())


SMALL: dict[str, dict[str, Any]] = {
    "gradient": {"batch": 4, "horizon": [2, 3]},
    "sac": {"robots": 4, "periods": 4, "random_steps": 4, "update_after": 8, "batch": 4},
    "ppo": {"count": 4, "steps": 4, "minibatch": 8},
}


@pytest.mark.parametrize("name", SMALL)
def test_what_a_learner_stores_can_be_loaded_and_goes_on_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    path, changes = tmp_path / "checkpoint.pt", {"iterations": 4, **SMALL[name]}
    settings = learners.settings_of(name, ROBOT, True, changes)
    first = learners.make(ROBOT, settings, 0, 1, "cpu")
    first.iterate()
    checkpoint.save(path, IDENTITY, first.state_dict())
    second = learners.make(ROBOT, settings, 0, 1, "cpu")
    second.load_state_dict(checkpoint.load(path, IDENTITY))
    assert second.iterate() == pytest.approx(first.iterate(), nan_ok=True, abs=0.0, rel=0.0)
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_violation_ends_the_run(tmp_path: Path) -> None:
    class Unsafe(Wanderer):
        @property
        def violations(self) -> int:  # type: ignore[override]
            return int(self.iteration >= 3)

    with pytest.raises(ModelError, match=r"1 states outside of the safe set within 30 training"):
        go(Unsafe(), tmp_path)


def test_the_learners_own_message_about_nan_gets_through(tmp_path: Path) -> None:
    class Diverging(Wanderer):
        def iterate(self) -> dict[str, float]:
            if self.iteration == 5:
                raise ModelError("loss is nan at iteration 5; lower actor_rate")
            return super().iterate()

    with pytest.raises(ModelError, match="lower actor_rate"):
        go(Diverging(), tmp_path)
    stored = checkpoint.load(tmp_path / ps2.CHECKPOINT, IDENTITY)
    assert 1 <= stored["learner"]["count"][0] <= 5  # what was good before is there


def test_a_learner_that_does_not_count_is_a_defect(tmp_path: Path) -> None:
    class Stuck(Wanderer):
        def iterate(self) -> dict[str, float]:
            return {}

    with pytest.raises(ModelError, match="did not count"):
        go(Stuck(), tmp_path)


def test_other_settings_cannot_resume_and_the_difference_is_named(tmp_path: Path) -> None:
    go(Wanderer(), tmp_path, iterations=2)
    with pytest.raises(ModelError, match=r"seed 0, now 1"):
        go(Wanderer(), tmp_path, resume=True, identity={**IDENTITY, "seed": 1})


def test_a_checkpoint_refuses_what_a_safe_loader_cannot_read(tmp_path: Path) -> None:
    state = {"weights": [torch.zeros(2), {"rng": np.float64(1.0)}]}
    with pytest.raises(ModelError, match=r"\['weights'\]\[1\]\['rng'\] is a float64"):
        checkpoint.save(tmp_path / "c.pt", {}, state)
    assert not (tmp_path / "c.pt").exists()
    with pytest.raises(ModelError, match="no checkpoint"):
        checkpoint.load(tmp_path / "c.pt", {})


def test_a_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), checkpoint.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)


def test_tensorboard_gets_every_finite_scalar_once(tmp_path: Path) -> None:
    go(Wanderer(), tmp_path, iterations=4)
    go(Wanderer(), tmp_path, iterations=6, resume=True)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [e.step for e in events.Scalars("return")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events.Scalars("loss/critic")] == [3, 4, 5, 6]
    assert [e.step for e in events.Scalars("validation/return")] == [0, 2, 4, 6]
