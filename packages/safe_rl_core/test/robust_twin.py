"""VALID again, slowly: numpy, the program's interpreter, a whole zonotope, one list of conditions.

Shares nothing with the kernel but the program and the certificate's class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from safe_rl_core.bundle import Bundle
from safe_rl_core.certificate import EPS
from safe_rl_core.program import Program


@dataclass
class Judgement:
    """Every condition by name with its room; those of a domain count only where they fail."""

    rooms: dict[str, float] = field(default_factory=dict)
    errors: list[np.ndarray] = field(default_factory=list)
    deviations: list[np.ndarray] = field(default_factory=list)
    states: np.ndarray | None = None

    @property
    def slack(self) -> float:
        return min((-np.inf if np.isnan(r) else r) for r in self.rooms.values())

    def room(self, name: str, value: float) -> None:
        self.rooms[name] = float(value)

    def within(self, name: str, value: float) -> bool:
        if not value >= 0.0:
            self.room(name, value)
        return bool(value >= 0.0)


def jacobian(program: Program, name: str, point: tuple[np.ndarray, ...], of: int) -> np.ndarray:
    """Derivative in input number `of`, column by column."""
    columns = []
    for i in range(len(point[of])):
        seeds = [np.zeros(len(p)) for p in point]
        seeds[of][i] = 1.0
        columns.append(program.jvp(name, point, tuple(seeds)))
    return np.stack(columns, axis=-1)


def roll(bundle: Bundle, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The plan's inputs (N+1, m): u, then the backup policy."""
    inputs = [u]
    for _ in range(bundle.horizon):
        x = bundle.program("step", x, inputs[-1])
        inputs.append(bundle.program("backup_policy", x))
    return np.array(inputs)


