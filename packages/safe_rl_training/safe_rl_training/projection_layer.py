"""The shield's projection for batches, exact and differentiable: what a policy is trained through.

    minimise ½ |v - v_d|²   subject to   A v >= b,  low <= v <= high        v = u / input_scale

one problem per batch element, without slack variable. The method is the core's (kernel/rollout.c):
Goldfarb and Idnani's dual active set (Math. Programming 27, 1983) for the identity Hessian, here
for all elements at once. Every iteration enters the most violated row of each unfinished element
and drops those whose multiplier would become negative. Only entered rows are ever touched, so
hundreds of rows cost one product with v per iteration.

At most m rows N are active, and independent. Instead of a factorisation their dual basis P is kept
(P N' = 1, rows of P in the span of N): the multipliers are P (v - v_d), a row n enters by
P <- [P - (P n) z' / z'z; z' / z'z] with z = n - N' P n, and leaves by projecting P along its own.
A row with z = 0 depends on the active ones: it replaces one of them, or the rows contradict each
other.

The derivative is that of the projection onto N v = b (N, b the final active rows):

    dv = (1 - P' N)(dv_d + dN' lambda) + P' (db - dN v),        N' lambda = v - v_d

Where the active set changes it is that of one side. It is of first order only.

The layer is the projection, not the shield: that verifies the answer's plan too and blends.

Source of the layer: PS2-RL differentiates an interior-point solver with one slack for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel import Kernel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: How far a row may miss at the answer, in units of v; a proposal passes as it is with PASSING
#: times that, so that an answer, rounded, is its own projection. In float64 these are the core's.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
PASSING = 10.0
#: Rows that may enter before an element is given up as infeasible; as in the core.
ITERATIONS = 64
#: Squared sine of the angle to the span of the active rows below which a row depends on them.
DEPENDENT = 1e-18
#: Rate below which a multiplier does not shrink.
_RATE = 1e-13

_T = TypeVar("_T", "_Problem", "_Point", "_Row")


@dataclass(frozen=True)
class Projected:
    """Projections of a batch.

    `v` (B, m), nan where there is none. `feasible` (B,) bool: False where the rows contradict each
    other or anything is not a number; the caller then takes the backup action. `active` (B, m)
    int64: active rows in no particular order, -1 for none, numbered as in the kernel: R rows, m
    lower bounds, m upper bounds. `iterations` (B,) int64: rows entered; 0: v is v_d bit for bit.
    """

    v: Tensor
    feasible: Tensor
    active: Tensor
    iterations: Tensor


@dataclass(frozen=True)
class SafeAction:
    """What `ProjectionLayer` makes of a batch of proposals.

    `action` (B, m) SI units. `feasible` (B,) bool: False: it is the backup action. `projected`
    (B,) bool: False: it is proposal or backup. `squared_distance` (B,): |action - proposal|² in
    units of v. Its gradient keeps the proposal from drifting along directions that the rows block;
    squared, because the root has no derivative at 0.
    """

    action: Tensor
    feasible: Tensor
    projected: Tensor
    squared_distance: Tensor


@dataclass(frozen=True)
class BatchRows:
    """`Kernel.rows` of B states: A (B, R, m) and b (B, R), unit rows; backup (B, m) SI units."""

    rows: Tensor
    offsets: Tensor
    backup: Tensor


def rows_of(kernel: Kernel, states: NDArray[np.float64] | Tensor) -> BatchRows:
    """The shield's own rows at states (B, n) in which the action takes effect; float64, CPU."""
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 2 or states.shape[1] != kernel.n:
        raise ModelError(f"states must have shape (B, {kernel.n}), got {states.shape}")
    count, last = len(states), kernel.num_rows
    a, b = np.empty((count, kernel.m, last)), np.empty((count, last))
    backup = np.empty((count, kernel.m))
    for k, x in enumerate(states):
        rows = kernel.rows(x)
        a[k], b[k], backup[k] = rows.a[:, :last], rows.b[:last], rows.inputs[0]
    normals = torch.from_numpy(a).transpose(1, 2).contiguous()
    return BatchRows(normals, torch.from_numpy(b), torch.from_numpy(backup))


