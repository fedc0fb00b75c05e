"""Base sets: slopes and multipliers against slow twins, proofs, claims that must fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safe_rl_core.errors import CertificateError, ModelError, ProgramError
from safe_rl_core.program import Program, parse
from safe_rl_systems.charts import LaneChart
from safe_rl_systems.robot import ROBOTS
from safe_rl_systems.systems import Unicycle
from safe_rl_systems.trace import trace_program
from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.base_set import BaseProof, Settings, prove
from safe_rl_systems.verification.ellipsoid import Ellipsoid, positive_definite, worst_over_box
from safe_rl_systems.verification.falsifier import worst_step
from safe_rl_systems.verification.interval import Interval, point
from safe_rl_systems.verification.levels import largest_level
from safe_rl_systems.verification.multipliers import Slabs, find_multipliers
from safe_rl_systems.verification.published import published_problem
from safe_rl_systems.verification.search_state import fingerprint
from safe_rl_systems.verification.slopes import Box, slopes
from safe_rl_systems.verification.tiling import Tiling

GAIN = np.array([[0.0, 0.0, -0.94], [-0.45, -1.45, 0.0]])
FACTOR = np.array([[0.62, 0.0, 0.0], [0.68, 1.56, 0.0], [0.0, 0.0, 0.21]])
DISTURBANCE = np.array([0.00305, 0.001, 0.01])
TRACKING_ERROR = np.array([0.0198, 0.0112, 0.0404])
QUICK = Settings((4, 4), workers=1, max_cells=3_000, samples=3_000)

OPERATIONS = """safe_rl_program 1
function f(a:2, b:2)
v0 = input a 0
v1 = input a 1
v2 = input b 0
v3 = input b 1
v4 = const 0.7
{body}
return r
"""
BODIES = {
    "mul": "r = mul v0 v2",
    "square": "v5 = add v0 v2\nr = mul v5 v5",
    "div": "v5 = const 3.0\nv6 = add v5 v1\nv7 = add v0 v2\nr = div v7 v6",
    "sqrt": "v5 = const 2.0\nv6 = mul v0 v0\nv7 = add v5 v6\nr = sqrt v7",
    "sin": "v5 = mul v0 v2\nv6 = add v5 v3\nr = sin v6",
    "cos": "v5 = add v0 v2\nr = cos v5",
    "exp": "v5 = sub v0 v3\nr = exp v5",
    "log": "v5 = const 3.0\nv6 = add v5 v2\nr = log v6",
    "tanh": "v5 = mul v1 v4\nr = tanh v5",
    "asin": "v5 = const 0.3\nv6 = mul v1 v5\nr = asin v6",
    "atan": "v5 = add v1 v3\nr = atan v5",
    "atan2": "v5 = const 2.0\nv6 = add v5 v2\nr = atan2 v0 v6",
    "abs": "v5 = add v0 v3\nr = abs v5",
    "min": "v5 = mul v0 v1\nr = min v5 v2",
    "max": "v5 = mul v0 v1\nr = max v5 v3",
    "where": "v5 = lt v0 v2\nr = where v5 v1 v3",
    "floor": "v5 = floor v0\nv6 = mul v1 v2\nr = add v5 v6",
    "sign": "v5 = add v0 v4\nv6 = sign v5\nr = mul v6 v1",
    "neg": "v5 = neg v0\nv6 = sub v5 v3\nr = mul v6 v6",
}


def lane_problem(period: float = 0.05) -> BaseProblem:
    """The robust unicycle about cruise speed with a design of this file."""
    system = Unicycle(period=period)
    chart = LaneChart(system)
    inputs = (("s", 4), ("e", 3), ("v", 2), ("w", 3))
    program = trace_program({"error_map": (chart.error_map, inputs)})
    return BaseProblem(
        program=program,
        schedule=np.array([0.0, 5.0, 0.0, 0.0]),
        input=np.zeros(2),
        input_low=np.array([-5.0, -1.0]),
        input_high=np.array([5.0, 1.0]),
        gain=GAIN,
        factor=FACTOR,
        disturbance=DISTURBANCE,
        tracking_error=TRACKING_ERROR,
        cell_directions=np.eye(3)[1:],
        symmetries=((-1, -1, 1, 1, -1, -1, 1, 1, -1),),
    )


def tightest(problem: BaseProblem, room: float) -> Settings:
    """Settings under which a proof has to reach the worst value found, up to `room`."""
    free = prove(problem, QUICK)
    return replace(QUICK, margin=free.contraction - free.nominal.value - room)


@pytest.mark.parametrize("name", sorted(BODIES))
@pytest.mark.parametrize("centered", [False, True])
def test_slopes_enclose_every_difference(name: str, centered: bool) -> None:
    program = Program(parse(OPERATIONS.format(body=BODIES[name])), {})
    rng = np.random.default_rng(0)
    center = rng.uniform(-0.5, 0.5, (200, 4)) if centered else np.zeros((200, 4))
    low = rng.uniform(-1.0, 0.9, (200, 4))
    high = low + rng.uniform(0.0, 0.4, (200, 4))
    given = [
        Box(key, Interval(low[:, i : i + 2], high[:, i : i + 2]), point(center[:, i : i + 2]))
        for key, i in (("a", 0), ("b", 2))
    ]
    at_center, s = slopes(program, "f", {}, given)
    base = program("f", center[:, :2], center[:, 2:])
    assert np.all(at_center.contains(base))
    for _ in range(30):
        x = low + (high - low) * rng.choice((0.0, 1.0, rng.random()), low.shape)
        moved = (s @ (point(x) - point(center))[..., None])[..., 0]
        gap = program("f", x[:, :2], x[:, 2:]) - base
        assert np.all((moved.low <= gap + 1e-12) & (gap - 1e-12 <= moved.high))
    if name not in ("where", "floor", "sign"):  # a jump is unknown where a cell does not decide it
        assert np.all(np.isfinite(s.low))


def test_slopes_are_half_as_wide_as_derivatives() -> None:
    program = Program(parse(OPERATIONS.format(body="r = mul v0 v0")), {})
    box = Interval([[1.0, 0.0]], [[2.0, 0.0]])
    _, s = slopes(program, "f", {"b": np.zeros(2)}, [Box("a", box)])
    assert s.low[0, 0, 0] == pytest.approx(1.0) and s.high[0, 0, 0] == pytest.approx(2.0)


def test_slopes_of_parameters_leave_them_out() -> None:
    program = Program(parse(OPERATIONS.format(body="r = mul v0 v1")), {})
    box = Interval([[1.0, 3.0]], [[2.0, 4.0]])
    _, s = slopes(program, "f", {"b": np.zeros(2)}, [Box("a", box, seeds=(0,))])
    assert s.low[0, 0].tolist() == pytest.approx([3.0, 0.0])
    assert s.high[0, 0].tolist() == pytest.approx([4.0, 0.0])
    with pytest.raises(ProgramError, match="need its inputs"):
        slopes(program, "f", {}, [Box("a", box)])


def test_positive_definite_and_norms_by_hand() -> None:
    good, bad = np.diag([2.0, 1.0, 0.5]), np.diag([2.0, -1e-9, 0.5])
    flat = np.ones((3, 3))
    assert positive_definite(point(np.stack((good, bad, flat)))).tolist() == [True, False, False]
    wide = Interval(good - 0.6, good + 0.6)
    assert not positive_definite(wide)
    shape = Ellipsoid(np.array([[2.0, 0.0], [1.0, 4.0]]))
    exact = np.sqrt(np.diag(np.linalg.inv(shape.factor @ shape.factor.T)))
    reach = shape.reach(np.eye(2))
    assert np.all(reach >= exact) and reach == pytest.approx(exact, rel=1e-12)
    columns = point(np.array([[[1.0, 2.0], [0.0, 1.0]]]))
    assert worst_over_box(columns, np.array([1.0, 1.0])) == pytest.approx([np.sqrt(10.0)])
    with pytest.raises(CertificateError, match="lower triangular"):
        Ellipsoid(np.array([[1.0, 1.0], [0.0, 1.0]]))


def test_multipliers_bound_and_nearly_reach_the_maximum() -> None:
    """The dual bound lies above sampled values; with one slab it is exact (S-lemma)."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(40, 3, 3))
    matrix /= np.linalg.norm(matrix, ord=2, axis=(1, 2))[:, None, None]
    direction = np.array([[0.6, 0.0, 0.8]])
    center, half = rng.uniform(-0.8, 0.8, (40, 1)), np.full((40, 1), 0.2)
    slabs = Slabs(direction, center, half)
    _, t = find_multipliers(matrix, slabs, np.full(40, np.nan))
    y = rng.normal(size=(200_000, 3))
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    z = y @ direction[0]
    for i in range(40):
        inside = y[np.abs(z - center[i, 0]) <= half[i, 0]]
        sampled = ((inside @ matrix[i].T) ** 2).sum(1).max()
        assert sampled - 1e-6 <= t[i] <= 1.0 + 1e-3
        assert t[i] <= sampled + 0.01


