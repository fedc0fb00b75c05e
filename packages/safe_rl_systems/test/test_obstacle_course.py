"""The robot of docs/examples: its proof on samples, its program, and the shield around it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safe_rl_core import Bundle, Shield
from safe_rl_core.adversary import make_proposer
from safe_rl_core.bundle import NUMERICAL_MARGIN
from safe_rl_core.loop import (
    ModelPlant,
    initial_state,
    operating_state,
    recoverable_state,
    run_episode,
)
from safe_rl_core.metrics import summarise
from safe_rl_core.record import FlightLog
from safe_rl_systems.build import write_bundle
from safe_rl_systems.robot import Robot

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docs" / "examples" / "obstacle_course.py"
MARGIN = 0.05

# Thousands of small operations: threads would only wait for one another.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def robot() -> Robot:
    """From its file, as a user's would be loaded."""
    spec = importlib.util.spec_from_file_location("obstacle_course_example", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.obstacle_course()


@pytest.fixture(scope="module")
def bundle(robot: Robot, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With somebody else's policy file, which nobody asks here."""
    policy = ROOT / "models" / "unicycle_lane" / "policy.onnx"
    return write_bundle(robot, policy, "A test.", tmp_path_factory.mktemp("models"))


def states(robot: Robot, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    w = 2.0 * torch.rand(count, 4, generator=generator, dtype=torch.float64) - 1.0
    return robot.task.operating_state(w)


def test_the_base_set_is_safe_with_margin_and_invariant(robot: Robot) -> None:
    x = states(robot, 20_000)
    x = x[(robot.base_set(x) >= 0.0).all(-1)]
    assert len(x) > 5_000
    assert (robot.safe_set(x) >= MARGIN).all()
    for _ in range(25):
        x = robot.system.step(x, robot.base_controller(x))
        assert (robot.base_set(x) >= -1e-12).all()
        assert (robot.safe_set(x) >= MARGIN - 1e-12).all()
    assert (x[:, 3].abs() < 1e-12).all(), "after 1.25 s every robot stands"


def test_the_proof_needs_both_terms_of_the_braking_distance(robot: Robot) -> None:
    """Head on and just brakeable: what D adds for the last period is used up almost wholly."""
    brake = robot.base_controller
    v = torch.linspace(0.01, 2.9, 400, dtype=torch.float64)
    x = torch.stack((torch.zeros_like(v), torch.zeros_like(v), torch.zeros_like(v), v), -1)
    y = x
    for _ in range(25):
        y = robot.system.step(y, brake(y))
    travelled, bound = y[:, 0], brake.distance(x)[:, 0]
    assert (travelled <= bound + 1e-12).all()
    assert (travelled > v**2 / 6.0 + 1e-6).any(), "v²/2a alone would not do"


def test_the_backup_is_the_base_controller_inside_and_steers_outside(robot: Robot) -> None:
    x = states(robot, 20_000)
    inside = (robot.base_set(x) >= 0.0).all(-1)
    backup, base = robot.backup_policy(x), robot.base_controller(x)
    assert torch.equal(backup[inside], base[inside])
    assert torch.equal(backup[~inside][:, 0], base[~inside][:, 0])
    assert (backup[~inside][:, 1].abs() > 0.1).double().mean() > 0.5


def test_steering_saves_what_braking_alone_does_not(robot: Robot) -> None:
    x = states(robot, 6_000)
    x = x[(robot.safe_set(x) >= MARGIN).all(-1)]

    def saved(policy: Callable[[torch.Tensor], torch.Tensor]) -> float:
        y, good = x, torch.ones(len(x), dtype=torch.bool)
        for _ in range(robot.horizon):
            y = robot.system.step(y, policy(y))
            good &= (robot.safe_set(y) >= MARGIN).all(-1)
        return float((good & (robot.base_set(y) >= -1e-12).all(-1)).double().mean())

    assert saved(robot.backup_policy) > saved(robot.base_controller) + 0.02


def test_directions_are_the_gradients_of_the_distances(robot: Robot) -> None:
    yard, x = robot.safe_set, states(robot, 50).requires_grad_()
    distances = yard.distances(x)
    for i, row in enumerate(distances.unbind(-1)):
        (slope,) = torch.autograd.grad(row.sum(), x, retain_graph=True)
        torch.testing.assert_close(slope[:, :2], yard.away(x)[:, i])
        assert (slope[:, :2].norm(dim=-1) <= 1.0 + 1e-12).all(), "the proof needs slopes <= 1"


def test_the_program_computes_what_torch_does(robot: Robot, bundle: Bundle) -> None:
    x, generator = states(robot, 64), torch.Generator().manual_seed(1)
    u = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    t = 20.0 * torch.rand(64, 1, generator=generator, dtype=torch.float64)
    task = robot.task
    pairs = {
        "step": (robot.system.step, (x, u)),
        "safe_set": (robot.safe_set, (x,)),
        "base_set": (robot.base_set, (x,)),
        "backup_policy": (robot.backup_policy, (x,)),
        "base_controller": (robot.base_controller, (x,)),
        "reference": (task.reference, (t,)),
        "observation": (task.observation, (x, t)),
        "reward": (task.reward, (x, u, t)),
        "initial_state": (task.initial_state, (0.1 * x,)),
    }
    for name, (function, inputs) in pairs.items():
        traced = bundle.program(name, *(a.numpy() for a in inputs))
        np.testing.assert_allclose(traced, function(*inputs).numpy(), atol=1e-12, err_msg=name)
    bundle.kernel()  # self-test: compiled functions and rollout against the program


def test_the_reference_obeys_the_dynamics_and_runs_through_obstacles(robot: Robot) -> None:
    t, step = torch.linspace(0.0, 20.0, 401, dtype=torch.float64).unsqueeze(-1), 1e-5
    x = robot.task.reference(t)
    speed = (robot.task.reference(t + step) - robot.task.reference(t - step))[:, :2] / (2 * step)
    heading = torch.stack((torch.cos(x[:, 2]), torch.sin(x[:, 2])), -1)
    torch.testing.assert_close(speed, x[:, 3:4] * heading, atol=1e-6, rtol=0.0)
    rows = robot.safe_set(x)
    assert (rows.amin(0)[:4] < -0.2).all() and (rows.amin(0)[4:] > 0.25).all()


def test_the_observation_does_not_count_full_turns(robot: Robot) -> None:
    x, t = states(robot, 32), torch.linspace(0.0, 20.0, 32, dtype=torch.float64).unsqueeze(-1)
    turned = x + x.new_tensor([0.0, 0.0, 4.0 * np.pi, 0.0])
    task = robot.task
    for one, other in (
        (task.observation(x, t), task.observation(turned, t)),
        (task.observation(x, t), task.observation(x, t + 3 * task.lap)),
        (task.reward(x, x[:, :2], t), task.reward(turned, x[:, :2], t)),
        (robot.system.features(x, frozenset()), robot.system.features(turned, frozenset())),
    ):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0.0)
    assert task.observation(x, t).shape[-1] == len(task.observation_names)


def follower(bundle: Bundle) -> Callable[[np.ndarray, float], np.ndarray]:
    """Drive at a point 0.6 s ahead on the reference, whatever stands in between."""

    def propose(x: np.ndarray, t: float) -> np.ndarray:
        ahead = bundle.program("reference", np.array([t + 0.6]))[:2] - x[:2]
        off = np.arctan2(ahead[1], ahead[0]) - x[2]
        off = np.arctan2(np.sin(off), np.cos(off))
        wanted = min(2.9, np.linalg.norm(ahead) / 0.6) * max(np.cos(off), 0.0)
        action = np.array([4.0 * (wanted - x[3]), 4.0 * off])
        return np.clip(action, bundle.input_low, bundle.input_high)

    return propose


def flown(bundle: Bundle, kind: str, seed: int, steps: int) -> FlightLog:
    rng = np.random.default_rng(seed)
    follows = kind == "follower"
    start = initial_state(bundle, rng) if follows else recoverable_state(bundle, rng)
    propose = follower(bundle) if follows else make_proposer("adversarial", bundle, rng)
    return run_episode(
        bundle, ModelPlant(bundle), propose, Shield(bundle), steps=steps, seed=seed, x0=start
    )


def test_the_follower_gets_along_and_never_hits(bundle: Bundle) -> None:
    log = flown(bundle, "follower", 0, 1200)
    scores = summarise(bundle, log)
    assert scores["violations"] == 0 and scores["worst_margin"] >= MARGIN - 1e-9
    counts = scores["interventions"]
    assert counts["PASSED"] > 0.25 * 1200 and counts["PROJECTED"] > 0.02 * 1200
    assert "outside_implicit_set" not in scores["reasons"]
    # It does get round: all four corners of the figure of eight are visited.
    signs = {(px > 0, py > 0) for px, py in log.x_true[:, :2][np.abs(log.x_true[:, 0]) > 1.0]}
    assert len(signs) == 4


def test_without_the_shield_the_follower_hits(bundle: Bundle) -> None:
    start = initial_state(bundle, np.random.default_rng(0))
    plant, propose = ModelPlant(bundle), follower(bundle)
    log = run_episode(bundle, plant, propose, None, steps=400, seed=0, x0=start)
    assert summarise(bundle, log)["worst_margin"] < -0.4


@pytest.mark.parametrize("seed", range(8))
def test_adversaries_never_hit(bundle: Bundle, seed: int) -> None:
    scores = summarise(bundle, flown(bundle, "adversary", seed, 150))
    assert scores["violations"] == 0 and scores["worst_margin"] >= MARGIN - 1e-9
    assert "outside_implicit_set" not in scores["reasons"]


def test_a_base_set_that_forgets_the_braking_distance_is_caught(robot: Robot) -> None:
    """The samples above can fail: with half the acceleration promised, D is too short."""
    weak = replace(robot.base_controller, system=replace(robot.system, max_accel=1.5))
    x = states(robot, 6_000)
    x = x[(robot.base_set(x) >= 0.0).all(-1)]
    lost = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(40):
        x = robot.system.step(x, weak(x))
        lost |= (robot.base_set(x) < -1e-9).any(-1)
    assert lost.any()


def test_operating_states_may_be_unsafe_but_starts_are_not(robot: Robot, bundle: Bundle) -> None:
    rng = np.random.default_rng(2)
    boxes = np.array([operating_state(bundle, rng) for _ in range(200)])
    assert (bundle.program("safe_set", boxes) < 0.0).any()
    w = torch.from_numpy(rng.uniform(-1.0, 1.0, (500, 4)))
    assert (robot.safe_set(robot.task.initial_state(w)) > MARGIN + NUMERICAL_MARGIN).all()