def project(v_d: Tensor, rows: Tensor, offsets: Tensor, low: Tensor, high: Tensor) -> Projected:
    """The nearest v to v_d (B, m) with rows (B, R, m) v >= offsets (B, R) and low <= v <= high.

    All in units of v = u / input_scale, of one dtype, float64 or float32, on one device; rows of
    unit length (a row 0 >= b <= 0 is no row); `low`, `high` (m,) or (B, m). Rows are compared in
    their dtype, the active ones handled in float64. Differentiable once in v_d, rows and offsets.
    """
    _check(v_d, rows, offsets, low, high)
    with torch.no_grad():
        problem = _Problem(
            v_d.double(),
            rows,
            offsets,
            low.double().expand_as(v_d),
            high.double().expand_as(v_d),
        )
        point, feasible, iterations = _solve(problem)
        answer = torch.minimum(torch.maximum(point.v, problem.low), problem.high).to(v_d.dtype)
        answer = torch.where((iterations == 0)[:, None], v_d, answer)
        answer = answer.masked_fill(~feasible[:, None], torch.nan)
    v = _OnActiveRows.apply(v_d, rows, offsets, answer, point, feasible)
    active = point.index.masked_fill(~feasible[:, None], -1)
    return Projected(v, feasible, active, iterations)


class ProjectionLayer(nn.Module):
    """Proposals in SI units -> safe actions: scale, project, clip, backup where infeasible."""

    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, scale: Any, low: Any, high: Any) -> None:
        """`scale`, `low`, `high` (m,): `input_scale` and input box of the robot, SI units."""
        super().__init__()
        for name, value in (("scale", scale), ("low", low), ("high", high)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64).clone())

    @classmethod
    def of(cls, bundle: Bundle) -> ProjectionLayer:
        """The layer of the bundle's robot, in float64; `.to(...)` for another dtype or device."""
        return cls(bundle.input_scale, bundle.input_low, bundle.input_high)

    def forward(
        self, u_proposed: Tensor, rows: Tensor, offsets: Tensor, backup: Tensor
    ) -> SafeAction:
        """Proposals and backup actions (B, m) in SI units; rows, offsets as in `project`.

        Through a projected action the gradient is the projection's, through a proposal that passes
        it is 1, and through a backup action there is none.
        """
        found = project(
            u_proposed / self.scale, rows, offsets, self.low / self.scale, self.high / self.scale
        )
        projected = found.feasible & (found.iterations > 0)
        action = torch.where(projected[:, None], found.v * self.scale, u_proposed)
        action = torch.minimum(torch.maximum(action, self.low), self.high)
        action = torch.where(found.feasible[:, None], action, backup.detach())
        distance = (((action - u_proposed) / self.scale) ** 2).sum(-1)
        return SafeAction(action, found.feasible, projected, distance)


@dataclass(frozen=True)
class _Problem:
    """v_d, low, high (B, m) float64; rows (B, R, m) and offsets (B, R) as given."""

    v_d: Tensor
    rows: Tensor
    offsets: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class _Point:
    """v (B, m), the active rows in m slots, and what belongs to each; an empty slot is all zero.

    normals, basis (B, m, m): N and P; offsets, multipliers (B, m); index (B, m): -1 if empty.
    """

    v: Tensor
    normals: Tensor
    basis: Tensor
    offsets: Tensor
    multipliers: Tensor
    index: Tensor


@dataclass(frozen=True)
class _Row:
    """The most violated row of each element: index (B,), normal (B, m), offset, slack (B,)."""

    index: Tensor
    normal: Tensor
    offset: Tensor
    slack: Tensor


class _OnActiveRows(torch.autograd.Function):
    """The answer v with the derivative of the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        v_d: Tensor,
        rows: Tensor,
        offsets: Tensor,
        v: Tensor,
        point: _Point,
        feasible: Tensor,
    ) -> Tensor:
        """v as it is; `point` and `feasible` are remembered."""
        ctx.point, ctx.feasible, ctx.shape = point, feasible, rows.shape
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of v_d, rows and offsets; none of an infeasible element."""
        point, (count, last, m) = ctx.point, ctx.shape
        g = torch.where(ctx.feasible[:, None], grad.double(), 0.0)
        of_offsets = _times(point.basis, g)
        along = g - _times(point.normals.mT, of_offsets)
        row = ctx.feasible[:, None] & (point.index >= 0) & (point.index < last)
        index = torch.where(row, point.index, 0)
        d_rows = d_offsets = None
        if ctx.needs_input_grad[1]:
            of_rows = point.multipliers[..., None] * along[:, None]
            of_rows = of_rows - of_offsets[..., None] * point.v[:, None]
            of_rows = torch.where(row[..., None], of_rows, 0.0).to(grad.dtype)
            d_rows = grad.new_zeros(count, last, m)
            d_rows.scatter_add_(1, index[..., None].expand(-1, -1, m), of_rows)
        if ctx.needs_input_grad[2]:
            d_offsets = grad.new_zeros(count, last)
            d_offsets.scatter_add_(1, index, torch.where(row, of_offsets, 0.0).to(grad.dtype))
        return along.to(grad.dtype), d_rows, d_offsets, None, None, None


