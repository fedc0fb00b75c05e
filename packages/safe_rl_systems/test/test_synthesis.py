"""Synthesis: the commutant by hand, the inequality and the evolution on small problems."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safe_rl_systems.robot import ROBOTS
from safe_rl_systems.verification import polish as polishing
from safe_rl_systems.verification.base_set import Settings, prove
from safe_rl_systems.verification.lmi import closure, commutant
from safe_rl_systems.verification.polish import Wish, polish, with_design
from safe_rl_systems.verification.published import published_problem
from safe_rl_systems.verification.synthesis import (
    constants,
    first_design,
    sampled_slopes,
    symmetry_group,
)

SWAP = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def lane() -> tuple:
    """The published plant with a little disturbance; (py, v, theta), (accel, turn_rate)."""
    problem = published_problem(ROBOTS["unicycle_lane_paper"](), 0.3)
    problem = replace(
        problem,
        disturbance=np.array([0.003, 0.01, 0.001]),
        tracking_error=np.array([0.01, 0.03, 0.01]),
    )
    extent, drive = np.array([1.7, 4.0, 0.9]), np.array([4.9, 0.99])
    return problem, Wish(extent, drive, 0.01, symmetry_group(problem))


def test_the_commutant_of_a_swap_by_hand() -> None:
    group = closure([(SWAP, np.eye(1))])
    assert len(group) == 2
    basis_q, basis_y = commutant(group, 3, 1)
    assert len(basis_q) == 4  # q00 = q11, q01, q02 = q12, q22
    assert len(basis_y) == 2  # y0 = y1, y2
    for b in basis_q:
        assert np.array_equal(SWAP @ b @ SWAP.T, b) and np.array_equal(b, b.T)


def test_the_lane_reflection_decouples_the_speed() -> None:
    problem, wish = lane()
    basis_q, basis_y = commutant(wish.group, 3, 2)
    assert len(basis_q) == 4 and len(basis_y) == 3
    assert not any(b[1, 0] or b[1, 2] for b in basis_q)


def test_evolution_finds_the_minimum_of_a_skewed_bowl() -> None:
    target = np.array([1.0, -2.0, 0.5, 3.0])
    scale = np.array([1.0, 10.0, 0.3, 3.0])
    found, cost = polishing._evolve(
        lambda x: float(((scale * (x - target)) ** 2).sum()), np.zeros(4), 0.5, 0
    )
    assert cost < 1e-3
    assert found == pytest.approx(target, abs=0.1)


def test_sampled_slopes_start_with_the_linearisation() -> None:
    problem, wish = lane()
    to_e, to_v = sampled_slopes(problem, 0.4 * wish.extent, 0.4 * wish.drive)[0]
    assert to_e == pytest.approx(np.array([[1, 0, 0.25], [0, 1, 0], [0, 0, 1]]), abs=1e-9)
    assert to_v == pytest.approx(np.array([[0, 0], [0.05, 0], [0, 0.05]]), abs=1e-9)


def test_a_design_is_found_improved_and_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polishing, "_ROUNDS", 2)
    monkeypatch.setattr(polishing, "_GENERATIONS", 15)
    monkeypatch.setattr(polishing, "_CLIMB_SAMPLES", 2_000)
    problem, wish = lane()
    start = first_design(problem, wish, 0.05)
    assert start is not None
    assert np.all(np.sqrt(np.diag(start.spread)) <= 1.01 * wish.extent)
    better = polish(problem, wish, start)
    proof = prove(with_design(problem, better, None), Settings((4, 4), workers=1, samples=5_000))
    assert proof.proved
    assert proof.problem.volume > 20.0 * problem.volume
    data = json.loads(constants(proof, "make it", 0))
    assert np.array_equal(data["base_gain"], proof.problem.gain)
    assert np.array_equal(data["base_factor"], proof.problem.factor)
