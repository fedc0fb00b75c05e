"""The batched kernel made from a robot is the one made from its bundle."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from safe_rl_core.bundle import Bundle
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.build import batch_kernel, robot_of

MODELS = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize("name", ["quadrotor_powerloop_paper", "unicycle_lane", "unicycle_robust"])
def test_robot_and_bundle_decide_alike(name: str) -> None:
    """Horizon, box, scale, margins and class-K shares all enter the decisions and rows."""
    robot = robot_of(MODELS / name)
    own, shipped = batch_kernel(robot, threads=2), BatchKernel.of(Bundle.load(MODELS / name))
    assert (own.n, own.m, own.horizon) == (shipped.n, shipped.m, robot.horizon)
    assert own.num_rows == shipped.num_rows and own.threads == 2
    rng = np.random.default_rng(0)
    x = shipped.evaluate(
        "operating_state", rng.uniform(-1.0, 1.0, (4000, robot.task.operating_dimension))
    )
    x = x[shipped.way_out(x) >= 0.0][:60]
    assert len(x) > 20
    low, high = np.array([(c.low, c.high) for c in robot.system.inputs]).T
    proposed = rng.uniform(low - 1.0, high + 1.0, (len(x), own.m))
    found, expected = (k.decide(x, proposed, with_rows=True) for k in (own, shipped))
    for field in fields(found):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert np.allclose(a, b, rtol=0, atol=1e-9), field.name
