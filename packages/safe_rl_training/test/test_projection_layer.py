"""The batched projection against the core's, OSQP, a linear program, and finite differences."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import osqp
import pytest
import scipy.optimize
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safe_rl_core import Bundle
from safe_rl_core.adversary import make_proposer
from safe_rl_core.errors import ModelError
from safe_rl_core.loop import ModelPlant
from safe_rl_core.projection import TOLERANCE as PASSING
from safe_rl_core.projection import Projection
from safe_rl_core.shield import Shield
from safe_rl_core.shield_base import Reason
from safe_rl_training.projection_layer import ProjectionLayer, project, rows_of
from torch import Tensor

MODELS = Path(__file__).parents[3] / "models"
PAPER = ("unicycle_lane_paper", "quadrotor_powerloop_paper")
FLYING = ("unicycle_lane", "quadrotor_powerloop")


class Recorded:
    """Adversarial closed loops of one bundle: what the shield saw, and what it answered."""

    def __init__(self, name: str, episodes: int = 8, steps: int = 50) -> None:
        self.bundle = Bundle.load(MODELS / name)
        shield, plant = Shield(self.bundle), ModelPlant(self.bundle)
        rng = np.random.default_rng(0)
        states, proposals, self.results = [], [], []
        for episode in range(episodes):
            shield.reset()
            propose, x = make_proposer("adversarial", self.bundle, rng), plant.reset(episode)
            for _ in range(steps):
                u, predicted = propose(x, plant.time), shield.predict(x)
                result = shield.step(x, u)
                x = plant.step(result.action)
                if u is not None and np.isfinite(u).all():
                    states.append(predicted)
                    proposals.append(u)
                    self.results.append(result)
        self.states, self.u = np.array(states), torch.tensor(np.array(proposals))
        self.batch = rows_of(self.bundle.kernel(), self.states)
        scale = torch.tensor(self.bundle.input_scale)
        self.low, self.high = (
            torch.tensor(bound) / scale
            for bound in (self.bundle.input_low, self.bundle.input_high)
        )
        self.v_d = self.u / scale
        self.arguments = (self.v_d, self.batch.rows, self.batch.offsets, self.low, self.high)
        self.found = project(*self.arguments)


recorded = cache(Recorded)


def problems(
    seed: int, count: int, rows: int, m: int, *, spread: float = 1.0, tightest: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random unit rows; with a small `spread` those of an element are nearly parallel and nearly
    meet in a point, as rows of neighbouring nodes do.
    """
    rng = np.random.default_rng(seed)
    normals, common = rng.normal(size=(count, rows, m)), rng.normal(size=(count, 1, m))
    if spread < 1.0:
        normals = common + spread * normals
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    offsets = spread**2 * rng.uniform(-1.0, tightest, (count, rows))
    away, high = rng.uniform(0.0, 3.0, (count, 1)), rng.uniform(0.5, 2.0, m)
    v_d = away * rng.normal(size=(count, m))
    if spread < 1.0:
        meeting = 0.5 * high * rng.uniform(-1.0, 1.0, (count, m))
        offsets += np.einsum("brm,bm->br", normals, meeting)
        v_d = meeting - away * common[:, 0]
    return tuple(torch.from_numpy(a) for a in (v_d, normals, offsets, -high, high))


