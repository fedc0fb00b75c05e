"""One linear matrix inequality: gain, shape and level of a base set together. Untrusted.

With Q = P⁻¹ and Y = K Q, and slopes (S_e, S_v) of the error map at sample points, the set
{e'Pe <= 1} is contracted to rho at these points if for each of them

    [[rho Q, X'], [X, rho Q]] >= 0,   X = S_e Q + S_v Y.

For short periods X is close to Q and this is nearly singular. The congruence with [[I, I],
[I, -I]] and a scaling of the second half by 1/√Δt give

    [[rho Q + sym X, -k], [k, (rho Q - sym X) / Δt]] >= 0,   k = (X' - X) / (2 √Δt),

which solvers like. The measurement error goes in as |S_v Y xi|_P <= nu for xi = P eta of the
previous solution, so that the gain is paid for (K eta = Y P eta).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SOLVER_SETTINGS: dict[str, Any] = {
    "tol_feas": 1e-7,
    "tol_gap_abs": 1e-5,
    "tol_gap_rel": 1e-5,
    "reduced_tol_feas": 1e-4,
    "reduced_tol_gap_abs": 1e-3,
    "reduced_tol_gap_rel": 1e-3,
}


@dataclass(frozen=True)
class Targets:
    """What one solution has to satisfy.

    `samples`: pairs (S_e (k, k), S_v (k, m)), the first one at e = 0. `contraction` rho;
    `omega`, `nu` bounds of the disturbance and the measurement error in |.|_P; `extent` (k) and
    `drive` (m) bounds of |e_i| and |K_j e|; `group`: matrices (S_e, S_v) that commute with Q, K.
    """

    samples: Sequence[tuple[Array, Array]]
    contraction: float
    omega: float
    nu: float
    extent: Array
    drive: Array
    disturbance: Array
    tracking_error: Array
    period: float
    group: Sequence[tuple[Array, Array]]


@dataclass(frozen=True)
class Design:
    """Gain K (m, k) and P⁻¹ = Q (k, k) of {e'Pe <= 1}."""

    gain: Array
    spread: Array

    @property
    def factor(self) -> Array:
        """Lower triangular L with P = L L', zero where P is block diagonal."""
        p = np.linalg.inv(self.spread)
        p = np.where(np.abs(self.spread) == 0.0, 0.0, 0.5 * (p + p.T))
        return np.where(np.abs(p) == 0.0, 0.0, np.linalg.cholesky(p))


def solve(targets: Targets, previous: Design | None) -> Design | None:
    """The design of the largest log det Q, or None if the solver finds none.

    `previous` supplies xi = P eta; without it the measurement error is left out.
    """
    import cvxpy as cp  # at build time only

    unit = targets.extent
    k, m = len(unit), len(targets.drive)
    basis_q, basis_y = commutant(targets.group, k, m)
    q_of, y_of = cp.Variable(len(basis_q)), cp.Variable(len(basis_y))
    q = sum(q_of[i] * b for i, b in enumerate(basis_q))
    y = sum(y_of[i] * b for i, b in enumerate(basis_y))
    constraints = []
    root = np.sqrt(targets.period)
    for to_e, to_v in targets.samples:
        x = (to_e * unit / unit[:, None]) @ q + (to_v * targets.drive / unit[:, None]) @ y
        even, odd = 0.5 * (x + x.T), 0.5 * (x.T - x) / root
        r = targets.contraction * q
        constraints.append(_positive(cp, [[r + even, -odd], [odd, (r - even) / targets.period]]))
    for j in range(m):
        row = cp.reshape(y[j, :], (1, k), order="C")
        constraints.append(_positive(cp, [[np.eye(1), row], [row.T, q]]))
    constraints += [q[i, i] <= 1.0 for i in range(k)]
    blocks = _blocks(basis_q)
    constraints += _box_norm(
        cp, q, blocks, _corners(targets.disturbance / unit, blocks), targets.omega
    )
    if previous is not None and np.any(targets.tracking_error):
        to_v = targets.samples[0][1] * targets.drive / unit[:, None]
        weight = np.linalg.inv(previous.spread) * unit[:, None]
        corners = _corners(targets.tracking_error, blocks)
        moved = [[to_v @ (y @ (weight @ eta)) for eta in part] for part in corners]
        constraints += _box_norm(cp, q, blocks, moved, targets.nu)
    volume = sum(cp.log_det(q[np.ix_(b, b)]) for b in blocks)
    problem = cp.Problem(cp.Maximize(volume), constraints)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of inaccurate solutions: the status says it too
            problem.solve(solver=cp.CLARABEL, **_SOLVER_SETTINGS)
    except cp.SolverError:
        return None
    if q_of.value is None or problem.status not in ("optimal", "optimal_inaccurate"):
        return None
    spread = np.asarray(q.value) * np.outer(unit, unit)
    y_found = np.asarray(y.value) * targets.drive[:, None] * unit
    gain = np.where(y_found == 0.0, 0.0, y_found)
    mask = np.any([b != 0.0 for b in basis_y], axis=0)
    return Design(np.where(mask, gain @ np.linalg.inv(spread), 0.0), spread)


def commutant(
    group: Sequence[tuple[Array, Array]], k: int, m: int
) -> tuple[list[Array], list[Array]]:
    """Bases of the symmetric Q with S_e Q S_e' = Q and of the Y with S_v Y S_e' = Y.

    Orbits of unit matrices under signed permutations: exact, sparse and disjoint.
    """
    pairs = [*group] or [(np.eye(k), np.eye(m))]

    def orbits(shape: tuple[int, int], left: int, symmetric: bool) -> list[Array]:
        found: list[Array] = []
        for i, j in itertools.product(range(shape[0]), range(shape[1])):
            unit = np.zeros(shape)
            unit[i, j] = 1.0
            unit = np.maximum(unit, unit.T) if symmetric else unit
            total = sum(pair[left] @ unit @ pair[0].T for pair in pairs)
            if np.any(total) and not any(np.any(b[total != 0.0]) for b in found):
                found.append(total / np.abs(total).max())
        return found

    return orbits((k, k), 0, True), orbits((m, k), 1, False)


def closure(generators: Sequence[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
    """All products of the generators (and the identity)."""
    if not generators:
        return []
    k, m = len(generators[0][0]), len(generators[0][1])
    group = [(np.eye(k), np.eye(m))]
    for element in group:
        for g in generators:
            new = (g[0] @ element[0], g[1] @ element[1])
            if not any(np.array_equal(new[0], h[0]) for h in group):
                group.append(new)
    return group


def _blocks(basis: Sequence[Array]) -> list[list[int]]:
    """Index sets that Q does not couple."""
    coupled = np.any([b != 0.0 for b in basis], axis=0)
    blocks: list[list[int]] = []
    for i in range(len(coupled)):
        joined = [b for b in blocks if np.any(coupled[i, b])]
        blocks = [b for b in blocks if b not in joined]
        blocks.append(sorted([i, *(j for b in joined for j in b)]))
    return blocks


def _corners(box: Array, blocks: Sequence[Sequence[int]]) -> list[list[Array]]:
    """Per block, its corners up to sign, as vectors over all channels."""
    out = []
    for block in blocks:
        part = []
        for signs in itertools.product((1.0, -1.0), repeat=len(block) - 1):
            corner = np.zeros(len(box))
            corner[list(block)] = np.array([1.0, *signs]) * box[list(block)]
            part.append(corner)
        out.append(part)
    return out


def _box_norm(
    cp: Any,
    q: Any,
    blocks: Sequence[Sequence[int]],
    corners: Sequence[Sequence[Any]],
    bound: float,
) -> list[Any]:
    """Sum over blocks of the largest |corner|²_P at most bound²."""
    squares = cp.Variable(len(blocks), nonneg=True)
    constraints = [cp.sum(squares) <= 1.0]
    for i, block in enumerate(blocks):
        part = q[np.ix_(block, block)]
        for corner in corners[i]:
            side = cp.reshape(corner[list(block)] / bound, (len(block), 1), order="C")
            top = cp.reshape(squares[i], (1, 1), order="C")
            constraints.append(_positive(cp, [[top, side.T], [side, part]]))
    return constraints


def _positive(cp: Any, rows: list[list[Any]]) -> Any:
    matrix = cp.bmat(rows)
    return 0.5 * (matrix + matrix.T) >> 0
