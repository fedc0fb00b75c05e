"""The derived bounds of a certificate, shown again; docs/theory.md says what each is for."""

from __future__ import annotations

import numpy as np
from flint import arb

from safe_rl_core.audit.ball import Jet, constants, seeds, square
from safe_rl_core.audit.claims import (
    ZERO,
    Array,
    Claims,
    Verdict,
    balls,
    jets,
    over,
    prove,
    up,
    values,
)
from safe_rl_core.errors import CertificateError

#: On the parts that the certificate names, a table must hold almost as it stands: what is off by
#: more than this is not a difference between two arithmetics.
PATIENCE = 0.01


def table(c: Claims, name: str, fixed: int, low: Array, high: Array, claimed: Array) -> Verdict:
    """|second derivatives| of a function <= claimed on a box; `fixed` inputs are not seeded."""
    sizes = [size for _, size in c.program.functions[name].inputs]
    ends, held = np.cumsum(sizes), sum(sizes[:fixed])
    claims = np.minimum(claimed, np.swapaxes(claimed, -1, -2))

    def excess(a: Array, b: Array) -> list[float]:
        if name == "safe_at" and not _possible(c, a, b):
            return []
        box = balls(a, b)
        parts = [box[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        free = [
            seeds(part, end - size - held)
            for part, size, end in zip(parts, sizes, ends, strict=True)
        ]
        outputs = jets(c, name, *map(constants, parts[:fixed]), *free[fixed:])
        if outputs is None:
            return [np.inf]
        rows = zip(outputs, claims.tolist(), strict=True)
        return [over(abs(x), row[i][j]) for jet, row in rows for (i, j), x in jet.hess.items()]

    if name == "error_map":
        group = [np.r_[g[c.k + c.m :], g[: c.k + c.m], g[: c.k]] for g in c.group]
        return prove(c, low, high, excess, group, c.remainder_splits, PATIENCE)
    return prove(c, low, high, excess)


def _possible(c: Claims, low: Array, high: Array) -> bool:
    """False if no state in the box has a unit quaternion."""
    sides = balls(low[c.unit], high[c.unit])
    return not sides or sum((square(x) for x in sides), ZERO).overlaps(arb(1))


def _spread(outputs: list[Jet] | None, reach: Array, extra: Array, claim: Array) -> list[float]:
    """Excess of sum_i |derivative to seed i| reach_i + extra over the claim, in the worst row."""
    if outputs is None:
        return [np.inf]
    return [
        over(sum((abs(x) * arb(reach[i]) for i, x in jet.grad.items()), arb(more)), bound)
        for jet, more, bound in zip(outputs, extra.tolist(), claim.tolist(), strict=True)
    ]


def _at_reference(c: Claims, low: Array, high: Array) -> list[Jet] | None:
    """error_map with its gradient at zero error, for all schedules of a box."""
    zero = [ZERO] * c.k
    free = seeds(zero, 0, 1), seeds([ZERO] * c.m, c.k, 1), seeds(zero, c.k + c.m, 1)
    return jets(c, "error_map", constants(balls(low, high)), *free)


def late_switching(c: Claims) -> Verdict:
    """disturbance >= what is assumed + 3 jitter/period sup |B(s)| (input_high - input_low)."""
    assumed = np.array([row["disturbance"] for row in c.bundle["assumptions"]["errors"]])
    late = 3.0 * c.jitter / c.period * (1.0 + 1e-12) * (c.input_high - c.input_low)
    reach = np.r_[np.zeros(c.k), late, np.zeros(c.k)]

    def excess(a: Array, b: Array) -> list[float]:
        return _spread(_at_reference(c, a, b), reach, assumed, c.disturbance)

    return prove(c, c.schedule_low, c.schedule_high, excess, _turns(c))


def _turns(c: Claims) -> list[Array]:
    """What the symmetries do to the schedule."""
    return [g[c.k + c.m :] for g in c.group]


def prediction(c: Claims) -> Verdict:
    """prediction_error, from estimate_error through the delay, for all schedules."""
    if c.delay_steps > 1 or np.any(c.estimate_error > c.error_domain):
        return "refused", "only a delay of one period, or none, can be checked"
    if c.delay_steps == 0:
        enough = bool(np.all(c.prediction_error >= c.estimate_error))
        return "proved" if enough else "refused", "prediction_error >= estimate_error: no delay"
    size = np.r_[c.estimate_error, np.zeros(c.m), c.disturbance]
    rest = 0.5 * (size @ c.remainder @ size).max(0) * (1.0 + 1e-12)

    def excess(a: Array, b: Array) -> list[float]:
        return _spread(_at_reference(c, a, b), size, rest, c.prediction_error)

    return prove(c, c.schedule_low, c.schedule_high, excess, _turns(c))


def tracking(c: Claims) -> Verdict:
    """|shifted(e, d) - e| for every d that |difference(x, x_hat)| <= prediction_error allows."""
    start = np.zeros(c.program.functions["operating_state"].inputs[0][1])
    z = values(c, "base_point", values(c, "operating_state", start))
    offset = seeds(balls(-c.prediction_error, c.prediction_error), 0, 1)
    moved = jets(c, "retract", constants(z), offset) or []
    sizes = c.prediction_error.tolist()
    back = np.array(
        [
            up(sum((abs(x) * arb(sizes[i]) for i, x in jet.grad.items()), ZERO))
            for jet in jets(c, "difference", constants(z), moved) or []
        ]
    )
    reach = np.maximum(c.error_domain, c.base_extent)

    def excess(a: Array, b: Array) -> list[float]:
        d = seeds(balls(-back, back), 0, 1)
        shifted = jets(c, "shifted", constants(balls(a, b)), d)
        return _spread(shifted, back, np.zeros(c.k), c.tracking_error)

    return prove(c, -reach, reach, excess)


def sampling(c: Claims) -> Verdict:
    """period²/8 sup (d²h/dt²)⁺ + sup |grad h| disturbance, over states and inputs."""
    low, high = _swept(c)
    n, eighth = len(low), arb(float(c.period)) ** 2 / 8
    noise = seeds(balls(-c.disturbance, c.disturbance), 0, 1)

    def excess(a: Array, b: Array) -> list[float]:
        if not _possible(c, a, b):
            return []
        x, u = balls(a[:n], b[:n]), constants(balls(a[n:], b[n:]))
        speed = jets(c, "dynamics", constants(x), u)
        along = [Jet(y, y, {0: v.value}, None) for y, v in zip(x, speed or [], strict=False)]
        rates, slopes = (
            speed and jets(c, "dynamics", along, u),
            jets(c, "safe_at", constants(x), noise),
        )
        if not rates or not slopes:
            return [np.inf]
        bent = [
            Jet(y.value, y.value, y.grad, {(0, 0): rate.grad.get(0, ZERO)})
            for y, rate in zip(along, rates, strict=True)
        ]
        rows = jets(c, "safe_set", bent)
        if not rows:
            return [np.inf]
        sag = [eighth * row.hess.get((0, 0), ZERO).max(ZERO) for row in rows]
        reach = np.array([up(x) for x in sag])
        return _spread(slopes, c.disturbance, reach, c.sampling_margin)

    return prove(c, np.r_[low, c.input_low], np.r_[high, c.input_high], excess)


def _swept(c: Claims) -> tuple[Array, Array]:
    """A box of states that no flow leaves within a period from the state domain (Picard)."""
    width, u = np.zeros(len(c.state_low)), constants(balls(c.input_low, c.input_high))
    for _ in range(30):
        low, high = (
            np.nextafter(c.state_low - width, -np.inf),
            np.nextafter(c.state_high + width, np.inf),
        )
        field = jets(c, "dynamics", constants(balls(low, high)), u)
        if field is None:
            break
        needed = np.array([up(arb(float(c.period)) * abs(jet.value)) for jet in field])
        if np.all(needed <= width):
            return low, high
        width = np.where(needed > width, 1.1 * needed, width)
    raise CertificateError("the flow over one period cannot be enclosed from the state domain")