def _solve(problem: _Problem) -> tuple[_Point, Tensor, Tensor]:
    """The last point of every element, whether it is the projection, and the rows entered.

    Finished elements are carried along until half of the elements are finished: moving the rows of
    the others together costs as much as one more look at all.
    """
    tolerance = TOLERANCE[problem.rows.dtype]
    result = point = _start(problem)
    feasible = torch.zeros_like(problem.v_d[:, 0], dtype=torch.bool)
    iterations = torch.zeros_like(point.index[:, 0])
    where = torch.arange(len(feasible), device=feasible.device)
    open_ = ~feasible
    inside = ((point.v >= problem.low) & (point.v <= problem.high)).all(-1)
    for k in range(ITERATIONS + 1):
        row = _most_violated(problem, point.v)
        done = row.slack >= -tolerance if k else (row.slack >= -PASSING * tolerance) & inside
        feasible[where] |= open_ & done
        open_ = open_ & ~done
        remaining = int(open_.sum())
        if remaining == 0 or k == ITERATIONS:
            break
        if 2 * remaining <= len(where):
            result = _put(result, where, point)
            keep = open_.nonzero()[:, 0]
            problem, point, row = _take(problem, keep), _take(point, keep), _take(row, keep)
            where, open_ = where[keep], open_[keep]
        point, contradictory = _enter(problem, point, row, open_)
        open_ = open_ & ~contradictory
        iterations[where] += open_
    return _put(result, where, point), feasible, iterations


def _start(problem: _Problem) -> _Point:
    """v = v_d and no active row."""
    v = problem.v_d
    square = v.new_zeros(*v.shape, v.shape[1])
    return _Point(
        v=v,
        normals=square,
        basis=square,
        offsets=torch.zeros_like(v),
        multipliers=torch.zeros_like(v),
        index=torch.full_like(v, -1, dtype=torch.int64),
    )


def _most_violated(problem: _Problem, v: Tensor) -> _Row:
    """Over rows and box; its slack n.v - b in float64, nan if anything is not a number."""
    count, last, m = problem.rows.shape
    product = torch.bmm(v.to(problem.rows.dtype)[:, None], problem.rows.mT)[:, 0]
    least, row = (product - problem.offsets).min(-1)
    box_least, side = torch.cat((v - problem.low, problem.high - v), -1).min(-1)
    of_box = (box_least < least)[:, None]
    eye = torch.eye(m, dtype=v.dtype, device=v.device)
    bounds = torch.cat((problem.low, -problem.high), -1)
    each = torch.arange(count, device=v.device)
    normal = torch.where(of_box, torch.cat((eye, -eye))[side], problem.rows[each, row].double())
    offset = torch.where(of_box[:, 0], bounds[each, side], problem.offsets[each, row].double())
    index = torch.where(of_box[:, 0], last + side, row)
    return _Row(index, normal, offset, (normal * v).sum(-1) - offset)


def _enter(problem: _Problem, point: _Point, row: _Row, open_: Tensor) -> tuple[_Point, Tensor]:
    """Make `row` active where `open_` (B,); also, where it contradicts the active rows."""
    added, slack = torch.zeros_like(row.offset), row.slack
    contradictory = torch.zeros_like(open_)
    for _ in range(point.index.shape[1] + 1):
        rate = _times(point.basis, row.normal)
        z = row.normal - _times(point.normals.mT, rate)
        again = _times(point.basis, z)
        rate, z = rate + again, z - _times(point.normals.mT, again)
        length2 = (z * z).sum(-1)
        filled = point.index >= 0
        shrinking = filled & (rate > _RATE)
        ratio = torch.where(shrinking, point.multipliers / rate, torch.inf)
        dual, leaving = ratio.min(-1)
        moves = (length2 > DEPENDENT) & ~filled.all(-1)
        primal = torch.where(moves, -slack / length2, torch.inf)
        step = torch.minimum(dual, primal)
        contradictory = contradictory | (open_ & ~step.isfinite())
        open_ = open_ & step.isfinite()
        step = torch.where(open_, step, 0.0)
        added = added + step
        moved = torch.where((open_ & moves)[:, None], point.v + step[:, None] * z, point.v)
        multipliers = point.multipliers - step[:, None] * torch.where(filled, rate, 0.0)
        point = replace(point, v=moved, multipliers=multipliers)
        adds = open_ & (primal <= dual)
        point = _added(point, row, adds, rate, z / length2[:, None], added)
        open_ = open_ & ~adds
        if not open_.any():
            break
        point = _dropped(point, open_, leaving)
        slack = (row.normal * point.v).sum(-1) - row.offset
    return _settled(problem, point), contradictory


