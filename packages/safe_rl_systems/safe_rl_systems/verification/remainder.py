"""Bounds of the second derivatives of error_map, shifted and safe_at.

They bound what the linear error dynamics leave out: by Taylor's theorem, a function whose second
derivatives are at most H_ab on a box around 0 differs from its linear part by at most
½ sum_ab H_ab |x_a| |x_b| there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from safe_rl_core.certificate import SIGMA_MAX
from safe_rl_core.program import Program

from safe_rl_systems.verification.assumptions import (
    ROOM,
    Assumptions,
    Progress,
    schedule_boxes,
)
from safe_rl_systems.verification.interval import Array, Interval
from safe_rl_systems.verification.jets import Jet, constant, hessian_sizes, propagate, seeded
from safe_rl_systems.verification.search import (
    CHUNK,
    Restrict,
    best_splits,
    in_chunks,
    subdivide,
    supremum,
)


def error_jets(
    program: Program, given: Assumptions, boxes: Interval, order: int
) -> tuple[list[Jet], int]:
    """error_map on boxes of (s, e, v, w), seeded in (e, v, w): (jets, number of variables)."""
    p, k, m = len(given.schedule_low), len(given.disturbance), len(given.input_low)
    s, e, v = boxes[:, :p], boxes[:, p : p + k], boxes[:, p + k : p + k + m]
    inputs = [constant(s), seeded(e), seeded(v, k), seeded(boxes[:, p + k + m :], k + m)]
    return propagate(program, "error_map", inputs, order), 2 * k + m


def choose_splits(program: Program, given: Assumptions, sub_boxes: int) -> Array:
    """Sub-boxes per variable of (s, e, v, w) that `error_remainder` is to use in every cell.

    They are chosen for the cell whose undivided bound is worst; sums over the error channels are
    in units of that bound.
    """
    size = _sizes(given)
    boxes = _cell_boxes(given, size)
    rows = in_chunks(lambda b: second_order(_hessians(program, given, b), size), boxes)
    largest = rows.max(axis=0)
    scale = np.where((largest > 0.0) & np.isfinite(largest), largest, 1.0)

    def weigh(boxes: Interval) -> Array:
        return (second_order(_hessians(program, given, boxes), size) / scale).sum(axis=1)

    worst = int(np.argmax((rows / scale).sum(axis=1)))
    return best_splits(weigh, boxes[worst], sub_boxes)


def error_remainder(program: Program, given: Assumptions, splits: Array, tell: Progress) -> Array:
    """Sup |second derivatives of error_map| per schedule cell: (C, k, d, d)."""
    boxes, table = _cell_boxes(given, _sizes(given)), []
    for c in range(boxes.shape[0]):
        tell("remainder", c, boxes.shape[0])
        parts = subdivide(boxes[c], splits)
        table.append(_largest(lambda b: _hessians(program, given, b), parts))
    return np.stack(table) * (1.0 + ROOM)


def _sizes(given: Assumptions) -> Array:
    """Half widths of (e, v, w); w so large that a tube may be asked for SIGMA_MAX."""
    wide = SIGMA_MAX * given.disturbance
    return np.concatenate((given.error_domain, given.input_domain, wide))


def _cell_boxes(given: Assumptions, size: Array) -> Interval:
    """One box of (s, e, v, w) per schedule cell."""
    cells = schedule_boxes(given)
    sides = np.tile(size, (cells.shape[0], 1))
    return Interval(np.hstack((cells.low, -sides)), np.hstack((cells.high, sides)))


def _hessians(program: Program, given: Assumptions, boxes: Interval) -> Array:
    jets, d = error_jets(program, given, boxes, 2)
    return hessian_sizes(jets, d, boxes.shape[0])


def second_order(hessians: Array, size: Array) -> Array:
    """½ sum_ab hessians[..., a, b] size_a size_b."""
    return 0.5 * np.einsum("...ab,a,b->...", hessians, size, size)


def _largest(function: Callable[[Interval], Array], boxes: Interval) -> Array:
    """The entrywise maximum over boxes, a chunk at a time."""
    best = function(boxes[:1]).max(axis=0)
    for i in range(0, boxes.shape[0], CHUNK):
        best = np.maximum(best, function(boxes[i : i + CHUNK]).max(axis=0))
    return best


def shift_remainder(program: Program, given: Assumptions, sub_boxes: int) -> Array:
    """Sup |second derivatives of shifted(e, d)|, |e| <= base_extent, |d| <= error_domain."""
    size = np.concatenate((given.base_extent, given.error_domain))
    box = Interval(-size, size)

    def hessians(boxes: Interval) -> Array:
        k = len(given.base_extent)
        inputs = [seeded(boxes[:, :k]), seeded(boxes[:, k:], k)]
        jets = propagate(program, "shifted", inputs, 2)
        return hessian_sizes(jets, 2 * k, boxes.shape[0])

    splits = best_splits(lambda b: second_order(hessians(b), size).sum(axis=1), box, sub_boxes)
    return _largest(hessians, subdivide(box, splits)) * (1.0 + ROOM)


def jets_at_states(program: Program, given: Assumptions, error: Array, order: int) -> Callable:
    """Boxes (cells, n) of states -> jets of safe_at in e, |e| <= error."""

    def jets(boxes: Interval) -> list[Jet]:
        count = boxes.shape[0]
        e = Interval(-error, error).broadcast_to((count, len(error)))
        return propagate(program, "safe_at", [constant(boxes), seeded(e)], order)

    return jets


def safe_remainder(
    program: Program, given: Assumptions, restrict: Restrict | None, budget: int
) -> Array:
    """Sup |d² safe_at / de²| over the state domain and every e of a tube or the base set."""
    k = len(given.error_domain)
    jets = jets_at_states(program, given, np.maximum(given.error_domain, given.base_extent), 2)
    shape = (program.functions["safe_at"].output_size, k, k)

    def hessians(boxes: Interval) -> Array:
        return hessian_sizes(jets(boxes), k, boxes.shape[0]).reshape(boxes.shape[0], -1)

    states = Interval(given.state_low, given.state_high)
    largest = supremum(hessians, states, restrict, budget=budget)
    return largest.reshape(shape) * (1.0 + ROOM)