def test_multipliers_of_a_cell_outside_the_ball_prove_anything() -> None:
    slabs = Slabs(np.array([[1.0, 0.0]]), np.array([[3.0]]), np.array([[0.5]]))
    _, t = find_multipliers(np.eye(2)[None], slabs, np.array([0.1]))
    assert t[0] <= 0.1


def test_the_unicycle_is_proved_and_its_leaves_cover_the_set() -> None:
    problem = lane_problem()
    proof = prove(problem, QUICK)
    assert proof.proved and not proof.advice
    total = proof.contraction + proof.disturbance_norm + proof.estimate_norm
    assert 0.99 < total <= 1.0
    assert np.all(problem.input_slack() >= 0.0)
    rng = np.random.default_rng(2)
    y = rng.normal(size=(5_000, 3))
    y *= rng.random((5_000, 1)) ** (1 / 3) / np.linalg.norm(y, axis=1, keepdims=True)
    e = np.linalg.solve(FACTOR.T, y.T).T
    z = e @ problem.cell_directions.T
    mirrored = z * np.array([-1.0, 1.0])
    low, high = proof.state.leaves_low, proof.state.leaves_high

    def in_a_leaf(x: np.ndarray) -> np.ndarray:
        return ((low <= x[:, None]) & (x[:, None] <= high)).all(2).any(1)

    assert np.all(in_a_leaf(z) | in_a_leaf(mirrored))
    s = np.broadcast_to(problem.schedule, (len(e), 4))
    after = problem.program("error_map", s, e, e @ GAIN.T, np.zeros_like(e))
    assert np.linalg.norm(after @ FACTOR, axis=1).max() <= proof.contraction


