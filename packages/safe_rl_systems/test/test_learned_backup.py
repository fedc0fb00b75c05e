"""The learned backup: a correction of the analytic law, in its box, traced, compiled, stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel import Compiled
from safe_rl_core.kernel.kernel import self_test_points
from safe_rl_systems.backup import load_backup, save_backup, with_backup
from safe_rl_systems.backup.learned import (
    Layers,
    analytic_recovery,
    bounded_states,
    feature_size,
    fingerprint,
)
from safe_rl_systems.build import robot_program
from safe_rl_systems.quaternion import normalised
from safe_rl_systems.robot import ROBOTS, Robot


def layers_for(robot: Robot, width: int = 16, last: float = 0.4) -> Layers:
    """Random layers; `last` scales the last one."""
    generator = torch.Generator().manual_seed(3)
    sizes = (feature_size(robot), width, width, len(robot.system.inputs))
    scales = (0.5, 0.5, last)
    return tuple(
        (
            scale * torch.randn(o, i, generator=generator, dtype=torch.float64),
            0.1 * scale * torch.randn(o, generator=generator, dtype=torch.float64),
        )
        for i, o, scale in zip(sizes, sizes[1:], scales, strict=False)
    )


def operating_states(robot: Robot, count: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    size = robot.task.operating_dimension
    w = 2.0 * torch.rand(count, size, generator=generator, dtype=torch.float64) - 1.0
    return robot.task.operating_state(w)


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_zero_correction_is_the_analytic_law_outside_the_base_set(name: str) -> None:
    robot = ROBOTS[name]()
    learned = with_backup(robot, layers_for(robot, last=0.0))
    x = operating_states(robot)
    outside = (robot.base_set(x) < 0.0).any(-1)
    assert outside.sum() > 100
    torch.testing.assert_close(
        learned.backup_policy(x)[outside], robot.backup_policy(x)[outside], rtol=0.0, atol=1e-12
    )


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_torch_interpreter_and_kernel_agree(name: str) -> None:
    robot = ROBOTS[name]()
    learned = with_backup(robot, layers_for(robot))
    program = robot_program(learned)
    compiled = Compiled(program)  # which tests its tangents itself
    (x,) = self_test_points(program)["backup_policy"]
    exact = learned.backup_policy(torch.from_numpy(x)).numpy()
    fast = np.array([compiled("backup_policy", row) for row in x])
    assert np.abs(program("backup_policy", x) - exact).max() <= 1e-10
    assert np.abs(fast - exact).max() <= 1e-10
    assert np.abs(exact - robot.backup_policy(torch.from_numpy(x)).numpy()).max() > 0.1
    dense = [i for i in program.functions["backup_policy"].instructions if i.op == "dense"]
    assert dense, "the network must stay dense layers, which the kernel runs fast"


@pytest.mark.parametrize("name", ["quadrotor_powerloop", "quadrotor_robust", "unicycle_robust"])
def test_corrections_stay_in_the_box(name: str) -> None:
    robot = ROBOTS[name]()
    learned = with_backup(robot, layers_for(robot, last=50.0))
    u = learned.backup_policy(operating_states(robot))
    reserved = getattr(robot.backup_policy, "low", None) is not None
    low = robot.backup_policy.low if reserved else [c.low for c in robot.system.inputs]
    high = robot.backup_policy.high if reserved else [c.high for c in robot.system.inputs]
    assert bool((u >= u.new_tensor(low)).all() and (u <= u.new_tensor(high)).all())
    assert bool((u == u.new_tensor(high)).any()), "the whole box is used"


def test_base_controller_acts_inside_the_base_set() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    learned = with_backup(robot, layers_for(robot, last=5.0))
    inside = torch.tensor([[0.05, 5.1, 0.01]], dtype=torch.float64)
    assert bool((robot.base_set(inside) > 0.0).all())
    torch.testing.assert_close(learned.backup_policy(inside), robot.base_controller(inside))
    outside = torch.tensor([[0.9, 5.1, 0.01]], dtype=torch.float64)
    assert bool((learned.backup_policy(outside) != robot.base_controller(outside)).any())


def test_attitude_and_its_double_get_the_same_correction() -> None:
    robot = ROBOTS["quadrotor_powerloop"]()
    learned = with_backup(robot, layers_for(robot))
    x = operating_states(robot)
    twin = torch.cat((x[:, :6], -x[:, 6:]), -1)
    assert torch.equal(learned.backup_policy(x), learned.backup_policy(twin))
    torch.testing.assert_close(normalised(twin[:, 6:]).norm(dim=-1), torch.ones(len(x)).double())


def test_network_sees_position_only_where_the_safe_set_limits_it() -> None:
    assert bounded_states(ROBOTS["quadrotor_powerloop_paper"]()) == {2}
    assert bounded_states(ROBOTS["quadrotor_powerloop"]()) == {0, 1, 2}
    assert bounded_states(ROBOTS["unicycle_lane"]()) == {1, 2, 3}
    robot = ROBOTS["quadrotor_powerloop_paper"]()
    learned = with_backup(robot, layers_for(robot))
    x = operating_states(robot)
    moved = x + x.new_tensor([1.0, -2.0, *[0.0] * 8])
    assert torch.equal(learned.backup_policy(x), learned.backup_policy(moved))


def test_learned_backup_can_be_replaced() -> None:
    robot = ROBOTS["quadrotor_robust"]()
    once = with_backup(robot, layers_for(robot))
    again = with_backup(once, layers_for(robot, last=0.0))
    assert analytic_recovery(again) == analytic_recovery(robot)
    assert fingerprint(once) == fingerprint(robot)


def test_layers_are_stored_exactly_and_bound_to_the_robot(tmp_path: Path) -> None:
    robot, path = ROBOTS["unicycle_lane"](), tmp_path / "backup.npz"
    layers = layers_for(robot)
    save_backup(path, robot, layers)
    for stored, given in zip(load_backup(path, robot), layers, strict=True):
        assert torch.equal(stored[0], given[0]) and torch.equal(stored[1], given[1])
    with pytest.raises(ModelError, match="its robot is 'unicycle_lane'"):
        load_backup(path, ROBOTS["unicycle_robust"]())
    other = replace(robot, system=replace(robot.system, period=0.04))
    with pytest.raises(ModelError, match="fingerprint"):
        load_backup(path, other)
    with pytest.raises(ModelError, match="no learned backup"):
        load_backup(tmp_path / "none.npz", robot)


def test_wrong_layers_are_refused() -> None:
    robot = ROBOTS["unicycle_lane"]()
    with pytest.raises(ModelError, match="expected 10 inputs"):
        with_backup(ROBOTS["quadrotor_powerloop_paper"](), layers_for(robot))
    with pytest.raises(ModelError, match="16 outputs, the robot 2 inputs"):
        with_backup(robot, layers_for(robot)[:2])
    plain = SimpleNamespace(period=0.05, states=robot.system.states, inputs=robot.system.inputs)
    with pytest.raises(ModelError, match="no method features"):
        with_backup(replace(robot, system=plain), layers_for(robot))  # type: ignore[arg-type]
