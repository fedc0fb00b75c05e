"""Synthesis: the commutant by hand, the inequality and the evolution on small problems."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import CertificateError
from safe_rl_systems.robot import ROBOTS
from safe_rl_systems.verification import polish as polishing
from safe_rl_systems.verification.base_set import Settings, prove
from safe_rl_systems.verification.falsifier import worst_step
from safe_rl_systems.verification.lmi import Design, closure, commutant
from safe_rl_systems.verification.polish import Wish
from safe_rl_systems.verification.published import published_problem, redesigned_problem
from safe_rl_systems.verification.synthesis import (
    OPTIONS,
    Start,
    constants,
    first_design,
    problem_of,
    sampled_slopes,
    symmetry_group,
    synthesise,
)

MODELS = Path(__file__).resolve().parents[3] / "models"
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


def rest(name: str) -> tuple[float, ...]:
    """The input at the equilibrium: hover, or straight on."""
    return (9.81, 0.0, 0.0, 0.0) if name.startswith("quadrotor") else (0.0, 0.0)


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

    def bowl(x: np.ndarray) -> float:
        return float(((scale * (x - target)) ** 2).sum())

    evolution = polishing._Evolution(np.zeros(4), 0.5, 0)
    _, early = evolution.run(bowl, 40)
    found, cost = evolution.run(bowl, 60)
    assert cost < 1e-6 < early
    assert found == pytest.approx(target, abs=1e-2)


def test_evolution_believes_a_cost_that_has_grown() -> None:
    evolution = polishing._Evolution(np.zeros(2), 0.5, 0)
    evolution.run(lambda x: float((x**2).sum()), 30)
    found, cost = evolution.run(lambda x: float((x**2).sum()) + 10.0 * max(0.0, 1.0 - x[0]), 60)
    assert found[0] == pytest.approx(1.0, abs=0.05) and cost == pytest.approx(1.0, abs=0.1)


def test_derivatives_of_the_loop_are_its_difference_quotients() -> None:
    problem, wish = lane()
    trial = polishing._Trial(problem, wish, Design(problem.gain, np.diag(wish.extent**2)), 0)
    rng = np.random.default_rng(0)
    e, v = rng.uniform(-0.3, 0.3, (5, 3)), rng.uniform(-0.3, 0.3, (5, 2))
    s, w, h = np.broadcast_to(problem.schedule, (5, 2)), np.zeros((5, 3)), 1e-6
    to_v = trial._derivative(e, v, 2, 2)
    for j in range(2):
        step = h * np.eye(2)[j]
        ends = [problem.program("error_map", s, e, x, w) for x in (v + step, v - step)]
        assert to_v[:, :, j] == pytest.approx((ends[0] - ends[1]) / (2.0 * h), abs=1e-8)


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
    first = first_design(problem, wish, Start(), 0.05)
    assert first is not None
    assert np.all(np.sqrt(np.diag(first.spread)) <= 1.01 * wish.extent)
    settings = Settings((4, 4), workers=1, samples=5_000)
    proof = synthesise(problem, wish, Start(), settings, 0.05)
    assert proof.proved
    assert proof.problem.volume > 20.0 * problem.volume
    assert np.all(proof.problem.extent <= 1.01 * wish.extent)
    used = proof.nominal.value + proof.disturbance_norm + proof.estimate_norm
    assert used <= 1.0 - 0.5 * wish.gap
    data = json.loads(constants(proof, {"kept": 1, "base_gain": 2}, "make it"))
    assert data["kept"] == 1 and data["base_made"] == "make it"
    assert np.array_equal(data["base_gain"], proof.problem.gain)
    assert np.array_equal(data["base_factor"], proof.problem.factor)


def test_a_wish_that_contradicts_itself_is_refused() -> None:
    """A disturbance of 3 mm uses up more than a set of 5 cm may lose."""
    problem, wish = lane()
    narrow = replace(wish, extent=np.array([0.05, 4.0, 0.9]))
    with pytest.raises(CertificateError, match="no solution for extents"):
        synthesise(problem, narrow, Start(), Settings((4, 4), workers=1), 0.05)


@pytest.mark.parametrize("name", ["unicycle", "quadrotor"])
def test_the_problem_of_a_robot_is_that_of_its_bundle(name: str) -> None:
    bundle = Bundle.load(MODELS / f"{name}_robust")
    problem, period = problem_of(OPTIONS[name])
    certificate = bundle.robust
    assert period == bundle.period and problem.program.hash == bundle.program.hash
    assert np.array_equal(problem.disturbance, certificate.disturbance)
    assert np.array_equal(problem.gain, certificate.base.gain)
    assert np.array_equal(problem.factor, certificate.base.factor)
    # fewer sub-boxes, and sets a little larger than the one that was found
    measured, least = problem.tracking_error, certificate.tracking_error
    assert (measured >= (1.0 - 1e-9) * least).all() and (measured <= 1.2 * least).all()


def test_what_is_asked_for_fits_the_robots() -> None:
    for name, options in OPTIONS.items():
        system = ROBOTS[options.robot]().system
        room = [min(c.high - u, u - c.low) for c, u in zip(system.inputs, rest(name), strict=True)]
        assert len(options.drive) == len(room) and np.all(np.array(options.drive) < room)
        size = len(options.extent) + len(options.drive)
        for swap in options.swaps:
            assert sorted(np.abs(swap)) == list(range(1, size + 1))


@pytest.mark.parametrize("name", ["quadrotor", "unicycle"])
def test_our_sets_for_the_published_plants_are_proved(name: str) -> None:
    """As large as the benchmarks say; the quadrotor's proof takes cells, so that one is shrunk."""
    robot = ROBOTS[OPTIONS[f"{name}_paper"].robot]()
    ours = redesigned_problem(robot, f"{name}_paper")
    published = published_problem(robot, 5.4 if name == "quadrotor" else 1.05)
    assert ours.volume > 10.0 * published.volume
    assert worst_step(ours, samples=20_000).value < 0.995
    splits = (4,) * len(ours.cell_directions)
    smaller = ours.scaled(0.4) if name == "quadrotor" else ours
    proof = prove(smaller, Settings(splits, workers=1, max_cells=5_000, samples=5_000))
    assert proof.proved