def with_box(rows: Tensor, offsets: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """All rows in the kernel's numbering: (B, R + 2m, m), (B, R + 2m)."""
    eye = torch.eye(len(low), dtype=rows.dtype)
    box, bounds = torch.cat((eye, -eye)), torch.cat((low, -high))
    count = len(rows)
    return (
        torch.cat((rows, box.expand(count, -1, -1)), 1),
        torch.cat((offsets, bounds.expand(count, -1)), 1),
    )


def slow_osqp(v_d: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    solver = osqp.OSQP()
    solver.setup(
        P=scipy.sparse.identity(len(v_d), format="csc"), q=-v_d, A=scipy.sparse.csc_matrix(a),
        l=b, u=np.full(len(b), np.inf), verbose=False, eps_abs=1e-9, eps_rel=1e-9,
        max_iter=400_000, polishing=True, check_termination=100,
    )  # fmt: skip
    result = solver.solve(raise_error=False)
    assert result.info.status == "solved", result.info.status
    return result.x


@pytest.mark.parametrize("name", [*PAPER, *FLYING])
def test_equals_the_projection_of_the_core(name: str) -> None:
    data = recorded(name)
    bundle, kernel = data.bundle, data.bundle.kernel()
    exact = Projection(kernel, data.low.numpy(), data.high.numpy())
    compared = 0
    for x, v_d, v, feasible in zip(
        data.states, data.v_d.numpy(), data.found.v.numpy(), data.found.feasible, strict=True
    ):
        rows = kernel.rows(x)
        row, slack = kernel.scan(v_d)
        if slack >= -PASSING:
            assert feasible and np.array_equal(
                v, np.clip(v_d, data.low.numpy(), data.high.numpy())
            )
            continue
        twin = exact(rows, v_d, row)
        assert feasible == (twin is not None)
        if twin is not None:
            assert np.abs(v - twin).max() <= 1e-6
            compared += 1
    assert compared > 100, bundle.name


@pytest.mark.parametrize("name", PAPER)
def test_equals_a_slow_osqp(name: str) -> None:
    data = recorded(name)
    a, b = with_box(*data.arguments[1:])
    moved = torch.nonzero(data.found.feasible & (data.found.iterations > 0))[:, 0]
    for k in moved[:: len(moved) // 12].tolist():
        twin = slow_osqp(data.v_d[k].numpy(), a[k].numpy(), b[k].numpy())
        assert np.abs(twin - data.found.v[k].numpy()).max() <= 1e-6


@pytest.mark.parametrize("name", PAPER)
def test_the_layer_answers_as_the_shield(name: str) -> None:
    """Where the shield neither blends nor gives up, its action is the layer's."""
    data = recorded(name)
    layer = ProjectionLayer.of(data.bundle)
    safe = layer(data.u, data.batch.rows, data.batch.offsets, data.batch.backup)
    kinds = set()
    for k, result in enumerate(data.results):
        action = safe.action[k].numpy()
        if result.reason is Reason.PROPOSAL_SAFE:
            assert np.array_equal(action, result.action) and not safe.projected[k]
        elif result.reason is Reason.PROJECTED:
            assert np.abs(action - result.action).max() <= 1e-6 and safe.projected[k]
            assert float(safe.squared_distance[k]) == pytest.approx(
                result.intervention**2, abs=1e-5
            )
        kinds.add(result.reason)
    assert {Reason.PROPOSAL_SAFE, Reason.PROJECTED} <= kinds


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(2, 6),
    rows=st.integers(1, 40),
    spread=st.sampled_from((1.0, 1e-1, 1e-3, 1e-5)),
    tightest=st.sampled_from((-0.1, 0.1, 0.5)),
)
def test_karush_kuhn_tucker(seed: int, m: int, rows: int, spread: float, tightest: float) -> None:
    """Primal, dual, complementary; and no answer only where a linear program finds none."""
    arguments = problems(seed, 8, rows, m, spread=spread, tightest=tightest)
    found, (all_rows, bounds) = project(*arguments), with_box(*arguments[1:])
    for k in range(8):
        a, b, v_d = all_rows[k].numpy(), bounds[k].numpy(), arguments[0][k].numpy()
        if not found.feasible[k]:
            assert room(a, b) <= 1e-8
            continue
        v, active = found.v[k].numpy(), found.active[k]
        assert np.all(a @ v >= b - 1e-9)
        chosen = active[active >= 0].numpy()
        assert np.all(np.abs(a[chosen] @ v - b[chosen]) <= 1e-9)
        _, rest = scipy.optimize.nnls(a[chosen].T, v - v_d) if len(chosen) else (0, abs(v - v_d))
        assert np.max(rest) <= 1e-7


def room(a: np.ndarray, b: np.ndarray) -> float:
    """The largest t with A v >= b + t for some v: negative if the rows contradict each other."""
    cost = np.zeros(a.shape[1] + 1)
    cost[-1] = -1.0
    result = scipy.optimize.linprog(
        cost, A_ub=np.hstack((-a, np.ones((len(a), 1)))), b_ub=-b, bounds=(None, None)
    )
    return float(result.x[-1])


def test_a_random_pool_has_both_kinds() -> None:
    """So that the property above is about something."""
    found = project(*problems(0, 200, 10, 3, tightest=0.5))
    assert 20 < int(found.feasible.sum()) < 180


def test_one_row_by_hand() -> None:
    v_d = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[[0.6, 0.8]]], dtype=torch.float64)
    b = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    bound = torch.full((2,), 5.0, dtype=torch.float64)
    found = project(v_d, a, b, -bound, bound)
    assert torch.allclose(found.v, torch.tensor([[0.6, 0.8]], dtype=torch.float64), atol=1e-15)
    assert found.iterations.tolist() == [1] and sorted(found.active[0].tolist()) == [-1, 0]
    found.v[0, 0].backward()
    assert v_d.grad is not None and b.grad is not None
    assert torch.allclose(v_d.grad, torch.tensor([[0.64, -0.48]], dtype=torch.float64))
    assert b.grad.item() == pytest.approx(0.6)


