"""How far a safe-set function may sag between two samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Program

from safe_rl_systems.verification import interval as iv
from safe_rl_systems.verification.assumptions import ROOM, Assumptions
from safe_rl_systems.verification.interval import Array, Interval, evaluate, up
from safe_rl_systems.verification.jets import Jet, constant, gradients, propagate
from safe_rl_systems.verification.remainder import jets_at_states
from safe_rl_systems.verification.search import Restrict, supremum


def unit_norm(components: Sequence[int]) -> Restrict:
    """Restricts boxes to vectors whose `components` have norm 1 (a quaternion)."""
    index = list(components)

    def restrict(boxes: Interval) -> tuple[Interval, NDArray[np.bool_]]:
        square = iv.sqr(boxes[:, index])
        norm = square.sum()
        possible = (norm.low <= 1.0) & (norm.high >= 1.0)
        low, high = boxes.low.copy(), boxes.high.copy()
        for place, i in enumerate(index):
            others = [j for j in range(len(index)) if j != place]
            most = (1.0 - square[:, others].sum()).high
            limit = up(np.sqrt(np.maximum(most, 0.0)))
            low[:, i] = np.minimum(np.maximum(low[:, i], -limit), boxes.high[:, i])
            high[:, i] = np.maximum(np.minimum(high[:, i], limit), low[:, i])
        return Interval(low, high), possible

    return restrict


def sampling_margin(
    program: Program,
    given: Assumptions,
    restrict: Restrict | None,
    budget: int,
) -> Array:
    """How far h_i may sag below its chord between two samples: (n_h,).

    With the input held, h(x(t)) lies at most period²/8 sup (d²h/dt²)⁺ below its chord. The
    disturbance moves the state by at most twice its mean rate 2 disturbance/period (a constant
    acceleration does), so its part sags by at most sup |grad h| disturbance.
    """
    n = len(given.state_low)
    swept = _swept_states(program, given)
    inputs = Interval(given.input_low, given.input_high)
    box = Interval(
        np.concatenate((swept.low, inputs.low)), np.concatenate((swept.high, inputs.high))
    )
    joint = None if restrict is None else _beside(restrict, n)

    def bending(boxes: Interval) -> Array:
        x, u = boxes[:, :n], constant(boxes[:, n:])
        velocity = [jet.value for jet in propagate(program, "dynamics", [constant(x), u], 1)]
        along = [_moving(x[:, i], velocity[i]) for i in range(n)]
        moving = propagate(program, "dynamics", [along, u], 1)
        rates = gradients(moving, 1, boxes.shape[0])
        curved = [_moving(x[:, i], velocity[i], rates[:, i, 0]) for i in range(n)]
        jets = propagate(program, "safe_set", [curved], 2)
        return np.stack([_upper_end(jet, boxes.shape[0]) for jet in jets], -1)

    disturbance = given.disturbance
    jets = jets_at_states(program, given, disturbance, 1)

    def slope(boxes: Interval) -> Array:
        return gradients(jets(boxes), len(disturbance), boxes.shape[0]).mag @ disturbance

    sag = 0.125 * given.period**2 * supremum(bending, box, joint, budget=24 * budget)
    part = supremum(slope, swept, restrict, tolerance=0.1, budget=budget)
    return (sag + part) * (1.0 + ROOM)


def _beside(restrict: Restrict, n: int) -> Restrict:
    """`restrict` for boxes of (x, u)."""

    def joint(boxes: Interval) -> tuple[Interval, NDArray[np.bool_]]:
        x, possible = restrict(boxes[:, :n])
        low, high = np.hstack((x.low, boxes.low[:, n:])), np.hstack((x.high, boxes.high[:, n:]))
        return Interval(low, high), possible

    return joint


def _moving(value: Interval, speed: Interval, acceleration: Interval | None = None) -> Jet:
    """A jet in time."""
    cells = (1, value.shape[0])
    first = speed.broadcast_to(value.shape).reshape(*cells)
    if acceleration is None:
        return Jet(value, (0,), first)
    return Jet(value, (0,), first, ((0, 0),), acceleration.reshape(*cells))


def _upper_end(jet: Jet, cells: int) -> Array:
    return np.broadcast_to(jet.hessian.high[0], cells) if jet.pairs else np.zeros(cells)


def _swept_states(program: Program, given: Assumptions) -> Interval:
    """A box that the flow cannot leave within a period of any start in the state domain.

    Widths r with period |f| <= r on the box widened by r (Picard); tried by growing r.
    """
    n = len(given.state_low)
    u = Interval(given.input_low, given.input_high)[None]
    start = Interval(given.state_low, given.state_high)
    width = np.zeros(n)
    for _ in range(30):
        swept = start + Interval(-width, width)
        field = evaluate(program, "dynamics", swept[None], u)
        needed = up(given.period * field.mag[0])
        if np.all(needed <= width):
            return swept
        width = np.where(needed > width, 1.1 * needed, width)
    raise CertificateError(
        "the flow over one period cannot be enclosed from the state domain; make it smaller"
    )
