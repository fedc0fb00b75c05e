"""A certificate small enough to be made by hand: a cart in a shallow valley.

    p⁺ = p + D v + D²/2 acc        state (p, v), input u = the push, acc = u - a sin p
    v⁺ = v + D acc - D²/2 a v cos p

Errors are (p - p_z, v - v_z - BEND (p - p_z)³): a chart with a curvature, so that every table has
something in it. The functions are written with operators and recorded as program text.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from flint import ctx
from safe_rl_core.ball import balls, constants, seeds
from safe_rl_core.certificate import SIGMA_MAX
from safe_rl_core.checker import certificate_check
from safe_rl_core.program import Program, parse
from safe_rl_core.tape import evaluate

D, VALLEY, BEND = 0.02, 0.2, 0.2
GAIN = np.array([[-2.0, -2.5]])
MORE = 1.0 + 1e-6


class Term:
    """A value of the function being recorded."""

    lines: list[str] = []

    def __init__(self, text: str) -> None:
        self.name = f"v{len(self.lines)}"
        self.lines.append(f"{self.name} = {text}")

    def _with(self, op: str, other: Term | float, swap: bool = False) -> Term:
        other = other if isinstance(other, Term) else Term(f"const {float(other)!r}")
        first, second = (other, self) if swap else (self, other)
        return Term(f"{op} {first.name} {second.name}")

    def __add__(self, other: Term | float) -> Term:
        return self._with("add", other)

    def __sub__(self, other: Term | float) -> Term:
        return self._with("sub", other)

    def __mul__(self, other: Term | float) -> Term:
        return self._with("mul", other)

    def __rsub__(self, other: Term | float) -> Term:
        return self._with("sub", other, swap=True)

    __radd__, __rmul__ = __add__, __mul__

    def through(self, op: str, *others: float) -> Term:
        """A unary function, or min and max with a number."""
        rest = "".join(f" {Term(f'const {x!r}').name}" for x in others)
        return Term(f"{op} {self.name}{rest}")


Vector = list[Term]


def acceleration(x: Vector, u: Vector) -> Term:
    """Push minus slope."""
    return u[0] - VALLEY * x[0].through("sin")


def step(x: Vector, u: Vector) -> Vector:
    """One period."""
    push = acceleration(x, u)
    bend = x[0].through("cos") * x[1] * (0.5 * D * D * VALLEY)
    return [x[0] + D * x[1] + (0.5 * D * D) * push, x[1] + D * push - bend]


def difference(x: Vector, z: Vector) -> Vector:
    """x relative to z."""
    gap = x[0] - z[0]
    return [gap, x[1] - z[1] - BEND * (gap * gap * gap)]


def retract(z: Vector, e: Vector) -> Vector:
    """Its inverse."""
    return [z[0] + e[0], z[1] + e[1] + BEND * (e[0] * e[0] * e[0])]


def rows(x: Vector) -> Vector:
    """The safe set: four half planes and something round."""
    return [1.2 - x[0], 1.2 + x[0], 2.0 - x[1], 2.0 + x[1], 2.0 - x[0] * x[0]]


def error_map(s: Vector, e: Vector, v: Vector, w: Vector) -> Vector:
    """The same for every input of the reference, so for none."""
    still = [s[0] - s[0]]
    return difference(retract(step(retract(s, e), v), w), step(s, still))


def shifted(e: Vector, d: Vector) -> Vector:
    """BEND (e³ + d³ - (e + d)³), multiplied out."""
    return [e[0] + d[0], e[1] + d[1] - (3.0 * BEND) * (e[0] * d[0] * (e[0] + d[0]))]


def to_rest(x: Vector) -> Vector:
    """The origin."""
    return [x[0] - x[0], x[1] - x[1]]


def controller(x: Vector) -> Vector:
    """u = K e, clipped."""
    e = difference(x, to_rest(x))
    drive = float(GAIN[0, 0]) * e[0] + float(GAIN[0, 1]) * e[1]
    return [drive.through("max", -2.0).through("min", 2.0)]


def recorded(functions: dict[str, tuple[Callable[..., Vector], tuple[str, ...]]]) -> str:
    """Program text; inputs are given as "name:size"."""
    text = "safe_rl_program 1\n"
    for name, (function, inputs) in functions.items():
        Term.lines = []
        given = []
        for item in inputs:
            key, size = item.split(":")
            given.append([Term(f"input {key} {i}") for i in range(int(size))])
        outputs = " ".join(term.name for term in function(*given))
        text += f"function {name}({', '.join(inputs)})\n" + "\n".join(Term.lines)
        text += f"\nreturn {outputs}\n"
    return text


def program(factor: np.ndarray) -> str:
    """The cart's program with the base set of a factor L."""

    def base_set(x: Vector) -> Vector:
        e = difference(x, to_rest(x))
        y = [float(a[0]) * e[0] + float(a[1]) * e[1] for a in factor.T]
        return [1.0 - y[0] * y[0] - y[1] * y[1]]

    x, u, z, e = "x:2", "u:1", "z:2", "e:2"
    return recorded(
        {
            "dynamics": (lambda x, u: [1.0 * x[1], acceleration(x, u)], (x, u)),
            "step": (step, (x, u)),
            "safe_set": (rows, (x,)),
            "base_set": (base_set, (x,)),
            "base_controller": (controller, (x,)),
            "operating_state": (lambda w: [0.9 * w[0], 0.9 * w[1]], ("w:2",)),
            "difference": (difference, (x, z)),
            "retract": (retract, (z, e)),
            "schedule": (lambda x, u: [1.0 * x[0], 1.0 * x[1]], (x, u)),
            "error_map": (error_map, ("s:2", e, "v:1", "w:2")),
            "shifted": (shifted, (e, "d:2")),
            "safe_at": (lambda z, e: rows(retract(z, e)), (z, e)),
            "base_point": (to_rest, (x,)),
        }
    )


