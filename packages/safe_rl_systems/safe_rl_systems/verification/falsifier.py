"""Search for the state from which the base loop goes furthest: hill climbing on the exact program.

What it finds is a fact, a point that anyone can evaluate; that it finds nothing proves nothing.
The distance between it and the proved bound says how much a proof gives away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.interval import Array

_SAMPLES = 100_000
_CLIMBERS = 150
_TRIES = 20
_ROUNDS = 120


@dataclass(frozen=True)
class Step:
    """One step of the base loop: from error e, measured as e + eta, moved by w, to `after`.

    `input` is what the controller sends, clipped to its box. `before` and `value` are |e|_P and
    |after|_P; value > 1 >= before refutes the set.
    """

    e: Array
    eta: Array
    w: Array
    input: Array
    after: Array
    before: float
    value: float


def worst_step(
    problem: BaseProblem, perturbed: bool = True, seed: int = 0, samples: int = _SAMPLES
) -> Step:
    """The largest |error_map|_P found over the set, and over the corners of eta and w.

    Without `perturbed` it is a lower bound of rho. States without an image (outside the chart)
    count as not in the set.
    """
    rng = np.random.default_rng(seed)
    k = len(problem.factor)
    y = rng.normal(size=(samples, k))
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    inner = rng.random(samples) < 0.2
    y[inner] *= rng.random((int(inner.sum()), 1)) ** (1.0 / k)
    corners = rng.choice((-1.0, 1.0), size=(samples, 2 * k)) * float(perturbed)
    value = _values(problem, y, corners)
    top = np.argsort(-value)[: min(_CLIMBERS, max(20, samples // 200))]
    y, corners, value = y[top], corners[top], value[top]
    spread = 0.3
    for _ in range(_ROUNDS):
        near = y[:, None] + spread * rng.normal(size=(len(y), _TRIES, k))
        near /= np.maximum(np.linalg.norm(near, axis=2, keepdims=True), 1.0)
        flips = np.where(rng.random((len(y), _TRIES, 2 * k)) < 0.1, -1.0, 1.0)
        signs = corners[:, None] * flips
        tried = _values(problem, near.reshape(-1, k), signs.reshape(-1, 2 * k))
        tried = tried.reshape(len(y), _TRIES)
        best, rows = tried.argmax(1), np.arange(len(y))
        better = tried[rows, best] > value
        y[better], corners[better] = near[rows, best][better], signs[rows, best][better]
        value[better] = tried[rows, best][better]
        spread *= 0.96
    best = int(value.argmax())
    return _step(problem, y[best], corners[best])


def saturating_step(problem: BaseProblem) -> Step:
    """The state and measurement error that ask the most of the input nearest to its bound."""
    j = int(np.argmin(problem.input_slack()))
    row = np.linalg.solve(problem.factor, problem.gain[j])
    room_up = problem.input_high[j] - problem.input[j]
    room_down = problem.input[j] - problem.input_low[j]
    sign = 1.0 if room_up <= room_down else -1.0
    k = len(problem.factor)
    corners = np.concatenate((sign * np.sign(problem.gain[j]), np.zeros(k)))
    return _step(problem, sign * row / np.linalg.norm(row), corners)


def _apply(problem: BaseProblem, y: Array, corners: Array) -> tuple[Array, Array, Array]:
    k = len(problem.factor)
    e = np.linalg.solve(problem.factor.T, y.T).T
    eta, w = corners[:, :k] * problem.tracking_error, corners[:, k:] * problem.disturbance
    u = problem.input + (e + eta) @ problem.gain.T
    u = np.clip(u, problem.input_low, problem.input_high)
    s = np.broadcast_to(problem.schedule, (len(e), len(problem.schedule)))
    with np.errstate(invalid="ignore"):
        after = problem.program("error_map", s, e, u - problem.input, w)
    return e, u, after


def _values(problem: BaseProblem, y: Array, corners: Array) -> Array:
    _, _, after = _apply(problem, y, corners)
    value = np.linalg.norm(after @ problem.factor, axis=1)
    return np.where(np.isfinite(value), value, -np.inf)


def _step(problem: BaseProblem, y: Array, corners: Array) -> Step:
    k = len(y)
    y = y / max(1.0, float(np.linalg.norm(y)) * (1.0 + 1e-12))
    e, u, after = _apply(problem, y[None], corners[None])
    return Step(
        e=e[0],
        eta=corners[:k] * problem.tracking_error,
        w=corners[k:] * problem.disturbance,
        input=u[0],
        after=after[0],
        before=float(np.linalg.norm(e[0] @ problem.factor)),
        value=float(np.linalg.norm(after[0] @ problem.factor)),
    )
