"""How residuals over several periods grow, and what share of them each cause has.

To first order in the estimate error d and the disturbance w, from instant k over M periods,

    r_M = Phi_M d_k - d_{k+M} + sum_j P_j w_j,    Phi_M = A_{M-1} .. A_0,  P_j = A_{M-1} .. A_{j+1}

with A_j = d error_map / de at the schedule of the replay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from safe_rl_core.program import Program

Array = NDArray[np.float64]

#: Periods over which residuals are compared, ascending.
WINDOWS = (1, 2, 5, 10, 20)
#: Periods per block of the bootstrap, and resamples.
BLOCK, RESAMPLES = 3 * WINDOWS[-1], 300
_RAISES = 20


@dataclass(frozen=True)
class Growth:
    """Linearised error dynamics at chosen instants (I), and the residuals there.

    ends (W, I, k, k): Phi_M; white, lasting, total: sum of the squares, square of the sum, and sum
    of the magnitudes of P_j, entry by entry; residuals (W, I, k).
    """

    ends: Array
    white: Array
    lasting: Array
    total: Array
    residuals: Array

    @staticmethod
    def of(transitions: Array, residuals: Array) -> Growth:
        """From A_j (WINDOWS[-1], I, k, k) and the residuals (W, I, k) at the same instants."""
        sums = [_products(transitions, window) for window in WINDOWS]
        return Growth(*(np.stack(arrays) for arrays in zip(*sums, strict=True)), residuals)

    def ratios(self, disturbance: Array, estimate_error: Array) -> Array:
        """|r| divided by the largest that such bounds (k,) explain to first order: (W, I, k)."""
        own = np.abs(self.ends) @ estimate_error + estimate_error
        return np.abs(self.residuals) / np.maximum(own + self.total @ disturbance, 1e-300)

    def raised(self, disturbance: Array, estimate_error: Array) -> tuple[Array, Array]:
        """Both, channel by channel as much larger as the residuals demand; nan stays nan."""
        w, d = disturbance.copy(), estimate_error.copy()
        unknown = np.abs(self.residuals).max(axis=(0, 1))
        for _ in range(_RAISES):
            known = (np.where(np.isnan(bound), unknown, bound) for bound in (w, d))
            worst = self.ratios(*known).max(axis=(0, 1))
            if (worst <= 1.0).all():
                break
            grow = np.clip(worst, 1.0, 2.0)
            w, d = w * grow, d * grow
        return w, d


@dataclass(frozen=True)
class Shares:
    """Root mean square (k,) of one cause, with the limits of its bootstrap interval."""

    likely: Array
    lower: Array
    upper: Array


def transitions(program: Program, x: Array, inputs: Array) -> Array:
    """A_0 .. A_{M-1} of the replays from x (I, n) under inputs (M, I, m): (M, I, k, k)."""
    sizes = dict(program.functions["error_map"].inputs)
    count, k = len(x), sizes["e"]
    rest = {name: np.zeros((count, k, size)) for name, size in sizes.items()}
    unit = np.broadcast_to(np.eye(k), (count, k, k))
    found = []
    for u in inputs:
        s = np.repeat(program("schedule", x, u)[:, np.newaxis], k, axis=1)
        at = (s, rest["e"], rest["v"], rest["w"])
        slopes = program.jvp("error_map", at, (np.zeros_like(s), unit, rest["v"], rest["w"]))
        found.append(np.swapaxes(slopes, 1, 2))
        x = program("step", x, u)
    return np.array(found)


def split(growth: Growth, residuals: Array, confidence: float) -> tuple[Shares, Shares]:
    """Disturbance and estimate error that explain the mean squares of residuals (W, N, k).

    `confidence` of each limit by itself. N must hold several blocks.
    """
    k = residuals.shape[2]
    own = (growth.ends**2).mean(axis=1) + np.eye(k)
    columns = (growth.white.mean(axis=1), growth.lasting.mean(axis=1), own)
    rows = np.concatenate(columns, axis=2).reshape(-1, 3 * k)
    blocks = residuals.shape[1] // BLOCK
    square = (residuals**2)[:, : blocks * BLOCK].reshape(len(WINDOWS), blocks, BLOCK, k)
    square = square.mean(axis=2)
    rng = np.random.default_rng(0)
    drawn = np.array(
        [
            _shares(rows, square[:, rng.integers(blocks, size=blocks)].mean(axis=1))
            for _ in range(RESAMPLES)
        ]
    )
    likely = _shares(rows, square.mean(axis=1))
    lower = np.minimum(np.quantile(drawn, 1.0 - confidence, axis=0), likely)
    upper = np.maximum(np.quantile(drawn, confidence, axis=0), likely)
    first, second = (Shares(likely[i], lower[i], upper[i]) for i in range(2))
    return first, second


def _shares(rows: Array, squares: Array) -> Array:
    """Non-negative least squares, every row in units of its own mean square: (2, k)."""
    weight = 1.0 / np.maximum(squares.ravel(), 1e-24)
    matrix = rows * weight[:, np.newaxis]
    scale = np.linalg.norm(matrix, axis=0)
    found = nnls(matrix / scale, np.ones(len(matrix)))[0] / scale
    white, lasting, ends = found.reshape(3, -1)
    return np.sqrt(np.stack((white + lasting, ends)))


def _products(a: Array, window: int) -> tuple[Array, Array, Array, Array]:
    """Phi_M, sum of P_j², (sum of P_j)², sum of |P_j| for A_0..A_{M-1}: each (I, k, k)."""
    product = np.broadcast_to(np.eye(a.shape[-1]), a.shape[1:])
    white, plain, total = (np.zeros(a.shape[1:]) for _ in range(3))
    for step in reversed(range(window)):
        white, plain, total = white + product**2, plain + product, total + np.abs(product)
        product = product @ a[step]
    return product, white, plain**2, total
