"""The same projection by OSQP alone: all rows at once, no row generation, no exact repair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import osqp
import scipy.sparse
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.kernel import Rows

Array = NDArray[np.float64]


def projection(bundle: Bundle, eps: float) -> Callable[[Rows, Array], Array]:
    """(rows, v_d (m,)) -> v (m,), warm-started from the call before; one per closed loop."""
    m, scale = len(bundle.inputs), bundle.input_scale
    count = bundle.kernel().num_rows
    low = np.concatenate((np.full(count, -1.0), bundle.input_low / scale))
    high = np.concatenate((np.full(count, np.inf), bundle.input_high / scale))
    full = np.vstack((np.ones((count, m)), np.eye(m)))
    matrix = scipy.sparse.csc_matrix(full)
    order = np.nonzero((full != 0.0).T)
    solver = osqp.OSQP()
    solver.setup(
        P=scipy.sparse.identity(m, format="csc"), q=np.zeros(m), A=matrix, l=low, u=high,
        eps_abs=eps, eps_rel=eps, verbose=False, polishing=False, max_iter=40_000,
    )  # fmt: skip

    def solve(rows: Rows, v_d: Array) -> Array:
        full[:count] = rows.a[:, :count].T
        low[:count] = rows.b[:count]
        solver.update(q=-v_d, l=low, Ax=full.T[order])
        return solver.solve(raise_error=False).x

    return solve
