"""Many states at once: what one state at a time gives, the shield's decisions, on any threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from safe_rl_core import Bundle, Shield, Verdict, adversary
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel import Kernel
from safe_rl_core.kernel.batch import BACKUP, PASSED, PROJECTED, BatchKernel, BatchRows, Decisions
from safe_rl_core.kernel.kernel import self_test_points
from safe_rl_core.loop import recoverable_state
from safe_rl_core.shield_base import ShieldResult
from shipped import NAMES, load

Array = NDArray[np.float64]
VERDICTS = {Verdict.PASSED: PASSED, Verdict.PROJECTED: PROJECTED, Verdict.BACKUP: BACKUP}
STRATEGIES = tuple(
    getattr(adversary, name)
    for name in ("_worst_corner", "_held_corner", "_far_outside", "_uniform", "_not_numbers")
)
STEPS = 150


@cache
def batch(name: str, threads: int = 1) -> BatchKernel:
    return BatchKernel.of(load(name), threads)


@cache
def flown(name: str) -> tuple[Array, Array, tuple[ShieldResult, ...]]:
    """Predicted states, proposals (nan: none) and the shield's answers along bad flights."""
    bundle, states, proposals, answers = load(name), [], [], []
    shield = Shield(bundle)
    for seed, strategy in enumerate((*STRATEGIES, *STRATEGIES)):
        rng = np.random.default_rng(seed)
        propose = strategy(bundle, rng)
        x = recoverable_state(bundle, rng)
        pending = [bundle.stop_action] * bundle.delay_steps
        shield.reset()
        for k in range(STEPS):
            proposal = propose(x, k * bundle.period)
            states.append(shield.predict(x))
            proposals.append(np.full(len(bundle.inputs), np.nan) if proposal is None else proposal)
            answers.append(shield.step(x, proposal))
            acting, *pending = [*pending, answers[-1].action]
            x = bundle.compiled("step", x, acting)
    return np.array(states), np.array(proposals), tuple(answers)


@pytest.mark.parametrize("name", NAMES)
def test_decisions_are_those_of_the_shield(name: str) -> None:
    bundle, (x, proposed, answers) = load(name), flown(name)
    found = batch(name).decide(x, proposed)
    assert len(x) == len(STRATEGIES) * 2 * STEPS
    assert found.verdict.tolist() == [VERDICTS[a.verdict] for a in answers]
    assert {PASSED, PROJECTED, BACKUP} == set(found.verdict)
    assert found.blend.tolist() == [a.blend for a in answers]
    gap = (found.action - [a.action for a in answers]) / bundle.input_scale
    assert np.abs(gap).max() <= 1e-9
    assert np.allclose(found.margin, [a.margin for a in answers], rtol=0, atol=1e-8)
    passed = found.verdict == PASSED
    assert (found.action[passed] == proposed[passed]).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_action_keeps_a_way_out(name: str) -> None:
    """The theorem itself, on states and proposals that no flight has met."""
    bundle, kernel, rng = load(name), batch(name), np.random.default_rng(7)
    x = _operating(bundle, rng, 4000)
    x = x[kernel.way_out(x) >= 0.0]
    assert len(x) > 100
    half = 0.5 * (bundle.input_high - bundle.input_low)
    proposed = bundle.input_low + half * (1.0 + rng.standard_cauchy((len(x), kernel.m)))
    found = kernel.decide(x, proposed)
    assert (found.margin >= -1e-9).all()
    assert ((found.action >= bundle.input_low) & (found.action <= bundle.input_high)).all()
    after = kernel.evaluate("step", x, found.action)
    assert (kernel.evaluate("safe_set", after) >= bundle.margin - 1e-9).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_kernel(name: str) -> None:
    bundle, kernel, single = load(name), batch(name), load(name).kernel()
    x = _operating(bundle, np.random.default_rng(1), 40)
    found = kernel.rows(x)
    for k, state in enumerate(x):
        rows = single.rows(state)
        assert (found.normals[k] == rows.a[:, : kernel.num_rows].T).all()
        assert (found.offsets[k] == rows.b[: kernel.num_rows]).all()
        assert (found.backup[k] == rows.inputs[0]).all()
        assert (found.least[k], found.worst[k]) == (rows.least, rows.worst)


