"""First and second derivatives of a program function, enclosed over boxes.

A `Jet` is one number of the program on a batch of cells, with its derivatives with respect to
seeded variables; only derivatives that are structurally nonzero are kept, as one block of
intervals (variables or pairs of variables, cells). The rules are the chain rule and nothing else:
no second derivative is written down for a robot.

Where a function jumps or has a kink inside a cell it has no derivative there. A choice (`where`,
`sign`, `floor`, comparisons) that a cell does not decide is therefore an error: split the cell.
An undecided `abs`, `min` or `max` is an error for second derivatives; for first derivatives the
hull of both sides is right, because the mean value theorem holds with generalised gradients
(Clarke, Optimization and Nonsmooth Analysis, 1983, theorem 2.3.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Function, Program

from safe_rl_systems.verification import interval as iv
from safe_rl_systems.verification.arithmetic import raw
from safe_rl_systems.verification.interval import Array, Interval, point
from safe_rl_systems.verification.jet_rules import Jet, apply

__all__ = ["Jet", "constant", "gradients", "hessian_sizes", "propagate", "seeded"]


def seeded(box: Interval, first: int = 0) -> list[Jet]:
    """The components of a box (cells, n) as variables number first, first + 1, …"""
    one = point(np.ones((1, 1)))
    return [Jet(box[:, i], (first + i,), one) for i in range(box.shape[1])]


def constant(box: Interval) -> list[Jet]:
    """The components of a box (cells, n), with no derivatives."""
    return [Jet(box[:, i]) for i in range(box.shape[1])]


def propagate(
    program: Program, name: str, inputs: Sequence[Sequence[Jet]], order: int
) -> list[Jet]:
    """Evaluate a function on jets, derivatives up to `order` (1 or 2); one jet per output."""
    iv.check_arithmetic()
    if order not in (1, 2):
        raise CertificateError(f"derivatives of order 1 or 2 are known, got {order}")
    function = iv.find(program, name)
    columns = _columns(function, inputs)
    last = _last_uses(function)
    values: list[Any] = []
    for k, ins in enumerate(function.instructions):
        try:
            values.append(apply(ins, values, columns, program.weights, order))
        except CertificateError as error:
            raise CertificateError(f"'{name}', value {k} ({ins.op}): {error}") from None
        for used in {*ins.args, k}:
            if last[used] <= k:
                values[used] = None
    return [values[k] for k in function.outputs]


def gradients(jets: Sequence[Jet], variables: int, cells: int) -> Interval:
    """All first derivatives: (cells, outputs, variables)."""
    low, high = np.zeros((2, len(jets), variables, cells))
    for r, jet in enumerate(jets):
        low[r, list(jet.variables)] = jet.gradient.low
        high[r, list(jet.variables)] = jet.gradient.high
    return raw(np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0))


def hessian_sizes(jets: Sequence[Jet], variables: int, cells: int) -> Array:
    """Largest absolute second derivatives per cell: (cells, outputs, variables, variables)."""
    sizes = np.zeros((len(jets), variables, variables, cells))
    for r, jet in enumerate(jets):
        if jet.pairs:
            a, b = np.array(jet.pairs).T
            sizes[r, a, b] = sizes[r, b, a] = jet.hessian.mag
    return np.moveaxis(sizes, -1, 0)


def _columns(function: Function, inputs: Sequence[Sequence[Jet]]) -> dict[str, Sequence[Jet]]:
    expected = tuple(size for _, size in function.inputs)
    got = tuple(len(vector) for vector in inputs)
    if expected != got:
        raise CertificateError(f"'{function.name}' takes vectors of sizes {expected}, got {got}")
    return {name: vector for (name, _), vector in zip(function.inputs, inputs, strict=True)}


def _last_uses(function: Function) -> list[int]:
    """For each value, the last instruction that needs it; outputs are needed for ever."""
    last = list(range(len(function.instructions)))
    for k, ins in enumerate(function.instructions):
        for a in ins.args:
            last[a] = k
    for k in function.outputs:
        last[k] = len(last)
    return last
