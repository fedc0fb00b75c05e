"""Identities between the functions of a program, compared at seeded random points.

They hold by construction or not at all: a formula that is off by a term is off at almost every
point. Balls of more than 90 bits leave no doubt about rounding. It is no proof, and is reported
as "checked".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from flint import arb

from safe_rl_core.audit.ball import constants, seeds
from safe_rl_core.audit.claims import ZERO, Array, Claims, Verdict, jets, matrix, values

SAMPLES, PIECES, TOLERANCE = 2000, 8, 1e-12
Identity = tuple[str, Sequence[arb], Sequence[arb]]


def formulas(c: Claims, piece: int) -> Verdict:
    """Every identity at some of the points."""
    rng, worst = np.random.default_rng(piece), 0.0
    for _ in range(SAMPLES // PIECES):
        for name, left, right in _identities(c, _Draw(c, rng)):
            gaps = [abs(a - b) for a, b in zip(left, right, strict=True)]
            if not all(gap <= TOLERANCE for gap in gaps):
                return "refused", f"{name}: off by {max(float(gap.upper()) for gap in gaps):.3g}"
            worst = max(worst, *(float(gap.upper()) for gap in gaps))
    return "checked", f"at {SAMPLES} random points, to {worst:.1g}"


class _Draw:
    """Random points, and the program's functions at them."""

    def __init__(self, c: Claims, rng: np.random.Generator) -> None:
        self.c, self.rng = c, rng
        self.start = np.ones(c.program.functions["operating_state"].inputs[0][1])

    def within(self, reach: Array) -> list[arb]:
        """A vector with |x_i| <= reach_i."""
        return [arb(x) for x in self.rng.uniform(-reach, reach).tolist()]

    def state(self) -> list[arb]:
        """An operating state."""
        return self("operating_state", self.within(self.start))

    def __call__(self, name: str, *inputs: Any) -> list[arb]:
        return values(self.c, name, *inputs)


def _identities(c: Claims, at: _Draw) -> Iterator[Identity]:
    x, z, e, d = (
        at.state(),
        at.state(),
        at.within(np.maximum(c.error_domain, c.base_extent)),
        at.within(c.error_domain),
    )
    v, w = at.within(c.input_domain), at.within(c.disturbance)
    u = [arb(a) for a in at.rng.uniform(c.input_low, c.input_high).tolist()]
    none, still = [ZERO] * c.k, [ZERO] * c.m
    s, y = at("schedule", z, u), at("retract", z, e)
    yield "difference(retract(z, e), z) = e", at("difference", y, z), e
    moved = at("retract", at("step", y, [a + b for a, b in zip(u, v, strict=True)]), w)
    yield "error_map", at("error_map", s, e, v, w), at("difference", moved, at("step", z, u))
    yield "error_map(s, 0, 0, 0) = 0", at("error_map", s, none, still, none), none
    slopes = jets(c, "error_map", *map(constants, (s, none, still)), seeds(none, 0, 1)) or []
    identity = [arb(i == j) for i in range(c.k) for j in range(c.k)]
    found = [jet.grad.get(i, ZERO) for jet in slopes for i in range(c.k)]
    yield "d error_map / dw = I", found, identity
    yield "shifted", at("shifted", e, d), at("difference", at("retract", y, d), z)
    yield "safe_at", at("safe_at", z, e), at("safe_set", y)
    yield from _base_identities(c, at, z, at("base_point", x), (s, e, v, w, d))
    if c.unit:
        ahead, speed = at("step", z, u), at("dynamics", z, u)
        size, growth = (sum((z[i] * o[i] for i in c.unit), ZERO) for o in (z, speed))
        after = sum((ahead[i] ** 2 for i in c.unit), ZERO)
        yield "|q| = 1 stays", [size, growth, after], [arb(1), ZERO, arb(1)]


def _base_identities(
    c: Claims, at: _Draw, z: list[arb], other: list[arb], drawn: tuple[list[arb], ...]
) -> Iterator[Identity]:
    (s, e, v, w, d), rest = drawn, at("base_point", z)
    here, there = (at("difference", o, at("retract", o, d)) for o in (rest, other))
    yield "retract is alike everywhere", here, there
    yield "step(x*, u*) = x*", at("difference", at("step", rest, c.base_input), rest), [ZERO] * c.k
    yield (
        "schedule(x*, u*) = s*",
        at("schedule", rest, c.base_input),
        [arb(a) for a in c.base_schedule],
    )
    error = matrix([[a] for a in at("difference", z, rest)])
    drive = (matrix(c.base_gain) * error).entries()
    limits = zip(c.base_input, drive, c.input_low, c.input_high, strict=True)
    wanted = [(arb(a) + b).max(arb(low)).min(arb(high)) for a, b, low, high in limits]
    yield "base_controller", at("base_controller", z), wanted
    size = sum((a * a for a in (matrix(c.base_factor.T) * error).entries()), ZERO)
    yield "base_set = 1 - |L'e|²", at("base_set", z), [1 - size]
    for point in (c.base_schedule, s):
        straight = at("error_map", point, e, v, w)
        for g in c.base_symmetries:
            turns = g[c.k + c.m :], g[: c.k], g[c.k : -len(s)], g[: c.k]
            turned = [_turned(t, x) for t, x in zip(turns, (point, e, v, w), strict=True)]
            yield f"symmetry {g}", at("error_map", *turned), _turned(g[: c.k], straight)


def _turned(signs: Array, x: Sequence[Any]) -> list[arb]:
    return [arb(a) * b for a, b in zip(signs.tolist(), x, strict=True)]


def flow(c: Claims) -> Verdict:
    """`step` follows `dynamics` over one period, to 1 % of the disturbance (Runge-Kutta, 16)."""
    at, share, h = _Draw(c, np.random.default_rng(0)), 0.0, arb(float(c.period)) / 16
    for _ in range(20):
        x = start = at.state()
        u = at.rng.uniform(c.input_low, c.input_high)
        for _ in range(16):
            slope, total = [ZERO] * len(x), [ZERO] * len(x)
            for ahead, weight in ((ZERO, 1), (h / 2, 2), (h / 2, 2), (h, 1)):
                slope = at("dynamics", [a + ahead * b for a, b in zip(x, slope, strict=True)], u)
                total = [a + weight * b for a, b in zip(total, slope, strict=True)]
            x = [a + h / 6 * b for a, b in zip(x, total, strict=True)]
        gaps = at("difference", x, at("step", start, u))
        allowed = 0.01 * c.disturbance + 1e-9
        share = max(
            share, *(float(abs(a).upper()) / b for a, b in zip(gaps, allowed, strict=True))
        )
    verdict = "checked" if share <= 1.0 else "refused"
    return verdict, f"step and dynamics differ by {share:.2g} % of the disturbance"