def away_from_changes(arguments: tuple[Tensor, ...]) -> Tensor:
    """Elements whose active set a small change does not alter: (B,) bool."""
    found, (a, b) = project(*arguments), with_box(*arguments[1:])
    slack = (a @ torch.nan_to_num(found.v)[..., None])[..., 0] - b
    good = found.feasible.clone()
    for k in torch.nonzero(found.feasible)[:, 0].tolist():
        chosen = found.active[k][found.active[k] >= 0]
        others = torch.ones(b.shape[1], dtype=torch.bool)
        others[chosen] = False
        good[k] &= bool((slack[k][others] > 1e-3).all())
        if len(chosen):
            normals = a[k][chosen]
            push = torch.linalg.lstsq(normals.T, (found.v[k] - arguments[0][k])[:, None]).solution
            good[k] &= bool((push > 1e-3).all())
            good[k] &= bool(torch.linalg.svdvals(normals)[-1] > 1e-2)
    return good


def compare_with_central_differences(arguments: tuple[Tensor, ...], seed: int) -> None:
    """Along random directions, for random weights of v, element by element."""
    *leaves, low, high = (t.clone() for t in arguments)
    leaves = [t.requires_grad_() for t in leaves]
    found = project(*leaves, low, high)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        moves = [torch.randn(t.shape, generator=generator).double() for t in leaves]
        weights = torch.randn(found.v.shape, generator=generator).double()
        grads = torch.autograd.grad((weights * found.v).sum(), leaves, retain_graph=True)
        claimed = sum((g * d).flatten(1).sum(1) for g, d in zip(grads, moves, strict=True))
        step = 1e-6
        ahead, behind = (
            project(*(t + s * d for t, d in zip(leaves, moves, strict=True)), low, high)
            for s in (step, -step)
        )
        measured = (weights * (ahead.v - behind.v)).sum(1) / (2.0 * step)
        assert torch.equal(ahead.active.sort().values, found.active.sort().values)
        torch.testing.assert_close(claimed, measured, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("m", [2, 3, 4, 6])
def test_derivatives_are_those_of_central_differences(m: int) -> None:
    arguments = problems(m, 1000, 10, m)
    keep = away_from_changes(arguments)
    *own, low, high = arguments
    own = [t[keep] for t in own]
    active = project(*own, low, high).active
    assert bool((active >= 10).any()) and bool(((active >= 0) & (active < 10)).any())
    assert bool((active < 0).all(-1).any()) and bool((active >= 0).all(-1).any())
    compare_with_central_differences((*own, low, high), m)


def test_derivatives_on_recorded_rows() -> None:
    data = recorded("quadrotor_powerloop_paper")
    keep = away_from_changes(data.arguments) & (data.found.iterations > 0)
    assert int(keep.sum()) > 20
    compare_with_central_differences(
        (*(t[keep] for t in data.arguments[:3]), data.low, data.high), 0
    )


def test_no_elements_are_no_problem() -> None:
    v_d, a, b, low, high = problems(0, 4, 6, 3)
    found = project(v_d[:0], a[:0], b[:0], low, high)
    assert found.v.shape == (0, 3) and found.feasible.shape == (0,)


def test_the_second_derivative_is_refused() -> None:
    v_d, a, b, low, high = problems(0, 4, 6, 3)
    found = project(v_d.requires_grad_(), a, b, low, high)
    (grad,) = torch.autograd.grad((found.v[found.feasible] ** 2).sum(), v_d, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_contradictions_are_found_and_stay_alone() -> None:
    """Pairs, triples, the box, rows without a normal, what is not a number; neighbours unmoved."""
    third = 2.0 * np.pi / 3.0
    star = [[np.cos(k * third), np.sin(k * third)] for k in range(3)]
    nan = float("nan")
    cases = [
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [0.5, -0.4, -9.0], False),
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [0.5, -0.5, -9.0], True),
        (star, [0.1, 0.1, 0.1], False),
        (star, [-0.1, -0.1, -0.1], True),
        ([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]], [1.5, -9.0, -9.0], False),
        ([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1.0, -9.0, -9.0], False),
        ([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [-1.0, 0.5, -9.0], True),
        ([[nan, 0.0], [1.0, 0.0], [0.0, 1.0]], [-1.0, 0.5, -9.0], False),
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [nan, 0.5, -9.0], False),
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [-9.0, 0.5, -9.0], True),
    ]
    a, b = (torch.tensor([case[k] for case in cases], dtype=torch.float64) for k in (0, 1))
    one = torch.ones(2, dtype=torch.float64)
    v_d = torch.tensor([[-0.3, 0.2]], dtype=torch.float64).repeat(len(cases), 1)
    v_d[-1, 0] = nan
    v_d.requires_grad_()
    found = project(v_d, a.requires_grad_(), b.requires_grad_(), -one, one)
    expected = [case[2] for case in cases[:-1]] + [False]
    assert found.feasible.tolist() == expected and int(found.iterations.max()) <= 3
    assert torch.equal(found.v.isfinite().all(-1), found.feasible)
    assert bool((found.active[~found.feasible] == -1).all())
    found.v.nan_to_num().sum().backward()
    for leaf in (v_d, a, b):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all()) and not leaf.grad[~found.feasible].any()