@pytest.mark.parametrize("name", NAMES)
def test_way_out_is_the_margin_of_the_backup_plan(name: str) -> None:
    """Compared where rounding does not grow along the plan: where there is a way out."""
    bundle, kernel = load(name), batch(name)
    x = _operating(bundle, np.random.default_rng(2), 2000)
    least, exact = kernel.rows(x).least, kernel.way_out(x)
    assert (exact >= 0.0).sum() > 50
    single = bundle.kernel()
    backup = kernel.evaluate("backup_policy", x)
    assert exact.tolist() == [single.verify(s, u).least for s, u in zip(x, backup, strict=True)]
    assert np.allclose(least[exact >= 0.0], exact[exact >= 0.0], rtol=0, atol=1e-9)


def test_functions_are_those_of_the_program(bundle: Bundle) -> None:
    kernel = BatchKernel.of(bundle)
    for name, inputs in self_test_points(bundle.program).items():
        found, slow = kernel.evaluate(name, *inputs), bundle.program(name, *inputs)
        assert np.abs(found - slow).max() <= 1e-11 * (1.0 + np.abs(slow).max()), name


def test_results_do_not_depend_on_the_number_of_threads(bundle: Bundle) -> None:
    rng = np.random.default_rng(3)
    x = _operating(bundle, rng, 800)
    proposed = rng.uniform(bundle.input_low, bundle.input_high, (len(x), len(bundle.inputs)))
    many = np.tile(x, (8, 1))
    results = []
    for threads in (1, 2, 3):
        kernel = BatchKernel.of(bundle, threads)
        rows = kernel.rows(x)
        results.append(
            [
                kernel.evaluate("step", many, np.tile(proposed, (8, 1))),
                kernel.way_out(x),
                *(getattr(rows, field.name) for field in fields(BatchRows)),
                *_parts(kernel.decide(x, proposed, with_rows=True)),
            ]
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_rows_that_come_with_a_decision_are_those_of_the_state(bundle: Bundle) -> None:
    kernel = BatchKernel.of(bundle)
    x = _operating(bundle, np.random.default_rng(5), 30)
    rows, proposed = kernel.rows(x), np.zeros((30, kernel.m))
    found, plain = kernel.decide(x, proposed, with_rows=True), kernel.decide(x, proposed)
    assert found.normals.tobytes() == rows.normals.tobytes()
    assert found.offsets.tobytes() == rows.offsets.tobytes()
    assert (found.action == plain.action).all() and (found.margin == plain.margin).all()
    assert plain.normals.shape == (30, 0, kernel.m) and plain.offsets.shape == (30, 0)


def test_outside_the_implicit_set_the_backup_goes_on(bundle: Bundle) -> None:
    kernel = BatchKernel.of(bundle)
    x = _operating(bundle, np.random.default_rng(8), 3000)
    x = x[kernel.way_out(x) < -0.3][:50]
    found, rows = kernel.decide(x, np.full((len(x), kernel.m), np.nan)), kernel.rows(x)
    assert len(x) > 10 and (found.verdict == BACKUP).all() and (found.blend == 0.0).all()
    assert (found.action == rows.backup).all() and (found.margin == rows.least).all()
    assert (found.margin < 0.0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_has_no_answer(unicycle: Bundle, bad: float) -> None:
    kernel = BatchKernel.of(unicycle)
    x = np.array([recoverable_state(unicycle, np.random.default_rng(k)) for k in range(3)])
    proposed = np.zeros((3, kernel.m))
    alone = kernel.decide(x, proposed, with_rows=True)
    x[1, 2] = bad
    found = kernel.decide(x, proposed, with_rows=True)
    for a, b in zip(_parts(found), _parts(alone), strict=True):
        assert (a[[0, 2]] == b[[0, 2]]).all()
    assert found.verdict[1] == BACKUP and found.blend[1] == 0.0
    lost = (found.action, found.backup, found.margin, found.normals, found.offsets)
    assert all(np.isnan(part[1]).all() for part in lost)


def test_far_proposals_are_moved_into_the_box_exactly(quadrotor: Bundle) -> None:
    """So far out that an active-set method sees nothing but rounding."""
    kernel = BatchKernel.of(quadrotor)
    x = np.array([recoverable_state(quadrotor, np.random.default_rng(k)) for k in range(8)])
    x, corners = np.repeat(x, 16, axis=0), np.tile(adversary.corners(quadrotor), (8, 1))
    near = kernel.decide(x, corners)
    centre = 0.5 * (quadrotor.input_low + quadrotor.input_high)
    far = kernel.decide(x, centre + (corners - centre) * 1e200)
    passed = near.verdict == PASSED
    assert passed.sum() > 5
    assert (far.verdict[passed] == PROJECTED).all()
    assert (far.action[passed] == corners[passed]).all()
    assert (far.margin >= -1e-9).all()


def test_the_slope_is_the_derivative_of_the_action(bundle: Bundle) -> None:
    """Against differences over every component of the proposal, where no case changes."""
    kernel, rng = BatchKernel.of(bundle), np.random.default_rng(9)
    x = _operating(bundle, rng, 4000)
    x = x[kernel.way_out(x) > 0.0][:400]
    reach = 0.5 * (bundle.input_high - bundle.input_low)
    proposed = bundle.input_low + reach * (1.0 + 1.3 * rng.uniform(-1.0, 1.0, (len(x), kernel.m)))
    found, step = kernel.decide(x, proposed), 1e-6
    same, error = np.ones(len(x), bool), np.zeros(len(x))
    for j in range(kernel.m):
        shift = step * bundle.input_scale[j] * np.eye(kernel.m)[j]
        right, left = kernel.decide(x, proposed + shift), kernel.decide(x, proposed - shift)
        for other in (right, left):
            same &= (other.verdict == found.verdict) & (other.blend == found.blend)
            same &= np.abs(other.slope - found.slope).max((1, 2)) < 1e-9
        moved = (right.action - left.action) / (2.0 * shift[j])
        gap = (moved - found.slope[:, :, j]) * bundle.input_scale[j] / bundle.input_scale
        error = np.maximum(error, np.abs(gap).max(1))
    assert same.mean() > 0.9
    assert (error[same] < 1e-6).all()
    assert {PASSED, PROJECTED} <= {*found.verdict[same]}


def test_no_states_give_no_rows(unicycle: Bundle) -> None:
    kernel = BatchKernel.of(unicycle, 2)
    x, u = np.zeros((0, kernel.n)), np.zeros((0, kernel.m))
    assert kernel.rows(x).normals.shape == (0, kernel.num_rows, kernel.m)
    assert kernel.decide(x, u).action.shape == (0, kernel.m)
    assert kernel.evaluate("step", x, u).shape == (0, kernel.n)


def _wrong() -> Iterator[tuple[str, Callable[[BatchKernel], object]]]:
    yield "x must have shapes", lambda k: k.way_out(np.zeros(k.n))
    yield "x must have shapes", lambda k: k.rows(np.zeros((3, k.n + 1)))
    yield "proposals must have", lambda k: k.decide(np.zeros((3, k.n)), np.zeros((2, k.m)))
    yield "no function 'stp'; it has", lambda k: k.evaluate("stp", np.zeros((3, k.n)))
    yield "inputs of step must have", lambda k: k.evaluate("step", np.zeros((3, k.n)))


@pytest.mark.parametrize(("message", "call"), [*_wrong()])
def test_wrong_shapes_are_named(message: str, call: Callable[[BatchKernel], object]) -> None:
    with pytest.raises(ModelError, match=message):
        call(batch("unicycle_lane"))


def test_at_least_one_thread(unicycle: Bundle) -> None:
    kernel: Kernel = unicycle.kernel()
    with pytest.raises(ModelError, match="threads must be >= 1, got 0"):
        BatchKernel(kernel.compiled, kernel.theorem, kernel.horizon, 0)


def _operating(bundle: Bundle, rng: np.random.Generator, count: int) -> Array:
    size = bundle.program.functions["operating_state"].inputs[0][1]
    return batch(bundle.name).evaluate("operating_state", rng.uniform(-1.0, 1.0, (count, size)))


def _parts(found: Decisions) -> list[NDArray]:
    return [getattr(found, field.name) for field in fields(Decisions)]
