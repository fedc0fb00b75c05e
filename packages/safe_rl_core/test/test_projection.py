"""The projection against a slow twin that tries every set of active rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from safe_rl_core.kernel import Rows
from safe_rl_core.projection import SLOTS, Projection
from shipped import load


def enumerate_projection(a: np.ndarray, b: np.ndarray, v_d: np.ndarray) -> np.ndarray | None:
    """Nearest point of {A v >= b} by trying all active sets; None if the set is empty."""
    best, best_distance = None, np.inf
    for count in range(len(v_d) + 1):
        for subset in itertools.combinations(range(len(b)), count):
            normals = a[list(subset)]
            if count and np.linalg.matrix_rank(normals, tol=1e-9) < count:
                continue
            step = (
                normals.T @ np.linalg.solve(normals @ normals.T, b[list(subset)] - normals @ v_d)
                if count
                else 0.0
            )
            v = v_d + step
            distance = float(np.linalg.norm(v - v_d))
            if distance < best_distance and np.all(a @ v >= b - 1e-9):
                best, best_distance = v, distance
    return best


def problem(
    name: str, rng: np.random.Generator, rows: int, parallel: bool, tightest: float = 0.3
) -> tuple[Rows, Projection, np.ndarray, np.ndarray]:
    """Random unit rows written into a kernel's buffers; returns also A (rows + box) and b."""
    bundle = load(name)
    kernel = bundle.kernel()
    written = kernel.rows(np.zeros(kernel.n) if kernel.n == 4 else np.eye(10)[6])
    normals = rng.normal(size=(rows, kernel.m))
    if parallel:
        normals = rng.normal(size=kernel.m) + 1e-3 * normals
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    bounds = rng.uniform(-1.0, tightest, rows)
    written.a[:, : kernel.num_rows] = 0.0
    written.b[: kernel.num_rows] = -1.0
    written.a[:, :rows] = normals.T
    written.b[:rows] = bounds
    low, high = bundle.input_low / bundle.input_scale, bundle.input_high / bundle.input_scale
    box = np.eye(kernel.m)
    a = np.vstack((normals, box, -box))
    b = np.concatenate((bounds, low, -high))
    return written, Projection(kernel, low, high), a, b


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("name", "rows"), [("unicycle_lane", 12), ("quadrotor_powerloop", 8)])
def test_equals_the_enumeration(name: str, rows: int, parallel: bool) -> None:
    rng = np.random.default_rng(11)
    empty = solved = 0
    for _ in range(60):
        written, projection, a, b = problem(name, rng, rows, parallel)
        v_d = rng.normal(size=a.shape[1]) * 2.0
        row, _ = projection._kernel.scan(v_d)
        v, twin = projection(written, v_d, row), enumerate_projection(a, b, v_d)
        if twin is None:
            assert v is None
            empty += 1
        else:
            assert v is not None
            assert np.all(a @ v >= b - 1e-9)
            assert np.linalg.norm(v - twin) <= 1e-6
            solved += 1
    assert solved > 10
    if not parallel:
        assert empty > 0


def test_the_solver_may_say_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever OSQP answers, the result is the exact projection: its answer is only a guess."""
    rng = np.random.default_rng(2)
    for answer in (
        None,
        (np.full(2, 7.0), rng.normal(size=SLOTS + 2)),
        (np.zeros(2), np.zeros(SLOTS + 2)),
    ):
        written, projection, a, b = problem("unicycle_lane", rng, 6, False)
        monkeypatch.setattr(projection, "_solve", lambda v_d, answer=answer: answer)
        v_d = np.array([1.5, -1.5])
        row, _ = projection._kernel.scan(v_d)
        v, twin = projection(written, v_d, row), enumerate_projection(a, b, v_d)
        assert (v is None) == (twin is None)
        if v is not None:
            assert np.linalg.norm(v - twin) <= 1e-6


def test_only_the_box_in_the_way() -> None:
    written, projection, _, _ = problem("unicycle_lane", np.random.default_rng(0), 4, False, -0.1)
    written.b[:4] = -9.0
    v_d = np.array([5.0, -0.25])
    row, _ = projection._kernel.scan(v_d)
    assert projection(written, v_d, row).tolist() == [1.0, -0.25]


def test_an_answer_that_is_not_a_number_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        x, y = np.full(2, np.nan), np.zeros(SLOTS + 2)

        def update(self, **_: object) -> None: ...

        def solve(self, raise_error: bool) -> Broken:
            return self

    written, projection, a, b = problem("unicycle_lane", np.random.default_rng(3), 6, False)
    monkeypatch.setattr(projection, "_solver", Broken())
    v_d = np.array([1.5, -1.5])
    row, _ = projection._kernel.scan(v_d)
    v, twin = projection(written, v_d, row), enumerate_projection(a, b, v_d)
    assert (v is None) == (twin is None)


def test_a_point_that_meets_all_rows_is_its_own_projection() -> None:
    written, projection, a, b = problem("unicycle_lane", np.random.default_rng(0), 4, False, -0.1)
    inside = enumerate_projection(a, b, np.zeros(2))
    assert inside is not None
    exact, _ = projection._kernel.project(inside)
    assert np.allclose(exact, inside, atol=1e-9)
