"""What the shield did, and whether the world looks as assumed: everything but the plans' VALID.

Every check covers all records at once and names the first that fails.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.audit.plans import EPS, growth, linearised, rolled_out
from safe_rl_core.audit.records import Array, Finding, Flight, Theorem
from safe_rl_core.audit.slopes import jacobian
from safe_rl_core.chain import Kind

#: Windows of the residual tests, in periods.
WINDOWS = (1, 5, 20)
_STAMP_NS = 2  # a stamp is a whole number of nanoseconds
_FLOAT32 = 3e-6  # an estimator may round to float32
SIGMA_MAX = 2.0  # the certificate's tables hold for disturbances up to so many times the assumed
#: States that are linearised at once.
_NODES = 3000


def check_flight(t: Theorem, f: Flight) -> list[Finding]:
    """Inputs, plans in hand, fallbacks, stamps. The kinds of `Finding` say whose fault it is.

    Before the first committed plan nothing is claimed (A5), so no premise is needed there.
    """
    count, covered = len(f.kind), f.plan >= 0
    sent = np.concatenate((np.repeat(t.stop[None], t.delay, 0), f.u_next))
    ahead = predicted(t, f, sent)
    since = np.arange(count) - np.append(f.committed, -1)[f.plan]
    commits, fallback = f.kind <= Kind.BACKUP, (f.kind == Kind.CONTINUE) | (f.kind == Kind.BASE)
    stops = f.kind == Kind.STOP
    has_plan = np.isin(np.arange(count), f.committed)
    due = np.where(since < t.horizon, Kind.CONTINUE, Kind.BASE)
    z_0, first = np.full_like(f.x_hat, np.nan), np.full_like(f.u_next, np.nan)
    z_0[f.committed], first[f.committed] = f.z_0, f.ubar[:, 0]
    wanted = _fallback_inputs(t, f, ahead, since)
    in_box = np.clip(wanted, t.low, t.high)
    late = np.abs(np.diff(f.stamp) - t.period * 1e9) > t.c.jitter * 1e9 + _STAMP_NS
    late = np.append(False, late | (f.stamp[1:] < f.stamp[:-1]))  # a difference may overflow
    # The first plan begins where the inputs of `delay` records before it act: those count too.
    begun = np.arange(count) > f.begin - max(t.delay, 1)
    shield = [
        (_differ(f.u_in_force, sent[:count]), f"the input in force is not, bit for bit, u_next of "
         f"{t.delay} records before (at the start: the stop action)"),
        (~((t.low <= f.u_next) & (f.u_next <= t.high)).all(1), "u_next leaves the input box"),
        ((commits != has_plan) & (covered | (f.kind != Kind.BACKUP)), "its kind and the presence "
         "of a plan contradict each other"),
        (has_plan & _differ(f.u_next, first), "u_next is not the committed plan's first input"),
        ((f.kind == Kind.ACCEPT) & _differ(f.u_next, f.proposal), "it says that the proposal was "
         "accepted, but u_next is not the proposal"),
        (has_plan & _apart(z_0, ahead), "z_0 is not the estimate moved by the pending inputs"),
        (~stops & covered & (f.index != since), "the index does not go on by one: an element of "
         "the plan is left out or replayed"),
        (fallback & ~covered, "it continues a plan, but none was committed"),
        (fallback & covered & (f.kind != due), "continued beyond the plan's end, or base before "
         "it"),
        (fallback & _apart(f.u_next, in_box), "u_next is not what the plan in hand (after it: the "
         "base controller) asks for"),
        (stops & _differ(f.u_next, np.broadcast_to(t.stop, f.u_next.shape)), "it says stop, but "
         "u_next is not the stop action"),
        (stops & covered, "the stop action was sent, which no plan covers"),
        ((f.sigma < 0.0) | (f.sigma > SIGMA_MAX), f"its sigma is not in 0 to {SIGMA_MAX:g}"),
    ]  # fmt: skip
    premise = [
        (covered & ~np.isfinite(f.x_hat).all(1), "no state estimate in this period (A2)"),
        (covered & _no_state(t, f.x_hat), "the estimate is no state, such as a quaternion that is "
         "not of length 1: errors about it mean nothing (A2)"),
        (begun & late, f"its stamp is not {t.period} s after the one before (A3)"),
        (covered & _frozen(t, f), "the estimate repeats bit for bit while the model moves (A2)"),
        (covered & fallback & _apart(wanted, in_box), "tracking saturates: the state is outside "
         "of the tube"),
    ]  # fmt: skip
    return [
        Finding(int(np.argmax(bad)), kind, f"{text}{_others(bad)}")
        for kind, checks in (("shield", shield), ("premise", premise))
        for bad, text in checks
        if bad.any()
    ]


def predicted(t: Theorem, f: Flight, sent: Array) -> Array:
    """The estimate of each record moved by the inputs pending then: where u_next takes effect."""
    z = f.x_hat
    for i in range(t.delay):
        z = t.program("step", z, sent[i : i + len(z)])
    return z


def residuals(t: Theorem, f: Flight) -> dict[int, Array]:
    """By window: largest residual / bound of each record (K,), the last periods replayed.

    Above 1 it proves that A1, A2 or A3 failed within the window. nan: cannot be tested, because
    no estimate, the window reaches before the first plan, or a bound leaves its domain.
    """
    ratios = {window: np.full(len(f.kind), np.nan) for window in WINDOWS}
    for window, ratio in ratios.items():
        ends = np.arange(f.begin + window, len(ratio))
        for part in np.array_split(ends, 1 + len(ends) * window // _NODES) if len(ends) else ():
            ratio[part] = _residual(t, f, part, window)
    return ratios


def _residual(t: Theorem, f: Flight, ends: NDArray[np.int64], window: int) -> Array:
    c, x = t.c, f.x_hat[ends - window]
    one, still = np.ones(len(ends)), np.zeros((len(ends), len(t.low)))
    u = f.u_in_force[ends[:, None] + np.arange(-window, 0)]
    # An estimate may stand outside of the domain by its error: replay from the nearest state.
    start = np.clip(x, c.state_low, c.state_high)
    off = t.program("difference", x, start)
    apart = (off != 0.0).any(-1, keepdims=True)
    box = np.where(apart, np.abs(off) + _estimate_box(t, off), c.estimate_error)
    z = rolled_out(t, start, u)
    inside, cell, a, _ = linearised(t, z[:, :-1], u)
    g, testable = box[..., None] * np.eye(box.shape[-1]), inside.all(1)
    for j in range(window):
        e = np.abs(g).sum(-1)
        testable &= (e <= c.error_domain).all(-1)
        w = growth(t, cell[:, j], e, still, one)
        g = np.concatenate((a[:, j] @ g, w[..., None] * np.eye(w.shape[-1])), axis=-1)
    seen = t.program("difference", f.x_hat[ends], z[:, -1])
    bound = np.abs(g).sum(-1) + _estimate_box(t, seen) + EPS
    return np.where(testable, (np.abs(seen) / bound).max(-1), np.nan)


def _estimate_box(t: Theorem, e: Array) -> Array:
    """How far the error of the true state may be from the error e (P, k) of the estimate.

    `tracking_error` bounds it for every e that a tube can hold; where the derivatives reach, so
    do they.
    """
    k, eta, most = e.shape[-1], t.c.estimate_error, t.c.tracking_error
    turn = np.abs(jacobian(t.program, "shifted", (e, np.zeros_like(e)), (1,)))
    box = turn @ eta + 0.5 * np.einsum("i,rik,k->r", eta, t.c.shift_remainder[:, k:, k:], eta)
    reach = (np.abs(e) <= t.c.base_extent).all(-1, keepdims=True)
    return np.where(reach, np.minimum(box, most), most)


def residual_findings(f: Flight, ratios: dict[int, Array]) -> Iterator[Finding]:
    """What the residual tests prove; a single period that cannot be tested is a finding too."""
    for window, ratio in ratios.items():
        if (broken := ratio > 1.0).any():
            k = int(np.argmax(broken))
            text = f"residual over {window} periods is {ratio[k]:.3g} of what A1 to A3 allow"
            yield Finding(k, "premise", f"{text}{_others(broken)}")
    if (untested := np.isnan(ratios[WINDOWS[0]][f.begin + 1 :])).any():
        text = f"the residual cannot be tested: outside of the domain{_others(untested)}"
        yield Finding(f.begin + 1 + int(np.argmax(untested)), "unchecked", text)


def _fallback_inputs(t: Theorem, f: Flight, ahead: Array, since: NDArray[np.int64]) -> Array:
    """What the plan in hand asks for at each record, or the base controller after it.

    Without an estimate the plan's element goes out as it is.
    """
    fallen = np.flatnonzero((f.plan >= 0) & (f.kind > Kind.BACKUP))
    wanted = np.full_like(f.u_next, np.nan)
    plans, place = np.unique(f.plan[fallen], return_inverse=True)
    states = rolled_out(t, f.z_0[plans], f.ubar[plans, : t.horizon])
    along = since[fallen] < t.horizon
    step = np.minimum(since[fallen], t.horizon - 1)
    held = np.nan_to_num(t.program("difference", ahead[fallen], states[place, step]))
    centre = t.program("base_point", states[:, -1])
    off = t.program("difference", ahead[fallen], centre[place])
    follow = f.ubar[f.plan[fallen], step] + held @ t.c.tracking_gain.T
    wanted[fallen] = np.where(along[:, None], follow, t.c.base_input + off @ t.c.base_gain.T)
    return wanted


def _frozen(t: Theorem, f: Flight) -> NDArray[np.bool_]:
    moved = t.program("difference", t.program("step", f.x_hat, f.u_in_force), f.x_hat)
    moving = np.abs(moved[:-1]).max(-1) > EPS
    return np.append(False, moving & ~_differ(f.x_hat[1:], f.x_hat[:-1]))


def _no_state(t: Theorem, x: Array) -> NDArray[np.bool_]:
    """Where the chart does not undo itself, which it does at every state."""
    e = np.broadcast_to(t.c.error_domain, (len(x), len(t.c.error_domain)))
    again = t.program("difference", t.program("retract", x, e), x)
    return (np.abs(again - e) > _FLOAT32 * e + EPS).any(1)


def _differ(a: Array, b: Array) -> NDArray[np.bool_]:
    bits = [np.ascontiguousarray(x, np.float64).view(np.uint64) for x in (a, b)]
    return (bits[0] != bits[1]).any(-1)


def _apart(a: Array, b: Array) -> NDArray[np.bool_]:
    """Further apart than rounding explains; not a number is apart from everything."""
    return ~(np.abs(a - b) <= EPS).all(-1)


def _others(bad: NDArray[np.bool_]) -> str:
    more = int(bad.sum()) - 1
    return f" (and {more} more)" if more else ""