def test_the_bound_comes_close_to_the_worst_that_is_found() -> None:
    problem = lane_problem()
    assert prove(problem, tightest(problem, 3e-3)).proved


def test_what_is_false_is_never_proved() -> None:
    """Around a claim with next to no room every change for the worse is refused, with advice."""
    problem = lane_problem()
    used = 1.001 * (problem.drive + problem.reserve)
    problem = replace(problem, input_low=-used, input_high=used)
    settings = tightest(problem, 2e-3)
    assert prove(problem, settings).proved
    assert not prove(problem, replace(settings, margin=settings.margin + 2.1e-3)).proved
    worse = {
        "gain": replace(problem, gain=1.02 * GAIN),
        "lower gain": replace(problem, gain=0.97 * GAIN),
        "level": problem.scaled(1.05),
        "disturbance": replace(problem, disturbance=1.15 * DISTURBANCE),
        "tracking error": replace(problem, tracking_error=1.25 * TRACKING_ERROR),
        "period": replace(problem, program=lane_problem(0.045).program),
    }
    for name, claim in worse.items():
        proof = prove(claim, settings)
        assert proof.status == "open" and proof.advice, name


def test_a_saturating_gain_is_refused_with_the_state_that_saturates_it() -> None:
    proof = prove(replace(lane_problem(), gain=1.2 * GAIN), QUICK)
    assert proof.status == "open" and "input 0" in proof.advice
    worst = proof.worst
    asked = abs(float(1.2 * GAIN[0] @ (worst.e + worst.eta)))
    assert worst.before <= 1.0 and asked > 5.0 and abs(worst.input[0]) == 5.0