def test_duplicates_and_parallel_rows_change_nothing() -> None:
    v_d, a, b, low, high = problems(3, 200, 12, 4)
    once = project(v_d, a, b, low, high)
    looser = torch.cat((a, a, a), 1), torch.cat((b, b - 0.1, b), 1)
    thrice = project(v_d, *looser, low, high)
    assert torch.equal(once.feasible, thrice.feasible)
    torch.testing.assert_close(once.v, thrice.v, rtol=0, atol=1e-9, equal_nan=True)
    tilted = a + 1e-11 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0)).double()
    nearly = project(v_d, torch.cat((a, tilted), 1), torch.cat((b, b), 1), low, high)
    assert torch.equal(once.feasible, nearly.feasible)
    torch.testing.assert_close(once.v, nearly.v, rtol=0, atol=1e-8, equal_nan=True)


def test_a_tighter_parallel_row_replaces_the_active_one() -> None:
    """The second row depends on the first, which has to leave; one row stays."""
    a = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]]], dtype=torch.float64)
    b = torch.tensor([[0.1, 0.5, 0.2]], dtype=torch.float64)
    bound = torch.full((2,), 3.0, dtype=torch.float64)
    v_d = torch.tensor([[-1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    found = project(v_d, a, b, -bound, bound)
    torch.testing.assert_close(found.v, torch.tensor([[0.2, 2.0]], dtype=torch.float64))
    found.v.sum().backward()
    torch.testing.assert_close(v_d.grad, torch.tensor([[0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PAPER)
def test_projecting_twice_changes_nothing(name: str, dtype: torch.dtype) -> None:
    v_d, *rest = (t.to(dtype) for t in recorded(name).arguments)
    once = project(v_d, *rest)
    assert bool(once.feasible.any())
    v = torch.where(once.feasible[:, None], once.v, v_d)
    twice = project(v, *rest)
    assert torch.equal(twice.v[once.feasible], once.v[once.feasible])
    assert not twice.iterations[once.feasible].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_feasible_proposal_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    data = recorded("quadrotor_powerloop")
    layer = ProjectionLayer.of(data.bundle).to(dtype)
    rows, offsets, backup = (
        t.to(dtype) for t in (data.batch.rows, data.batch.offsets, data.batch.backup)
    )
    safe = layer(data.u.to(dtype), rows, offsets, backup)
    passed = safe.feasible & ~safe.projected
    assert int(passed.sum()) > 20
    assert torch.equal(safe.action[passed], data.u.to(dtype)[passed])
    assert not safe.squared_distance[passed].any()


def test_an_element_does_not_depend_on_its_batch() -> None:
    v_d, a, b, low, high = recorded("quadrotor_powerloop_paper").arguments
    whole = project(v_d, a, b, low, high)
    for chosen in (torch.randperm(len(v_d), generator=torch.Generator().manual_seed(1)), [7], [9]):
        part = project(v_d[chosen], a[chosen], b[chosen], low, high)
        assert torch.equal(part.v, whole.v[chosen])
        assert torch.equal(part.feasible, whole.feasible[chosen])
        assert torch.equal(part.iterations, whole.iterations[chosen])


@pytest.mark.parametrize("name", [*PAPER, *FLYING])
def test_float32_is_near_float64(name: str) -> None:
    """On the same, rounded, rows; v of the quadrotor reaches 39."""
    single = [t.float() for t in recorded(name).arguments]
    fast, slow = project(*single), project(*(t.double() for t in single))
    assert torch.equal(fast.feasible, slow.feasible) and fast.v.dtype == torch.float32
    torch.testing.assert_close(fast.v.double(), slow.v, rtol=0, atol=1e-4, equal_nan=True)


def test_gradients_through_the_layer() -> None:
    """Projected: along the row only. Passed: 1. Backup: none, but the distance pulls to it."""
    layer = ProjectionLayer([2.0, 4.0], [-2.0, -4.0], [2.0, 4.0])
    rows = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64).repeat(3, 1, 1)
    rows[2, 1] *= -1.0
    offsets = torch.tensor([[0.5, -9.0], [-9.0, -9.0], [0.5, 0.5]], dtype=torch.float64)
    u = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(3, 1).requires_grad_()
    backup = torch.tensor([[1.0, 2.0]], dtype=torch.float64).repeat(3, 1).requires_grad_()
    safe = layer(u, rows, offsets, backup)
    expected = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(safe.action, expected)
    assert safe.feasible.tolist() == [True, True, False]
    assert safe.projected.tolist() == [True, False, False]
    torch.testing.assert_close(safe.squared_distance, torch.tensor([0.25, 0.0, 0.3125]).double())
    (through,) = torch.autograd.grad(safe.action.sum(), u, retain_graph=True)
    assert through.tolist() == [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    pull, none = torch.autograd.grad(safe.squared_distance.sum(), (u, backup), allow_unused=True)
    assert pull.tolist() == [[-0.5, 0.0], [0.0, 0.0], [-0.5, -0.125]] and none is None


def test_rows_are_those_of_the_kernel() -> None:
    data = recorded("quadrotor_powerloop")
    rows = data.bundle.kernel().rows(data.states[17])
    last = data.bundle.kernel().num_rows
    assert np.array_equal(data.batch.rows[17].numpy(), rows.a[:, :last].T)
    assert np.array_equal(data.batch.offsets[17].numpy(), rows.b[:last])
    assert np.array_equal(data.batch.backup[17].numpy(), rows.inputs[0])


def test_wrong_arguments_are_named() -> None:
    v_d, a, b, low, high = problems(0, 4, 6, 3)
    with pytest.raises(ModelError, match=r"one dtype.*rows torch.float32.*\.to"):
        project(v_d, a.float(), b, low, high)
    with pytest.raises(ModelError, match=r"offsets \(4, 5\)"):
        project(v_d, a, b[:, :5], low, high)
    with pytest.raises(ModelError, match=r"R >= 1.*rows \(4, 0, 3\)"):
        project(v_d, a[:, :0], b[:, :0], low, high)
    with pytest.raises(ModelError, match=r"\(B, 10\), got \(10,\)"):
        rows_of(recorded("quadrotor_powerloop").bundle.kernel(), np.zeros(10))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_answers_the_same() -> None:
    data = recorded("quadrotor_powerloop_paper")
    device = project(*(t.cuda() for t in data.arguments))
    assert torch.equal(device.feasible.cpu(), data.found.feasible)
    torch.testing.assert_close(device.v.cpu(), data.found.v, rtol=0, atol=1e-9, equal_nan=True)
