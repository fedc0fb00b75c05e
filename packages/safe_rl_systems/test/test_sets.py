"""Safe and base sets: rows by hand, and invariance of the base sets by sampling.

Sampling does not prove invariance; it is the check that these sets have until they are certified.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_systems.sets import AffineSafeSet, EllipsoidBaseSet, HoverBaseSet, Row

SAMPLES = 200_000


def hover_states(robot: Robot, level: float, spread: float, seed: int = 0) -> torch.Tensor:
    """States in the hover ellipsoid {V <= level}, half of them near its surface; px, py spread."""
    rng = np.random.default_rng(seed)
    base = robot.base_controller
    factor = np.linalg.cholesky(np.linalg.inv(base.value))
    sphere = rng.normal(size=(SAMPLES, 7))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    radius = np.sqrt(level) * np.where(rng.random(SAMPLES) < 0.5, 1.0, rng.random(SAMPLES))
    e = radius[:, None] * sphere @ factor.T
    vector = -0.5 * e[:, 4:7]
    rest = 1.0 - np.sum(vector**2, axis=1)
    ok = rest > 0.0
    x = np.column_stack(
        (
            rng.uniform(-spread, spread, (SAMPLES, 2)),
            e[:, 0] + 2.0,
            e[:, 1:4],
            np.sqrt(np.maximum(rest, 0.0)),
            vector,
        )
    )
    return torch.from_numpy(x[ok])


def lane_states(robot: Robot, level: float) -> torch.Tensor:
    rng = np.random.default_rng(0)
    base = robot.base_controller
    factor = np.linalg.cholesky(np.linalg.inv(base.value))
    sphere = rng.normal(size=(SAMPLES, 3))
    e = np.sqrt(level) * (sphere / np.linalg.norm(sphere, axis=1, keepdims=True)) @ factor.T
    parts = {"px": 0 * e[:, 0], "py": e[:, 0], "v": e[:, 1] + 5.0, "theta": e[:, 2]}
    return torch.from_numpy(np.column_stack([parts[c.name] for c in robot.system.states]))


@pytest.mark.parametrize("name", ["quadrotor_powerloop", "quadrotor_powerloop_paper"])
def test_hover_base_set_is_invariant_on_samples(name: str) -> None:
    robot = ROBOTS[name]()
    x = hover_states(robot, 5.0, 4.0)
    x = x[(robot.base_set(x) >= 0.0).all(-1)]
    assert len(x) > 50_000
    after = robot.system.step(x, robot.base_controller(x))
    assert float(robot.base_set(after).min()) >= -1e-9
    assert float(robot.safe_set(x).min()) >= 0.0


def test_the_lateral_rows_hold_all_the_way_to_rest() -> None:
    robot = ROBOTS["quadrotor_powerloop"]()
    x = hover_states(robot, 5.0, 4.0, seed=1)
    x = x[(robot.base_set(x) >= 0.0).all(-1)][:1_000]
    for _ in range(200):
        x = robot.system.step(x, robot.base_controller(x))
        assert float(robot.safe_set(x).min()) >= 0.0
    assert float(x[:, 3:6].abs().max()) < 0.05


def test_the_published_level_eight_is_not_invariant() -> None:
    """A counterexample: a state with V <= 8 whose successor has V > 8."""
    robot = ROBOTS["quadrotor_powerloop_paper"]()
    x = hover_states(robot, 8.0, 0.0)
    after = robot.base_controller.level(robot.system.step(x, robot.base_controller(x)))
    assert float(robot.base_controller.level(x).max()) <= 8.0 + 1e-9
    assert float(after.max()) > 8.0


@pytest.mark.parametrize("name", ["unicycle_lane", "unicycle_lane_paper"])
def test_lane_base_set_is_invariant_on_samples(name: str) -> None:
    robot = ROBOTS[name]()
    x = lane_states(robot, 0.3)
    after = robot.base_controller.level(robot.system.step(x, robot.base_controller(x)))
    assert float(after.max()) <= 0.3 * 0.87
    assert float(robot.safe_set(x).min()) > 0.0


def test_affine_rows_by_hand() -> None:
    rows = AffineSafeSet((Row("top", 1, "upper", 3.0), Row("bottom", 1, "lower", 0.5)))
    assert rows(torch.tensor([[9.0, 1.0]])).tolist() == [[2.0, 0.5]]
    assert rows.names == ("top", "bottom")


def test_bad_sets_are_refused() -> None:
    robot = ROBOTS["quadrotor_powerloop"]()
    with pytest.raises(ModelError, match="'upper' or 'lower'"):
        Row("x", 0, "left", 1.0)
    with pytest.raises(ModelError, match="level of a base set"):
        EllipsoidBaseSet(robot.base_controller, 0.0)
    with pytest.raises(ModelError, match="level > 0 and drift_per_level > 0"):
        HoverBaseSet(robot.base_controller, 5.0, 4.0, 0.0)
    with pytest.raises(ModelError, match="stopping gap"):
        HoverBaseSet(robot.base_controller, 5.0, 0.01, 0.1)
    with pytest.raises(ModelError, match=r"class_k · period must lie in \(0, 1\)"):
        replace(robot, class_k=50.0)
    with pytest.raises(ModelError, match="margins for unknown rows"):
        replace(robot, margins={"roof": 1.0})
