"""Identities between the functions of a program, compared at seeded random points.

They hold by construction or not at all: a formula that is off by a term is off at almost every
point. Balls leave no doubt about rounding. It is no proof, and is reported as "checked".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from operator import mul

import numpy as np
from flint import arb

from safe_rl_core.ball import ZERO, Array, constants, matrix, seeds
from safe_rl_core.checker.boxes import Verdict
from safe_rl_core.checker.claims import Claims, jets, values

SAMPLES, PIECES, TOLERANCE = 2000, 8, 1e-12
Point = list[arb]
Identity = tuple[str, Point, Point]


def formulas(c: Claims, piece: int) -> Verdict:
    """Every identity at some of the points."""
    rng, worst = np.random.default_rng(piece), 0.0
    for _ in range(SAMPLES // PIECES):
        for name, left, right in _identities(c, rng):
            gaps = [abs(a - b) for a, b in zip(left, right, strict=True)]
            if not all(gap <= TOLERANCE for gap in gaps):
                return "refused", f"{name}: off by {max(float(gap.upper()) for gap in gaps):.3g}"
            worst = max(worst, *(float(gap.upper()) for gap in gaps))
    return "checked", f"at {SAMPLES} random points, to {worst:.1g}"


def _drawn(rng: np.random.Generator, low: Array, high: Array) -> Point:
    return constants(rng.uniform(low, high).tolist())


def _identities(c: Claims, rng: np.random.Generator) -> Iterator[Identity]:
    at, wide = partial(values, c), np.maximum(c.error_domain, c.base_extent)
    x, z = (at("operating_state", _drawn(rng, -c.spread, c.spread)) for _ in range(2))
    sizes = (wide, c.error_domain, c.input_domain, c.disturbance)
    e, d, v, w = (_drawn(rng, -size, size) for size in sizes)
    u = _drawn(rng, c.input_low, c.input_high)
    none, still = [ZERO] * c.k, [ZERO] * c.m
    s, y = at("schedule", z, u), at("retract", z, e)
    yield "difference(retract(z, e), z) = e", at("difference", y, z), e
    moved = at("retract", at("step", y, [a + b for a, b in zip(u, v, strict=True)]), w)
    yield "error_map", at("error_map", s, e, v, w), at("difference", moved, at("step", z, u))
    yield "error_map(s, 0, 0, 0) = 0", at("error_map", s, none, still, none), none
    slopes = jets(c, "error_map", s, none, still, seeds(none, 0, 1)) or []
    identity = [arb(i == j) for i in range(c.k) for j in range(c.k)]
    found = [jet.grad.get(i, ZERO) for jet in slopes for i in range(c.k)]
    yield "d error_map / dw = I", found, identity
    far, away = at("retract", y, d), at("shifted", e, d)
    yield "shifted", away, at("difference", far, z)
    yield "retract(z, difference(x, z)) = x", at("retract", z, away), far
    yield "safe_at", at("safe_at", z, e), at("safe_set", y)
    yield from _base_identities(c, z, at("base_point", x), (s, e, v, w, d))
    if c.unit:
        ahead, speed = at("step", z, u), at("dynamics", z, u)
        size, growth = (sum((z[i] * o[i] for i in c.unit), ZERO) for o in (z, speed))
        after = sum((ahead[i] ** 2 for i in c.unit), ZERO)
        yield "|q| = 1 stays", [size, growth, after], [arb(1), ZERO, arb(1)]


def _base_identities(
    c: Claims, z: Point, other: Point, drawn: tuple[Point, ...]
) -> Iterator[Identity]:
    at, (s, e, v, w, d), rest = partial(values, c), drawn, values(c, "base_point", z)
    here, there = (at("difference", o, at("retract", o, d)) for o in (rest, other))
    yield "retract is alike everywhere", here, there
    yield "step(x*, u*) = x*", at("difference", at("step", rest, c.base_input), rest), [ZERO] * c.k
    yield "schedule(x*, u*) = s*", at("schedule", rest, c.base_input), c.at_rest
    error = matrix([[a] for a in at("difference", z, rest)])
    drive = (matrix(c.base_gain) * error).entries()
    limits = zip(c.base_input, drive, c.input_low, c.input_high, strict=True)
    wanted = [(arb(a) + b).max(arb(low)).min(arb(high)) for a, b, low, high in limits]
    yield "base_controller", at("base_controller", z), wanted
    size = sum((a * a for a in (matrix(c.base_factor.T) * error).entries()), ZERO)
    yield "base_set = 1 - |L'e|²", at("base_set", z), [1 - size]
    for point in (c.at_rest, s):
        straight = at("error_map", point, e, v, w)
        for n, g in enumerate(c.base_symmetries.tolist()):
            turns = g[c.k + c.m :], g[: c.k], g[c.k : c.k + c.m], g[: c.k]
            turned = [list(map(mul, t, x)) for t, x in zip(turns, (point, e, v, w), strict=True)]
            yield f"symmetry {n}", at("error_map", *turned), list(map(mul, g[: c.k], straight))


def flow(c: Claims) -> Verdict:
    """`step` follows `dynamics` over one period, to 1 % of the disturbance (Runge-Kutta, 16)."""
    at, rng = partial(values, c), np.random.default_rng(0)
    share, h = 0.0, arb(float(c.period)) / 16
    allowed = 0.01 * c.disturbance + 1e-9
    for _ in range(20):
        x = start = at("operating_state", _drawn(rng, -c.spread, c.spread))
        u = _drawn(rng, c.input_low, c.input_high)
        for _ in range(16):
            slope, total = [ZERO] * len(x), [ZERO] * len(x)
            for ahead, weight in ((ZERO, 1), (h / 2, 2), (h / 2, 2), (h, 1)):
                slope = at("dynamics", [a + ahead * b for a, b in zip(x, slope, strict=True)], u)
                total = [a + weight * b for a, b in zip(total, slope, strict=True)]
            x = [a + h / 6 * b for a, b in zip(x, total, strict=True)]
        gaps = zip(at("difference", x, at("step", start, u)), allowed, strict=True)
        share = max(share, *(float(abs(gap).upper()) / most for gap, most in gaps))
    verdict = "checked" if share <= 1.0 else "refused"
    return verdict, f"step and dynamics differ by {share:.2g} % of the disturbance"