def test_an_interrupted_proof_is_taken_up_again(tmp_path: Path) -> None:
    problem, file = lane_problem(), tmp_path / "search.npz"
    hard = replace(tightest(problem, 3e-3), save_every_s=0.0)
    whole = prove(problem, hard)
    part = prove(problem, replace(hard, max_cells=1), state_file=file)
    assert part.status == "open" and len(part.state.open_low)
    seen: list[int] = []
    again = prove(problem, hard, lambda p: seen.append(p.cells), file)
    assert again.proved and seen[0] > part.state.cells > 0
    assert np.array_equal(again.state.leaves_low, whole.state.leaves_low)
    assert np.array_equal(again.state.multipliers, whole.state.multipliers)
    with pytest.raises(CertificateError, match="another problem"):
        prove(problem.scaled(0.9), hard, state_file=file)
    functions = dict(problem.program.functions)
    backup = replace(
        problem.program, functions={**functions, "backup_policy": functions["error_map"]}
    )
    seen.clear()
    same = prove(replace(problem, program=backup), hard, lambda p: seen.append(p.cells), file)
    assert same.proved and not seen, "of the program only the error map is searched"
    other = replace(functions["error_map"], outputs=functions["error_map"].outputs[::-1])
    program = replace(problem.program, functions={**functions, "error_map": other})
    changed = replace(problem, program=program, symmetries=())
    assert fingerprint(changed, (6,), 1e-3) != fingerprint(
        replace(changed, program=problem.program), (6,), 1e-3
    )
    file.write_bytes(b"no archive")
    with pytest.raises(CertificateError, match="no saved search"):
        prove(problem, hard, state_file=file)


def test_a_search_that_is_out_of_time_is_open() -> None:
    proof = prove(lane_problem(), replace(QUICK, max_seconds=0.0))
    assert proof.status == "open" and proof.state.cells == 0 and "cells are open" in proof.advice
    assert prove(lane_problem(), replace(QUICK, max_seconds=60.0)).proved


def test_several_workers_find_the_same_leaves() -> None:
    problem = lane_problem()
    alone, together = prove(problem, QUICK), prove(problem, replace(QUICK, workers=2))
    assert together.proved
    assert np.array_equal(alone.state.leaves_low, together.state.leaves_low)
    assert np.array_equal(alone.state.multipliers, together.state.multipliers)


def test_a_wrong_symmetry_is_refused() -> None:
    problem = lane_problem()
    with pytest.raises(CertificateError, match="does not commute"):
        replace(problem, symmetries=((-1, -1, -1, -1, -1, -1, 1, 1, -1),))
    with pytest.raises(CertificateError, match="K and L do not respect"):
        replace(problem, symmetries=((-1, 1, 1, 1, -1, -1, 1, 1, -1),))
    with pytest.raises(CertificateError, match="must be 9 signs"):
        replace(problem, symmetries=((-1, -1, 1),))


def test_bad_problems_and_settings_are_refused() -> None:
    problem = lane_problem()
    with pytest.raises(CertificateError, match=r"gain must have shape \(2, 3\)"):
        replace(problem, gain=GAIN[:1])
    with pytest.raises(CertificateError, match="independent rows"):
        replace(problem, cell_directions=np.ones((2, 3)))
    with pytest.raises(CertificateError, match="must be >= 0"):
        replace(problem, disturbance=-DISTURBANCE)
    with pytest.raises(CertificateError, match="cell_splits needs 2 numbers"):
        prove(problem, Settings((4,), workers=1))
    with pytest.raises(CertificateError, match="0 < low < high"):
        largest_level(problem.scaled, QUICK, 2.0, 1.0)
    with pytest.raises(ModelError, match="no published regulator"):
        published_problem(ROBOTS["unicycle_robust"](), 1.0)


def test_thin_cells_are_kept_and_mirrored_ones_are_not() -> None:
    tiling = Tiling(lane_problem())
    r = tiling.reach
    low = np.array([[-r[0], 0.0], [0.0, 0.0], [0.97 * r[0], 0.9 * r[1]]])
    high = np.array([[0.0, r[1]], [r[0], r[1]], [r[0], r[1]]])
    assert tiling.needed(low, high).tolist() == [False, True, False]


