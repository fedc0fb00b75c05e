"""From a first design to a large one: evolution of gain and shape on the true loop. Untrusted.

The linear matrix inequality bounds the loop by the norms of slope matrices; the proof, with its
cells, comes close to the loop itself. So the design is improved on samples of the loop itself:

    maximise log det Q   so that   rho + omega + nu + gap <= 1,   |e_i| <= extent_i,   inputs in
                                   their box,

rho over points of the set, among them the worst that hill climbing finds; omega and nu from
derivatives at points of its rim. `gap` is room for the proof: the number of cells grows steeply
as it shrinks. The search is an evolution strategy with covariance adaptation (Hansen, The CMA
Evolution Strategy: A Tutorial, 2016) over the entries that the symmetries leave free.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.falsifier import worst_step
from safe_rl_systems.verification.lmi import Design, commutant

Array = NDArray[np.float64]

_POINTS, _RIM, _CLIMBS, _CLIMB_SAMPLES = 2_000, 24, 2, 20_000
_ROUNDS, _GENERATIONS, _OFFSPRING = 16, 60, 16
_FIRST_STEP, _PRICE = 0.1, 1_000.0


@dataclass(frozen=True)
class Wish:
    """What a design should respect: `extent` (k) bounds |e_i|, `drive` (m) how far |K_j e| and the
    measurement error may move the input, `gap` is left for the proof.

    An input that is driven far is known to the proof only as a wide interval: ask for less than
    the box allows. `group`: matrices (S_e, S_v) with which gain and shape commute. `lead_row`, if
    not None, is the row of K that is the last of the cell directions.
    """

    extent: Array
    drive: Array
    gap: float
    group: Sequence[tuple[Array, Array]]
    lead_row: int | None = None


def with_design(problem: BaseProblem, design: Design, lead_row: int | None) -> BaseProblem:
    """The problem with another gain and shape, its cell directions following the gain."""
    directions = problem.cell_directions
    if lead_row is not None:
        directions = np.vstack((directions[:-1], design.gain[lead_row]))
    return replace(problem, gain=design.gain, factor=design.factor, cell_directions=directions)


def polish(
    problem: BaseProblem,
    wish: Wish,
    design: Design,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Design:
    """A design of larger log det that meets the wish on samples, as far as evolution finds one."""
    trial = _Trial(problem, wish, design, seed)
    evolution = _Evolution(trial.pack(design), _FIRST_STEP, seed)
    for turn in range(_ROUNDS):
        x, cost = evolution.run(trial.cost, _GENERATIONS)
        climbed = trial.learn(x, seed + turn)
        tell(f"round {turn + 1} of {_ROUNDS}: cost {cost:.3f}, contraction {climbed:.4f}")
    return trial.unpack(x)


class _Trial:
    """The cost of a design: - ½ log det Q, and a price on everything that the wish forbids."""

    def __init__(self, problem: BaseProblem, wish: Wish, start: Design, seed: int) -> None:
        self.problem, self.wish = problem, wish
        k, m = len(problem.factor), len(problem.input)
        self.unit = wish.extent
        room = np.minimum(problem.input_high - problem.input, problem.input - problem.input_low)
        self.room = np.minimum(room, wish.drive)
        self.basis_q, self.basis_y = commutant(wish.group, k, m)
        rng = np.random.default_rng(seed)
        self.points = _directions(rng, _POINTS, k)
        self.rim = _directions(rng, _RIM, len(problem.cell_directions))
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=k - 1)))
        self.corners = np.column_stack((np.ones(len(signs)), signs))

    def pack(self, design: Design) -> Array:
        """Coordinates of the symmetric root of Q and of K, in units of extent and input room."""
        values, vectors = np.linalg.eigh(design.spread / np.outer(self.unit, self.unit))
        root = (vectors * np.sqrt(values)) @ vectors.T
        gain = design.gain * self.unit / self.room[:, None]
        return np.array(
            [(root * b).sum() / (b * b).sum() for b in self.basis_q]
            + [(gain * b).sum() / (b * b).sum() for b in self.basis_y]
        )

    def unpack(self, x: Array) -> Design:
        """The design with coordinates x."""
        split = len(self.basis_q)
        root = np.einsum("i,ijk->jk", x[:split], self.basis_q)
        gain = np.einsum("i,ijk->jk", x[split:], self.basis_y)
        spread = (root @ root.T) * np.outer(self.unit, self.unit)
        return Design(gain * self.room[:, None] / self.unit, spread)

    def cost(self, x: Array) -> float:
        """Lower is better; infinite where the design is no design."""
        design = self.unpack(x)
        try:
            factor = design.factor
        except np.linalg.LinAlgError:
            return np.inf
        rho = self._contraction(design, factor)
        if not np.isfinite(rho):
            return np.inf
        omega, nu = self._perturbations(design, factor)
        extent = np.sqrt(np.diag(design.spread))
        drive = np.sqrt(np.einsum("ij,jk,ik->i", design.gain, design.spread, design.gain))
        drive += np.abs(design.gain) @ self.problem.tracking_error
        over = (
            max(0.0, rho + omega + nu + self.wish.gap - 1.0)
            + 0.1 * np.maximum(0.0, extent / self.wish.extent - 1.0).sum()
            + 0.1 * np.maximum(0.0, drive / self.room - 1.0).sum()
        )
        return float(-0.5 * np.linalg.slogdet(design.spread)[1] + _PRICE * over)

    def learn(self, x: Array, seed: int) -> float:
        """Adds the worst points that hill climbing finds and neighbours; the worst value."""
        problem = with_design(self.problem, self.unpack(x), None)
        rng = np.random.default_rng(seed)
        found = [
            worst_step(problem, perturbed=False, seed=seed + i, samples=_CLIMB_SAMPLES)
            for i in range(_CLIMBS)
        ]
        y = np.array([step.e @ problem.factor for step in found])
        near = [y + size * rng.normal(size=y.shape) for size in (0.0, 0.05, 0.15)]
        new = np.concatenate(near)
        new /= np.linalg.norm(new, axis=1, keepdims=True)
        self.points = np.concatenate((self.points, new))
        return max(step.value for step in found)

    def _contraction(self, design: Design, factor: Array) -> float:
        e = np.linalg.solve(factor.T, self.points.T).T
        s = np.broadcast_to(self.problem.schedule, (len(e), len(self.problem.schedule)))
        with np.errstate(invalid="ignore"):
            after = self.problem.program("error_map", s, e, e @ design.gain.T, np.zeros_like(e))
        return float(np.linalg.norm(after @ factor, axis=1).max())

    def _perturbations(self, design: Design, factor: Array) -> tuple[float, float]:
        """omega and nu from the derivatives where z = C e is extreme."""
        k, m = len(factor), len(design.gain)
        directions = self.problem.cell_directions
        if self.wish.lead_row is not None:
            directions = np.vstack((directions[:-1], design.gain[self.wish.lead_row]))
        y = self.rim @ np.linalg.solve(factor, directions.T).T
        e = np.linalg.solve(factor.T, (y / np.linalg.norm(y, axis=1, keepdims=True)).T).T
        to_v = self._derivative(e, e @ design.gain.T, 2, m)
        to_w = self._derivative(e, e @ design.gain.T, 3, k)
        w = factor.T @ (to_w * self.problem.disturbance) @ self.corners.T
        eta = factor.T @ to_v @ (design.gain * self.problem.tracking_error) @ self.corners.T
        return float(np.linalg.norm(w, axis=1).max()), float(np.linalg.norm(eta, axis=1).max())

    def _derivative(self, e: Array, v: Array, argument: int, size: int) -> Array:
        """(N, k, size): derivative of the error map by v (2) or w (3)."""
        e, v = np.repeat(e, size, 0), np.repeat(v, size, 0)
        s = np.broadcast_to(self.problem.schedule, (len(e), len(self.problem.schedule)))
        point = (s, e, v, np.zeros_like(e))
        tangents = [np.zeros_like(p) for p in point]
        tangents[argument] = np.tile(np.eye(size), (len(e) // size, 1))
        columns = self.problem.program.jvp("error_map", point, tuple(tangents))
        return columns.reshape(-1, size, e.shape[1]).swapaxes(1, 2)


def _directions(rng: np.random.Generator, count: int, size: int) -> Array:
    y = rng.normal(size=(count, size))
    return y / np.linalg.norm(y, axis=1, keepdims=True)


class _Evolution:
    """A strategy with all that it has learnt; notation of the tutorial, equations (5) to (35)."""

    def __init__(self, start: Array, step: float, seed: int) -> None:
        n = len(start)
        self.rng, self.step, self.generation = np.random.default_rng(seed), step, 0
        self.best, self.mean, self.covariance = start, start.copy(), np.eye(n)
        self.path, self.path_step = np.zeros(n), np.zeros(n)
        self.parents = _OFFSPRING // 2
        weights = np.log(self.parents + 0.5) - np.log(np.arange(1, self.parents + 1))
        self.weights = weights / weights.sum()
        mass = self.mass = 1.0 / (self.weights**2).sum()
        self.c_path = (4.0 + mass / n) / (n + 4.0 + 2.0 * mass / n)
        self.c_step = (mass + 2.0) / (n + mass + 5.0)
        self.c_one = 2.0 / ((n + 1.3) ** 2 + mass)
        self.c_mass = min(
            1.0 - self.c_one, 2.0 * (mass - 2.0 + 1.0 / mass) / ((n + 2) ** 2 + mass)
        )
        self.damping = 1.0 + self.c_step + 2.0 * max(0.0, np.sqrt((mass - 1.0) / (n + 1.0)) - 1.0)
        self.expected = np.sqrt(n) * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n))

    def run(self, cost: Callable[[Array], float], generations: int) -> tuple[Array, float]:
        """The best point so far and its cost; `cost` may have grown since the last call."""
        least = cost(self.best)
        for _ in range(generations):
            values, vectors = np.linalg.eigh(self.covariance)
            root = np.sqrt(np.maximum(values, 1e-20))
            y = (self.rng.normal(size=(_OFFSPRING, len(root))) * root) @ vectors.T
            x = self.mean + self.step * y
            costs = np.array([cost(point) for point in x])
            order = costs.argsort()
            if costs[order[0]] < least:
                self.best, least = x[order[0]].copy(), float(costs[order[0]])
            self._adapt(y[order[: self.parents]], (vectors / root) @ vectors.T)
        return self.best, least

    def _adapt(self, y: Array, whiten: Array) -> None:
        """Mean, paths, covariance and step after the moves y of the best offspring."""
        move = self.weights @ y
        self.mean = self.mean + self.step * move
        share = np.sqrt(self.c_step * (2.0 - self.c_step) * self.mass)
        self.path_step = (1.0 - self.c_step) * self.path_step + share * (whiten @ move)
        length = float(np.linalg.norm(self.path_step)) / self.expected
        self.generation += 1
        settled = length / np.sqrt(1.0 - (1.0 - self.c_step) ** (2 * self.generation))
        calm = float(settled < 1.4 + 2.0 / (len(move) + 1.0))
        share = calm * np.sqrt(self.c_path * (2.0 - self.c_path) * self.mass)
        self.path = (1.0 - self.c_path) * self.path + share * move
        self.covariance = (
            (1.0 - self.c_one - self.c_mass) * self.covariance
            + self.c_one * np.outer(self.path, self.path)
            + self.c_mass * (y.T * self.weights) @ y
        )
        self.step *= float(np.exp(self.c_step / self.damping * (length - 1.0)))