def shape(rate: float, reach: float) -> np.ndarray:
    """L of an ellipsoid that the linear loop shrinks by `rate`; |e_i| <= about `reach`."""
    a = np.array([[1.0, D], [-D * VALLEY, 1.0]]) + np.array([[0.5 * D * D], [D]]) @ GAIN
    p, term = np.zeros((2, 2)), np.eye(2)
    for _ in range(20_000):
        p, term = p + term.T @ term, a @ term / rate
    extent = np.sqrt(np.diag(np.linalg.inv(p))).max()
    return np.linalg.cholesky(p) * extent / reach


def hessians(p: Program, name: str, fixed: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Bounds of the second derivatives on one box, a little enlarged."""
    parts, start, first = [], 0, 0
    for i, (_, size) in enumerate(p.functions[name].inputs):
        box = balls(low[start : start + size], high[start : start + size])
        parts.append(constants(box) if i < fixed else seeds(box, first))
        start, first = start + size, first + size * (i >= fixed)
    jets = evaluate(p, name, *parts)
    table = np.zeros((len(jets), first, first))
    for r, jet in enumerate(jets):
        for (i, j), x in jet.hess.items():
            table[r, i, j] = table[r, j, i] = float(abs(x).upper()) * MORE
    return table


def write(folder: Path) -> dict[str, np.ndarray]:
    """Write bundle.yaml, program.txt and an honest certificate; returns its entries."""
    ctx.prec = certificate_check.BITS
    factor = shape(0.985, 0.25)
    text = program(factor)
    (folder / "program.txt").write_text(text)
    p = Program(parse(text), {})
    assumed = {
        "errors": [
            {"name": "p", "unit": "m", "disturbance": 1e-4, "estimate_error": 1e-3},
            {"name": "v", "unit": "m/s", "disturbance": 1e-3, "estimate_error": 2e-3},
        ],
        "jitter_s": 0.0,
        "tracking_gain": GAIN.tolist(),
        "error_domain": [0.3, 0.3], "input_domain": [1.0],
        "state_low": [-1.0, -1.0], "state_high": [1.0, 1.0],
        "schedule_low": [-1.0, -1.0], "schedule_high": [1.0, 1.0], "schedule_cells": [4, 1],
        "base": {
            "input": [0.0], "schedule": [0.0, 0.0], "gain": GAIN.tolist(),
            "factor": factor.tolist(), "cell_directions": [[1.0, 0.0]],
            "symmetries": [[-1, -1, -1, -1, -1]],
        },
    }  # fmt: skip
    bundle = {
        "states": [{"name": "p"}, {"name": "v"}], "inputs": [{"low": -2.0, "high": 2.0}],
        "period_s": D, "delay_steps": 1, "assumptions": assumed,
    }  # fmt: skip
    (folder / "bundle.yaml").write_text(yaml.safe_dump(bundle))
    c = {name: np.array(x, float) for name, x in assumed.items() if name not in ("errors", "base")}
    c["jitter"] = c.pop("jitter_s")
    c |= {f"base_{name}": np.array(x, float) for name, x in assumed["base"].items()}
    c |= {"period": np.array(D), "delay_steps": np.array(1.0), "base_cell_splits": np.array([4.0])}
    c |= {"input_low": np.array([-2.0]), "input_high": np.array([2.0])}
    w, eta = np.array([1e-4, 1e-3]), np.array([1e-3, 2e-3])
    c |= {"disturbance": w, "estimate_error": eta}
    bounds(c, p, w, eta)
    base(c, w)
    save(folder, c, p.hash)
    return c


def bounds(c: dict[str, np.ndarray], p: Program, w: np.ndarray, eta: np.ndarray) -> None:
    """The derived bounds, by hand where a corner is the worst case."""
    rest = np.concatenate((c["error_domain"], c["input_domain"], SIGMA_MAX * w))
    edges = np.linspace(-1.0, 1.0, 5)
    cells = [(np.array([a, -1.0]), np.array([b, 1.0])) for a, b in itertools.pairwise(edges)]
    c["remainder_splits"] = np.ones(2 + 5)
    c["remainder"] = np.stack(
        [hessians(p, "error_map", 1, np.r_[a, -rest], np.r_[b, rest]) for a, b in cells]
    )
    extent = np.sqrt(np.diag(np.linalg.inv(c["base_factor"] @ c["base_factor"].T))) * MORE
    c["base_extent"] = extent
    c["shift_remainder"] = np.zeros((2, 4, 4))
    e, d = 6.0 * BEND * extent[0], 6.0 * BEND * c["error_domain"][0]
    c["shift_remainder"][1, ::2, ::2] = np.array([[d, e + d], [e + d, e]]) * MORE
    size = np.r_[c["state_high"], c["error_domain"]]
    c["safe_remainder"] = hessians(p, "safe_at", 1, -size, size)
    size = np.r_[eta, 0.0, w]
    slope = np.array(
        [  # sup |d error_map / de|; cos p is 1 at p = 0, sin p and v are 1 at most
            [1.0 + 0.5 * D * D * VALLEY, D],
            [D * VALLEY + 0.5 * D * D * VALLEY, 1.0 + 0.5 * D * D * VALLEY],
        ]
    )
    curved = 0.5 * (c["remainder"] @ size @ size).max(0)
    c["prediction_error"] = (slope @ eta + w + curved) * 1.002
    back = c["prediction_error"]
    bent = 3.0 * BEND * (0.3 + back[0]) ** 2 * back[0]
    c["tracking_error"] = (back + [0.0, bent]) * 1.002
    top, fast, push = 1.021, 1.05, 2.0 + VALLEY * np.sin(1.021)
    bend = np.array([push, push, fast * VALLEY, fast * VALLEY, 2.0 * top * push])
    drift = np.array([w[0], w[0], w[1], w[1], 2.0 * top * w[0]])
    c["sampling_margin"] = (D * D / 8.0 * bend + drift) * 1.002


def base(c: dict[str, np.ndarray], w: np.ndarray) -> None:
    """The base set: norms in corners, leaves of one width, multipliers without slabs."""
    turned = c["base_factor"].T
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=2)))
    c["base_disturbance_norm"] = np.array(np.linalg.norm((corners * w) @ turned.T, axis=1).max())
    c["base_disturbance_norm"] *= 1.005
    push = turned @ np.array([[0.5 * D * D], [D]]) @ GAIN
    c["base_estimate_norm"] = (
        np.linalg.norm((corners * c["tracking_error"]) @ push.T, axis=1).max() * 1.005
    )
    c["base_contraction"] = np.array(0.0)
    root = float(c["base_extent"][0]) * 1.001
    edges = np.linspace(0.0, root, 5)
    c["base_leaves_low"], c["base_leaves_high"] = edges[:-1, None], edges[1:, None]
    c["base_contraction"] = np.array(0.9905)
    c["base_leaves_multipliers"] = np.tile([0.975, 0.0], (4, 1))


def save(folder: Path, c: dict[str, np.ndarray], digest: str) -> None:
    """Write the two files of a certificate."""
    tables = [name for name in c if "remainder" in name or "leaves" in name]
    tables.remove("remainder_splits")
    np.savez(folder / "certificate.npz", **{name: c[name] for name in tables})
    plain = {name: np.asarray(x).tolist() for name, x in c.items() if name not in tables}
    (folder / "certificate.json").write_text(json.dumps(plain | {"program": digest}))
