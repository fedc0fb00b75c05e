"""VALID, written a second time: every inequality of a committed plan, many plans at once.

A plan is z_0 and ubar_0 … ubar_{N-1}; z_{j+1} = F(z_j, ubar_j). docs/theory.md derives what is
computed here in float64 (k errors, m inputs, q rows of the safe set; EPS is the allowance for
rounding, assumption A6):

    tube  G_0 = diag(prediction_error), K_0 = 0, K_j = K;  E_j, V_j: row sums of |G_j|, |K_j G_j|
          G_{j+1} = [(A_j + B_j K_j) G_j, diag(w_j)]
    V2    h(z_j) - tube - curvature - sampling margin         V3  distance to the input box
    V4    1 - size of the last tube in the norm of the base set
    V5    the base set's own distance to the safe set, and rest at its centre

The tube is kept whole: no generator is merged, so it is never larger than the shield's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.audit.records import Array, Theorem
from safe_rl_core.audit.slopes import jacobian

EPS = 1e-9
#: Tubes that are propagated together: as many as a processor keeps at hand.
TUBES = 16


def rolled_out(t: Theorem, z_0: Array, inputs: Array) -> Array:
    """The states (P, N+1, n) of plans from z_0 (P, n) under inputs (P, N, m)."""
    states = [z_0]
    for j in range(inputs.shape[1]):
        states.append(t.program("step", states[-1], inputs[:, j]))
    return np.stack(states, axis=1)


def linearised(
    t: Theorem, z: Array, u: Array
) -> tuple[NDArray[np.bool_], NDArray[np.int64], Array, Array]:
    """Schedule in its box?, its cell, A = d error_map/de, B = d error_map/dv at (z, u)."""
    c, k, m = t.c, len(t.c.disturbance), u.shape[-1]
    s = t.program("schedule", z, u)
    inside = np.all((c.schedule_low <= s) & (s <= c.schedule_high), axis=-1)
    cells = np.asarray(c.schedule_cells, np.int64)
    place = np.floor((s - c.schedule_low) / (c.schedule_high - c.schedule_low) * cells)
    place = np.clip(np.nan_to_num(place), 0, cells - 1).astype(np.int64)
    cell = np.ravel_multi_index(tuple(np.moveaxis(place, -1, 0)), tuple(cells))
    rest = np.zeros((*(1,) * (s.ndim - 1), k))
    slopes = jacobian(t.program, "error_map", (s, rest, rest[..., :m] * 0.0, rest), (1, 2))
    return inside, cell, slopes[..., :k], slopes[..., k:]


def growth(t: Theorem, cell: NDArray[np.int64], e: Array, v: Array, scale: Array) -> Array:
    """What one period adds to the error box (P, k): disturbance and Taylor remainder."""
    noise = scale[:, None] * t.c.disturbance
    xi = np.concatenate((e, v, noise), axis=-1)
    pairs = (xi[:, :, None] * xi[:, None, :]).reshape(len(xi), -1, 1)
    table = t.c.remainder.reshape(len(t.c.remainder), e.shape[-1], -1)
    return noise + 0.5 * (table[cell] @ pairs)[..., 0] + EPS


def slacks(t: Theorem, z_0: Array, ubar: Array, scale: Array) -> Array:
    """Every inequality of P plans as a distance (P, R) >= 0 to failing; see `label`.

    `scale` (P,) multiplies disturbance, prediction and tracking error, and above 1 the sampling
    margin. Not a number counts as failed.
    """
    n = t.horizon
    z = rolled_out(t, z_0, ubar[:, :n])
    inside, cell, a, b = linearised(t, z[:, :n], ubar[:, :n])
    nothing = np.zeros((1, 1, len(t.c.disturbance)))
    h, grad = t.program("safe_at", z, nothing), jacobian(t.program, "safe_at", (z, nothing), (1,))
    tracking = scale[:, None] * t.c.tracking_error
    parts = (slice(i, i + TUBES) for i in range(0, len(z), TUBES))
    tubes = [_tube(t, cell[i], a[i], b[i], grad[i], scale[i]) for i in parts]
    last, box, rows, domain, control = (np.concatenate(x) for x in zip(*tubes, strict=True))
    curvature = 0.5 * np.einsum("pji,rik,pjk->pjr", box, t.c.safe_remainder, box)
    v2 = h - rows - curvature - np.maximum(scale, 1.0)[:, None, None] * t.c.sampling_margin - EPS
    control[:, 1:] += (np.abs(t.c.tracking_gain) @ tracking.T).T[:, None]
    v3 = (
        np.stack((ubar[:, :n] - control - t.low, t.high - ubar[:, :n] - control), -1)
        / (t.scale[:, None])
    )
    domain &= inside.all(1) & (control <= t.c.input_domain).all((1, 2))
    domain &= ((t.c.state_low - EPS <= z) & (z <= t.c.state_high + EPS)).all((1, 2))
    v4, v5 = _terminal(t, z[:, -1], last, box[:, -1])
    parts = (v2, v3, v4, v5, np.where(domain, np.inf, -np.inf))
    found = np.concatenate([part.reshape(len(z), -1) for part in parts], axis=1)
    return np.where(np.isnan(found), -np.inf, found)


def node(t: Theorem, index: int) -> int:
    """The node that the inequality at `index` in the rows of `slacks` is about; N + 1: the end."""
    safe, inputs = (t.horizon + 1) * len(t.rows), t.horizon * 2 * len(t.low)
    if index < safe:
        return index // len(t.rows)
    return (index - safe) // (2 * len(t.low)) if index < safe + inputs else t.horizon + 1


def label(t: Theorem, index: int) -> str:
    """Which inequality stands at `index` in the rows of `slacks`."""
    safe, inputs = (t.horizon + 1) * len(t.rows), t.horizon * 2 * len(t.low)
    if index < safe:
        return f"V2 {t.rows[index % len(t.rows)]} at node {node(t, index)}"
    if index < safe + inputs:
        return f"V3 {t.inputs[(index - safe) // 2 % len(t.low)]} at node {node(t, index)}"
    names = ("V4 terminal set", *(f"V5 {row} of the base set" for row in t.rows), "V5 rest")
    return (*names, "the certified domain")[index - safe - inputs]


def _tube(
    t: Theorem, cell: NDArray[np.int64], a: Array, b: Array, grad: Array, scale: Array
) -> tuple[Array, Array, Array, NDArray[np.bool_], Array]:
    """Last generators (P, k, L); row sums of |G_j|, |grad h G_j|, |K_j G_j|; domain."""
    c, (plans, n, k, _) = t.c, a.shape
    m, safe = len(t.low), grad.shape[-2]
    box, rows = np.empty((plans, n + 1, k)), np.empty((plans, n + 1, safe))
    control, domain = np.zeros((plans, n, m)), np.ones(plans, bool)
    tracking = scale[:, None] * c.tracking_error
    g = np.zeros((2, plans, k, k * (n + 1)))
    g[0, :, range(k), range(k)] = (scale[:, None] * c.prediction_error).T
    seen, ones = np.empty((plans, k + safe + m, k * (n + 1))), np.ones(k * (n + 1))
    for j in range(n + 1):
        size = k * (j + 1)
        now, then, seen_now = (x[..., :size] for x in (g[j % 2], g[(j + 1) % 2], seen))
        gain = c.tracking_gain * (j > 0)
        read = np.concatenate((grad[:, j], np.broadcast_to(gain, (plans, m, k))), axis=1)
        np.matmul(read, now, out=seen_now[:, k:])
        seen_now[:, :k] = now
        sums = np.abs(seen_now, out=seen_now) @ ones[:size]
        box[:, j] = e = sums[:, :k]
        rows[:, j], v = sums[:, k : k + safe], sums[:, k + safe :]
        domain &= (e <= c.error_domain).all(-1)
        if j == n:
            break
        control[:, j] = v
        v = v + tracking @ np.abs(gain).T
        held = b[:, j] @ gain
        w = growth(t, cell[:, j], e, v, scale)
        w += (np.abs(held) @ tracking[..., None])[..., 0]
        np.matmul(a[:, j] + held, now, out=then)
        g[(j + 1) % 2][:, range(k), range(size, size + k)] = w
    return g[n % 2], box, rows, domain, control


def _terminal(t: Theorem, z: Array, g: Array, e: Array) -> tuple[Array, Array]:
    """V4 (P,) and V5 (P, q + 1) at the last node z (P, n) with tube g (P, k, L), box e (P, k)."""
    c, call = t.c, t.program
    centre, rest = call("base_point", z), np.zeros_like(e)
    u = np.broadcast_to(c.base_input, (len(z), len(t.low)))
    off = call("difference", z, centre)
    to_norm = c.base_factor.T @ jacobian(call, "shifted", (off, rest), (1,))
    k = len(c.disturbance)
    curvature = 0.5 * np.einsum("pi,rik,pk->pr", e, c.shift_remainder[:, k:, k:], e)
    size = (
        np.linalg.norm(off @ c.base_factor, axis=-1)
        + np.linalg.norm(np.abs(to_norm @ g).sum(-1), axis=-1)
        + np.linalg.norm(curvature @ np.abs(c.base_factor), axis=-1)
    )
    v4 = np.where((np.abs(off) <= c.base_extent).all(-1), 1.0 - EPS - size, -np.inf)
    grad = jacobian(call, "safe_at", (centre, rest), (1,))
    reach = np.linalg.norm(np.linalg.solve(c.base_factor, np.swapaxes(grad, -1, -2)), axis=-2)
    bend = 0.5 * np.einsum("i,rik,k->r", c.base_extent, c.safe_remainder, c.base_extent)
    fits = call("safe_at", centre, rest) - reach - bend - c.sampling_margin - EPS
    drift = np.abs(call("difference", call("step", centre, u), centre)).max(-1)
    drift = np.maximum(drift, np.abs(call("schedule", centre, u) - c.base_schedule).max(-1))
    return v4, np.concatenate((fits, np.where(drift <= EPS, np.inf, -np.inf)[:, None]), axis=1)
