"""The projection: the action nearest to the proposal that meets every row and the box.

    minimise ½ |v - v_d|²   subject to   A v >= b        v = u / scale, rows of unit length

The rows of neighbouring nodes are almost parallel, which costs a first-order solver thousands of
iterations, so OSQP never sees them all: it gets up to three violated rows, then, if another is
still violated, that one too (row generation). OSQP's multipliers say which rows are active; on
those the answer is computed exactly, and accepted only if every row and the box hold to 1e-9
(kernel.repair). If that fails, the exact active-set method decides over all rows. There is no
slack variable.
"""

from __future__ import annotations

import math

import numpy as np
import osqp
import scipy.sparse
from numpy.typing import NDArray

from safe_rl_core.kernel import Kernel, Rows

Array = NDArray[np.float64]

#: How often OSQP is asked before the exact method takes over.
CALLS = 2
#: Slack below which a row counts as violated, in units of v.
TOLERANCE = 1e-9
#: Rows that are collected before OSQP is asked for the first time.
GATHERED = 3
#: Rows that OSQP can hold.
SLOTS = GATHERED + CALLS
_NONE = -1.0e20


class Projection:
    """Projects onto the rows that `kernel.rows` wrote last."""

    def __init__(self, kernel: Kernel, box_low: Array, box_high: Array) -> None:
        """`box_low`, `box_high` (m,): the input box in units of v."""
        self._kernel = kernel
        self._m = len(box_low)
        self._first_box_row = kernel.num_rows
        self._low = np.concatenate((np.full(SLOTS, _NONE), box_low))
        self._high = np.concatenate((np.full(SLOTS, -_NONE), box_high))
        self._matrix = np.vstack((np.zeros((SLOTS, self._m)), np.eye(self._m)))
        pattern = np.vstack((np.ones((SLOTS, self._m)), np.eye(self._m))) != 0.0
        self._order = np.nonzero(pattern.T)
        indices, pointers = _compressed_columns(pattern)
        data = self._matrix.T[self._order]
        matrix = scipy.sparse.csc_matrix((data, indices, pointers), pattern.shape)
        self._solver = osqp.OSQP()
        self._solver.setup(
            P=scipy.sparse.identity(self._m, format="csc"),
            q=np.zeros(self._m),
            A=matrix,
            l=self._low,
            u=self._high,
            verbose=False,
            scaling=0,
            polishing=False,
            eps_abs=1e-4,
            eps_rel=1e-4,
            check_termination=5,
            adaptive_rho=False,
            rho=0.3,
            max_iter=400,
        )

    def __call__(self, rows: Rows, v_d: Array, row: int) -> Array | None:
        """The projection of v_d (m,), whose most violated row is `row`; None if there is none."""
        self._matrix[:SLOTS] = 0.0
        self._low[:SLOTS] = _NONE
        slots, v = self._gather(rows, v_d, row)
        if not slots:
            return v
        for k, gathered in enumerate(slots):
            self._fill(k, rows, gathered)
        for _ in range(CALLS):
            answer = self._solve(v_d)
            if answer is None:
                break
            v, multipliers = answer
            exact = self._kernel.repair(v_d, self._active(slots, multipliers))
            if exact is not None:
                return exact.copy()
            row, slack = self._kernel.scan(v)
            if slack >= -TOLERANCE or not self._new(row, slots):
                break
            self._fill(len(slots), rows, row)
            slots.append(row)
        exact, _ = self._kernel.project(v_d)
        return None if exact is None else exact.copy()

    def _gather(self, rows: Rows, v_d: Array, row: int) -> tuple[list[int], Array]:
        """Rows that are likely to matter, and the point that was reached.

        They are those met on the way when v_d is moved onto the most violated row and into the
        box, again and again: cheaper than finding them with OSQP. Without any, the point is v_d
        moved into the box, and that is the projection.
        """
        slots: list[int] = []
        low, high = self._low[SLOTS:], self._high[SLOTS:]
        v, slack = v_d, -math.inf
        while len(slots) < GATHERED and slack < -TOLERANCE:
            if row < self._first_box_row:
                if row in slots:
                    break
                slots.append(row)
                normal = rows.a[:, row]
                v = v + (rows.b[row] - normal @ v) * normal
            v = np.minimum(np.maximum(v, low), high)
            row, slack = self._kernel.scan(v)
        return slots, v

    def _new(self, row: int, slots: list[int]) -> bool:
        """Worth a slot: no row of the box, which OSQP always has, and not there yet."""
        return row < self._first_box_row and row not in slots

    def _fill(self, slot: int, rows: Rows, row: int) -> None:
        self._matrix[slot] = rows.a[:, row]
        self._low[slot] = rows.b[row]

    def _solve(self, v_d: Array) -> tuple[Array, Array] | None:
        self._solver.update(q=-v_d, l=self._low, Ax=self._matrix.T[self._order])
        result = self._solver.solve(raise_error=False)
        if result.x is None or not np.all(np.isfinite(result.x)):
            return None
        return result.x, result.y

    def _active(self, slots: list[int], multipliers: Array) -> list[int]:
        """Rows with a multiplier, in the kernel's numbering (box: lower rows, then upper)."""
        active = [row for row, y in zip(slots, multipliers, strict=False) if y < -1e-7]
        for j, y in enumerate(multipliers[SLOTS:]):
            if abs(y) > 1e-7:
                active.append(self._first_box_row + j + (self._m if y > 0.0 else 0))
        return active


def _compressed_columns(pattern: NDArray[np.bool_]) -> tuple[Array, Array]:
    counts = pattern.sum(axis=0)
    return np.nonzero(pattern.T)[1], np.concatenate(([0], np.cumsum(counts)))