def curved(table: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Half the sum of table[r, a, b] box_a box_b."""
    return 0.5 * np.array([box @ rows @ box for rows in table])


def cell(c: object, s: np.ndarray) -> int:
    index = 0
    for value, low, high, count in zip(
        s, c.schedule_low, c.schedule_high, c.schedule_cells, strict=True
    ):
        index = index * int(count) + min(int((value - low) / (high - low) * count), int(count) - 1)
    return index


def judge(bundle: Bundle, x: np.ndarray, inputs: np.ndarray, factor: float = 1.0) -> Judgement:
    """All conditions of the plan; stops where the domain of the derived bounds is left."""
    c, program, found = bundle.robust, bundle.program, Judgement()
    k, m, last = len(c.error_names), len(c.input_low), bundle.horizon
    states = [np.asarray(x, np.float64)]
    for u in inputs[:last]:
        states.append(program("step", states[-1], u))
    found.states = np.array(states)
    g = np.diag(factor * c.prediction_error)
    nothing = np.zeros(k)
    for j, (z, u) in enumerate(zip(states, inputs, strict=True)):
        gain = c.tracking_gain if j else np.zeros((m, k))
        e = np.abs(g).sum(1)
        v = np.abs(gain @ g).sum(1) + np.abs(gain) @ c.tracking_error * factor
        found.errors.append(e)
        found.deviations.append(v)
        inside = [found.within(f"domain {n}@{j}", d - x) for n, d, x in
                  zip(c.error_names, c.error_domain, e, strict=True)]  # fmt: skip
        grad = jacobian(program, "safe_at", (z, nothing), 1)
        need = np.abs(grad @ g).sum(1) + curved(c.safe_remainder, e) + EPS
        need += max(factor, 1.0) * c.sampling_margin
        h = program("safe_set", z)
        for name, room in zip(bundle.safe_set_names, h - need, strict=True):
            found.room(f"{name}@{j}", room)
        bounds = [("x", z, c.state_low, c.state_high)]
        if j < last:
            bounds.append(("s", program("schedule", z, u), c.schedule_low, c.schedule_high))
            for i, channel in enumerate(bundle.inputs):
                scale = bundle.input_scale[i]
                found.room(f"input {channel.name}_low@{j}", (u[i] - v[i] - c.input_low[i]) / scale)
                above = (c.input_high[i] - v[i] - u[i]) / scale
                found.room(f"input {channel.name}_high@{j}", above)
                room = (c.input_domain[i] - v[i]) / scale
                inside.append(found.within(f"domain {channel.name}@{j}", room))
        for name, values, low, high in bounds:
            for i in range(len(values)):
                room = min(values[i] - low[i], high[i] - values[i])
                room = room if np.isfinite(values[i]) else np.nan
                inside.append(found.within(f"domain {name}_{i}@{j}", room))
        if not all(inside):
            return found
        if j == last:
            break
        s = program("schedule", z, u)
        at = (s, nothing, np.zeros(m), nothing)
        a, b = jacobian(program, "error_map", at, 1), jacobian(program, "error_map", at, 2)
        xi = np.concatenate((e, v, factor * c.disturbance))
        w = factor * c.disturbance + curved(c.remainder[cell(c, s)], xi) + EPS
        w += factor * np.abs(b @ gain) @ c.tracking_error
        g = np.hstack(((a + b @ gain) @ g, np.diag(w)))
    _end(bundle, states[-1], g, found)
    return found


def _end(bundle: Bundle, z: np.ndarray, g: np.ndarray, found: Judgement) -> None:
    c, program, last = bundle.robust, bundle.program, bundle.horizon
    k, nothing, e = len(c.error_names), np.zeros(len(c.error_names)), np.abs(g).sum(1)
    centre = program("base_point", z)
    away = program("difference", z, centre)
    turn = jacobian(program, "shifted", (away, nothing), 1)
    rest = curved(c.shift_remainder[:, k:, k:], e)
    size = np.linalg.norm(c.base.factor.T @ away)
    size += np.linalg.norm(np.abs(c.base.factor.T @ turn @ g).sum(1))
    size += np.linalg.norm(np.abs(c.base.factor.T) @ rest)
    found.room(f"base@{last}", 1.0 - EPS - size)
    for name, most, off, width in zip(c.error_names, c.base.extent, away, e, strict=True):
        found.within(f"base_extent {name}@{last}", most - abs(off) - width)
    grad = jacobian(program, "safe_at", (centre, nothing), 1)
    reach = np.array([np.linalg.norm(np.linalg.solve(c.base.factor, row)) for row in grad])
    need = reach + curved(c.safe_remainder, c.base.extent) + c.sampling_margin + EPS
    for name, room in zip(bundle.safe_set_names, program("safe_set", centre) - need, strict=True):
        found.room(f"base {name}@{last}", room)
    moved = program("difference", program("step", centre, c.base.input), centre)
    schedule = program("schedule", centre, c.base.input) - c.base.schedule
    drift = max(np.abs(moved).max(), np.abs(schedule).max())
    found.within(f"base equilibrium@{last}", EPS - drift)


def open_tube(bundle: Bundle, x: np.ndarray, inputs: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Row sums of the zonotope without tracking after the inputs (M, m)."""
    c, program = bundle.robust, bundle.program
    k, m = len(c.error_names), len(c.input_low)
    g, z, nothing = np.diag(start), x, np.zeros(k)
    for u in inputs:
        s, e = program("schedule", z, u), np.abs(g).sum(1)
        inside = (e <= c.error_domain).all()
        inside &= (s >= c.schedule_low).all() and (s <= c.schedule_high).all()
        inside &= (z >= c.state_low).all() and (z <= c.state_high).all()
        if not inside:
            return np.full(k, np.inf)
        a = jacobian(program, "error_map", (s, nothing, np.zeros(m), nothing), 1)
        xi = np.concatenate((e, np.zeros(m), c.disturbance))
        w = c.disturbance + curved(c.remainder[cell(c, s)], xi) + EPS
        g, z = np.hstack((a @ g, np.diag(w))), program("step", z, u)
    return np.abs(g).sum(1)
