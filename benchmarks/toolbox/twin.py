"""The slow twin: rollout, sensitivities and rows by the program's numpy interpreter.

Every contestant, ours included, must agree with it before it is timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle

Array = NDArray[np.float64]

#: Largest accepted difference in float64, relative to 1 + |value|.
TOLERANCE = 1e-8


@dataclass(frozen=True)
class Answer:
    """psi (N+1, n), tangents (N+1, m+1, n), and the normalised rows A (M, m), b (M,)."""

    states: Array
    tangents: Array
    a: Array
    b: Array


def twin(bundle: Bundle, x: Array) -> Answer:
    """The answer of the interpreter for one state (n,)."""
    program, m = bundle.program, len(bundle.inputs)
    u_b = program("backup_policy", x)
    d_x = np.zeros((m + 1, len(x)))
    d_x[m] = program("dynamics", x, u_b)
    d_u = np.eye(m + 1, m)
    wide = np.broadcast_to(x, d_x.shape)
    tangents = [program.jvp("step", (wide, np.broadcast_to(u_b, d_u.shape)), (d_x, d_u))]
    states = [program("step", x, u_b)]
    for _ in range(bundle.horizon):
        y = np.broadcast_to(states[-1], d_x.shape)
        u = np.broadcast_to(program("backup_policy", states[-1]), d_u.shape)
        turn = program.jvp("backup_policy", (y,), (tangents[-1],))
        tangents.append(program.jvp("step", (y, u), (tangents[-1], turn)))
        states.append(program("step", y[0], u[0]))
    return _with_rows(bundle, u_b, np.array(states), np.array(tangents))


def _with_rows(bundle: Bundle, u_b: Array, states: Array, tangents: Array) -> Answer:
    program, m = bundle.program, len(bundle.inputs)
    wide = np.broadcast_to(states[:, None], tangents.shape)
    safe = program.jvp("safe_set", (wide,), (tangents,)).transpose(0, 2, 1).reshape(-1, m + 1)
    base = program.jvp("base_set", (wide[-1],), (tangents[-1],)).T
    room = np.concatenate(
        (
            bundle.class_k * bundle.period * (program("safe_set", states) - bundle.margin).ravel(),
            bundle.base_class_k * bundle.period * program("base_set", states[-1]),
        )
    )
    slope = np.concatenate((safe, base))[:, :m]
    a = slope * bundle.input_scale
    norm = np.sqrt((a * a).sum(-1))
    moved = norm > 1e-12
    inverse = 1.0 / np.where(moved, norm, np.inf)
    b = np.where(moved, (slope @ u_b - room) * inverse, -1.0)
    return Answer(states, tangents, a * inverse[:, None], b)


def difference(got: Array, expected: Array) -> float:
    """Largest difference, relative to 1 + |expected|; infinite where a value is not a number."""
    with np.errstate(invalid="ignore"):
        error = np.abs(np.asarray(got, np.float64) - expected) / (1.0 + np.abs(expected))
    return float(np.max(np.where(np.isnan(error), np.inf, error), initial=0.0))


def kernel_difference(bundle: Bundle, x: Array, expected: Answer) -> float:
    """How far our kernel is from the twin: states and rows (it keeps no tangents)."""
    rows = bundle.kernel().rows(x)
    count = len(expected.b)
    return max(
        difference(rows.states, expected.states),
        difference(rows.a[:, :count].T, expected.a),
        difference(rows.b[:count], expected.b),
    )