def _added(
    point: _Point, row: _Row, adds: Tensor, rate: Tensor, dual: Tensor, multiplier: Tensor
) -> _Point:
    """The row into the first empty slot, where `adds` (B,); `dual` (B, m) is its row of P."""
    slot = (point.index < 0).to(torch.uint8).argmax(-1)
    here = _one_hot(slot, adds, point.index)
    change = torch.where(adds[:, None, None], rate[..., None] * dual[:, None], 0.0)
    return replace(
        point,
        normals=torch.where(here[..., None], row.normal[:, None], point.normals),
        basis=torch.where(here[..., None], dual[:, None], point.basis - change),
        offsets=torch.where(here, row.offset[:, None], point.offsets),
        multipliers=torch.where(here, multiplier[:, None], point.multipliers),
        index=torch.where(here, row.index[:, None], point.index),
    )


def _dropped(point: _Point, drops: Tensor, slot: Tensor) -> _Point:
    """Slot `slot` (B,) emptied where `drops` (B,)."""
    here = _one_hot(slot, drops, point.index)
    own = point.basis[torch.arange(len(slot), device=slot.device), slot]
    share = _times(point.basis, own) / (own * own).sum(-1, keepdim=True)
    change = torch.where(drops[:, None, None], share[..., None] * own[:, None], 0.0)
    return replace(
        point,
        normals=point.normals.masked_fill(here[..., None], 0.0),
        basis=(point.basis - change).masked_fill(here[..., None], 0.0),
        offsets=point.offsets.masked_fill(here, 0.0),
        multipliers=point.multipliers.masked_fill(here, 0.0),
        index=point.index.masked_fill(here, -1),
    )


def _settled(problem: _Problem, point: _Point) -> _Point:
    """The same without the rounding of the way: v back onto N v = b, multipliers from v."""
    miss = _times(point.normals, point.v) - point.offsets
    v = point.v - _times(point.basis.mT, miss)
    return replace(point, v=v, multipliers=_times(point.basis, v - problem.v_d).clamp(min=0.0))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(B, i, j), (B, j) -> (B, i)."""
    return torch.bmm(matrix, vector[..., None])[..., 0]


def _one_hot(slot: Tensor, where: Tensor, like: Tensor) -> Tensor:
    """(B, m) bool: slot (B,) of each element for which `where` (B,)."""
    slots = torch.arange(like.shape[1], device=like.device)
    return (slots == slot[:, None]) & where[:, None]


def _take(data: _T, keep: Tensor) -> _T:
    """The elements `keep` of every tensor."""
    return type(data)(*(getattr(data, f.name)[keep] for f in fields(data)))


def _put(into: _Point, where: Tensor, point: _Point) -> _Point:
    """`into` with the elements `where` replaced by those of `point`."""
    return _Point(
        *(
            torch.index_copy(getattr(into, f.name), 0, where, getattr(point, f.name))
            for f in fields(point)
        )
    )


def _check(v_d: Tensor, rows: Tensor, offsets: Tensor, low: Tensor, high: Tensor) -> None:
    """ModelError unless the arguments of `project` fit together."""
    tensors = {"v_d": v_d, "rows": rows, "offsets": offsets, "low": low, "high": high}
    if v_d.dtype not in TOLERANCE or len({t.dtype for t in tensors.values()}) > 1:
        kinds = ", ".join(f"{name} {t.dtype}" for name, t in tensors.items())
        raise ModelError(f"project wants one dtype, float64 or float32, got {kinds}; use .to(...)")
    count, m = v_d.shape if v_d.ndim == 2 else (-1, -1)
    last = rows.shape[1] if rows.ndim == 3 else 0
    fits = (
        last > 0
        and rows.shape == (count, last, m)
        and offsets.shape == (count, last)
        and all(bound.shape in ((m,), (count, m)) for bound in (low, high))
    )
    if not fits:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ModelError(
            "project wants v_d (B, m), rows (B, R, m), offsets (B, R) with R >= 1, low and high "
            f"(m,) or (B, m), got {shapes}"
        )