def test_the_published_unicycle_set_is_proved_and_its_largest_level_found() -> None:
    robot = ROBOTS["unicycle_lane_paper"]()
    found = largest_level(lambda c: published_problem(robot, c), QUICK, 0.3, 1.4, 0.04)
    assert 1.0 < found.level < 1.05 < found.next_level < 1.1  # where the acceleration saturates
    assert found.proof.proved and "input 0" in found.obstacle.advice
    robust = prove(lane_problem(), QUICK)
    assert robust.problem.volume > 50.0 * found.proof.problem.volume


def test_the_published_quadrotor_level_is_refuted_by_a_real_state() -> None:
    robot = ROBOTS["quadrotor_powerloop_paper"]()
    proof = prove(published_problem(robot, 8.0), Settings((2,) * 4, workers=1, samples=20_000))
    assert proof.status == "refuted" and "not invariant" in proof.advice
    e = proof.worst.e
    vector = -0.5 * e[4:7]
    q = np.concatenate(([np.sqrt(1.0 - vector @ vector)], vector))
    x = torch.from_numpy(np.concatenate(([0.0, 0.0, 2.0 + e[0]], e[1:4], q)))
    base = robot.base_controller
    assert float(base.level(x)) <= 8.0
    assert float(base.level(robot.system.step(x, base(x)))) > 8.1


def test_a_small_published_quadrotor_level_is_proved() -> None:
    robot = ROBOTS["quadrotor_powerloop_paper"]()
    proof: BaseProof = prove(
        published_problem(robot, 0.5), Settings((2,) * 4, workers=1, samples=20_000)
    )
    assert proof.proved
    assert proof.nominal.value < proof.contraction


@pytest.mark.parametrize("name", ["quadrotor_powerloop_paper", "unicycle_lane_paper"])
def test_the_published_error_map_is_the_robots_step(name: str) -> None:
    robot = ROBOTS[name]()
    problem = published_problem(robot, 1.0)
    k, m = len(problem.factor), len(problem.input)
    rng = np.random.default_rng(3)
    e, v = rng.uniform(-0.5, 0.5, (200, k)), rng.uniform(-3.0, 3.0, (200, m))
    w = rng.uniform(-0.1, 0.1, (200, k))
    if k == 7:
        vector = -0.5 * e[:, 4:]
        q = np.column_stack((np.sqrt(1.0 - (vector**2).sum(1)), vector))
        x = np.column_stack((np.zeros((200, 2)), 2.0 + e[:, :1], e[:, 1:4], q))
    else:
        x = e + np.array([0.0, 5.0, 0.0])
    after = robot.system.step(torch.from_numpy(x), torch.from_numpy(problem.input + v))
    expected = robot.base_controller.error(after).numpy() + w
    s = np.broadcast_to(problem.input, (200, m))
    assert problem.program("error_map", s, e, v, w) == pytest.approx(expected, abs=1e-12)


def test_the_falsifier_finds_what_is_there() -> None:
    """e⁺ = 0.5 e, but 1.2 e where e_0 > 0.95: a cap that few random samples meet."""
    text = """safe_rl_program 1
function error_map(s:1, e:2, v:1, w:2)
v0 = input e 0
v1 = input e 1
v2 = input w 0
v3 = input w 1
v4 = const 0.5
v5 = const 0.95
v6 = const 1.2
v7 = lt v5 v0
v8 = where v7 v6 v4
v9 = mul v8 v0
v10 = add v9 v2
v11 = mul v4 v1
v12 = add v11 v3
return v10 v12
"""
    problem = BaseProblem(
        program=Program(parse(text), {}),
        schedule=np.zeros(1),
        input=np.zeros(1),
        input_low=np.array([-1.0]),
        input_high=np.array([1.0]),
        gain=np.zeros((1, 2)),
        factor=np.eye(2),
        disturbance=np.array([0.05, 0.0]),
        tracking_error=np.zeros(2),
        cell_directions=np.eye(2),
    )
    step = worst_step(problem, perturbed=False)
    assert step.value == pytest.approx(1.2, abs=1e-3) and step.before <= 1.0
    assert worst_step(problem).value == pytest.approx(1.25, abs=1e-3)
    proof = prove(problem, QUICK)
    assert proof.status == "refuted" and proof.worst.e[0] > 0.95
