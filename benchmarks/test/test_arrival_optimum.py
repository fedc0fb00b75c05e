"""The enclosure of the optimum on small grids, against brute force and by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safe_rl_systems.backup.learned import save_backup
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_systems.systems import LaneUnicycle
from safe_rl_training.arrival_tuning import Gains
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import arrival_optimum as optimum
import arrival_pictures as pictures

SHAPE = (31, 25, 31)


@pytest.fixture(scope="module")
def robot() -> Robot:
    torch.set_num_threads(1)
    return ROBOTS[optimum.ROBOT]()


@pytest.fixture(scope="module")
def lattice(robot: Robot) -> optimum.Lattice:
    return optimum.Lattice.of(robot, SHAPE)


def test_the_half_grid_stands_for_the_whole(lattice: optimum.Lattice) -> None:
    x = lattice.points()
    assert float(x[:, 0].min()) == 0.0 and len(x) == 16 * 25 * 31
    assert lattice.share(torch.ones(len(x), dtype=torch.bool)) == pytest.approx(1.0)
    # py = 0 is one layer of 31, each other stored layer stands for two
    assert lattice.share(x[:, 0] == 0.0) == pytest.approx(1.0 / 31.0)
    assert lattice.share(x[:, 0] > 1.7) == pytest.approx(2.0 / 31.0)


def test_interpolation_is_exact_for_linear_values_and_mirrors(lattice: optimum.Lattice) -> None:
    x = lattice.points()
    values = (x @ x.new_tensor([0.3, -0.2, 0.7]) + 1.0).reshape(lattice.shape).float()
    y = x.new_tensor([[0.71, 3.33, -0.44], [-0.71, 3.33, 0.44]])
    expected = 0.3 * 0.71 - 0.2 * 3.33 - 0.7 * 0.44 + 1.0
    assert lattice.at(values, lattice.places(y)).numpy() == pytest.approx(expected, abs=1e-5)


def test_values_keep_the_signs_of_the_sets(robot: Robot, lattice: optimum.Lattice) -> None:
    x = lattice.points()
    first, *others = optimum.values(lattice, 3, 3)
    inside = (robot.safe_set(x).amin(-1) >= 0.0) & (robot.base_set(x)[:, 0] >= 0.0)
    assert inside.any() and torch.equal(first.reshape(-1) >= 0.0, inside)
    for before, after in zip((first, *others), others, strict=False):
        assert bool((after >= before).all())


def test_one_step_against_brute_force(robot: Robot) -> None:
    """From which of many states near B does one of 21² inputs lead into it?"""
    lattice = optimum.Lattice.of(robot, (41, 61, 41))
    x = lattice.points()
    u = optimum.inputs(robot, 21)
    near = robot.base_set(x)[:, 0] > -3.0
    after = robot.system.step(x[near][:, None], u)
    arrives = (robot.base_set(after)[..., 0] >= 0.0).any(1)
    arrives &= robot.safe_set(x[near]).amin(-1) >= 0.0
    within = optimum.reachable(lattice, 1, optimum.end_cells(robot, (12, 8)))[near]
    policy = optimum.greedy(lattice, list(optimum.values(lattice, 1, 5)), 5)
    found = optimum.reached_by(lattice, policy, 1, near)[near]
    assert 20 < int(arrives.sum()) < len(arrives)
    assert not bool((arrives & ~within).any())
    assert int((within & ~arrives).sum()) < 0.25 * int(arrives.sum())
    assert not bool((found & ~(arrives | (robot.base_set(x[near])[:, 0] >= 0.0))).any())
    assert int(found.sum()) > 0.9 * int(arrives.sum())


def test_bounds_enclose_and_random_policies_stay_within(
    robot: Robot, lattice: optimum.Lattice
) -> None:
    (answer,) = optimum.enclose(lattice, (12,), 3, (8, 6))
    assert answer.backup < answer.reached <= answer.reachable < 3.0 * answer.reached
    assert answer.flags.sum() > 0 and lattice.share(answer.flags) == answer.reached
    within = optimum.reachable(lattice, 12, optimum.end_cells(robot, (8, 6)))
    generator = torch.Generator().manual_seed(1)
    everywhere = torch.ones_like(within)
    for gain in (0.5, 1.0, 2.0):

        def noisy(x: Tensor, _: int, gain: float = gain) -> Tensor:
            bang = torch.sign(torch.randn(len(x), 2, generator=generator)).double()
            return robot.backup_policy(gain * x) + 0.3 * bang * x.new_tensor([5.0, 1.0])

        def inside_box(x: Tensor, k: int, policy: object = noisy) -> Tensor:
            return policy(x, k).clamp(x.new_tensor([-5.0, -1.0]), x.new_tensor([5.0, 1.0]))

        found = optimum.reached_by(lattice, inside_box, 12, everywhere)
        assert found.any() and not bool((found & ~within).any())


def test_end_cells_cover_the_base_set(robot: Robot) -> None:
    cells = optimum.end_cells(robot, (6, 4))
    generator = torch.Generator().manual_seed(0)
    w = 2.0 * torch.rand(20_000, 3, generator=generator).double() - 1.0
    x = w * w.new_tensor([0.25, 0.4, 0.13]) + w.new_tensor([0.0, 5.0, 0.0])
    x = x[robot.base_set(x)[:, 0] >= 0.0].numpy()
    covered = np.zeros(len(x), bool)
    for cell in cells:
        bounds = zip(x.T, (cell.py, cell.v, cell.theta), strict=True)
        covered |= np.all([(low <= c) & (c <= high) for c, (low, high) in bounds], 0)
    assert len(x) > 1000 and covered.all()


@dataclass(frozen=True)
class _Drifting(LaneUnicycle):
    def step(self, x: Tensor, u: Tensor) -> Tensor:
        return super().step(x, u) + x.new_tensor([1e-3, 0.0, 0.0])


def test_another_plant_is_refused(robot: Robot) -> None:
    with pytest.raises(SystemExit, match="symmetric"):
        optimum.require_structure(replace(robot, system=_Drifting()))


def test_slices_ask_the_same_bound(robot: Robot, lattice: optimum.Lattice) -> None:
    cut = pictures.lane_slices(robot)[0]
    x = cut.mesh(9)
    found = pictures.possible(robot, x, (8, 6)).reshape(9, 9)
    rest = int(found.shape[0] / 2)
    assert found[rest, rest] and not found[-1, -1]  # at rest; at the edge and heading out
    assert torch.equal(found, found.flip(0, 1))


def test_backups_of_a_run_are_read(robot: Robot, tmp_path: Path) -> None:
    names = Gains.of(robot).names
    tuning = {name: {"hand_set": 1.0, "tuned": 2.0 + i} for i, name in enumerate(names)}
    (tmp_path / "record.json").write_text(json.dumps({"tuning": tuning}))
    nothing = ((torch.zeros(2, 3).double(), torch.zeros(2).double()),)
    save_backup(tmp_path / "backup.npz", robot, nothing)
    found = pictures.backups(robot, tmp_path)
    x = torch.tensor([[0.2, 5.5, 0.05]]).double()
    analytic, learned, tuned = (
        found[c].backup_policy(x) for c in (pictures.ANALYTIC, pictures.LEARNED, pictures.TUNED)
    )
    assert torch.equal(analytic, learned)
    # outside B; the gains in the order of K: accel on v 2, turn on py 3 and on theta 4
    by_hand = [-2.0 * 0.5, -(3.0 * 0.2 + 4.0 * 0.05)]
    assert robot.base_set(x).item() < 0.0 and tuned[0].tolist() == pytest.approx(by_hand)
    (tmp_path / "record.json").write_text(json.dumps({"tuning": None}))
    assert set(pictures.backups(robot, tmp_path)) == {pictures.LEARNED, pictures.ANALYTIC}
