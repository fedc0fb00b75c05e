"""Proposers that try to break the shield.

`adversarial` draws, episode by episode, one of five ways to be bad: the corner of the input box
whose plan comes closest to the boundary; a random corner held for random durations; a proposal far
outside of the box; uniform noise; values that are not numbers, mixed with corners.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_core.loop import Proposer
from safe_rl_core.policy import Policy

Array = NDArray[np.float64]

KINDS = ("onnx", "random", "adversarial")


def make_proposer(kind: str, bundle: Bundle, rng: np.random.Generator) -> Proposer:
    """A proposer of one of KINDS; `adversarial` picks its strategy with `rng`."""
    if kind == "onnx":
        return Policy(bundle).act
    if kind == "random":
        return lambda x, t: rng.uniform(bundle.input_low, bundle.input_high)
    if kind != "adversarial":
        raise ModelError(f"policy must be one of {', '.join(KINDS)}, got '{kind}'")
    strategies = (_worst_corner, _held_corner, _far_outside, _uniform, _not_numbers)
    return strategies[rng.integers(len(strategies))](bundle, rng)


def corners(bundle: Bundle) -> Array:
    """The corners of the input box: (2^m, m)."""
    bounds = zip(bundle.input_low, bundle.input_high, strict=True)
    return np.array(list(itertools.product(*bounds)))


def _worst_corner(bundle: Bundle, rng: np.random.Generator) -> Proposer:
    kernel, box = bundle.kernel(), corners(bundle)

    def propose(x: Array, t: float) -> Array:
        return box[int(np.argmin([kernel.verify(x, u).least for u in box]))]

    return propose


def _held_corner(bundle: Bundle, rng: np.random.Generator) -> Proposer:
    box = corners(bundle)
    held, until = box[0], -math.inf

    def propose(x: Array, t: float) -> Array:
        nonlocal held, until
        if t >= until:
            held = box[rng.integers(len(box))]
            until = t + rng.uniform(1.0, 40.0) * bundle.period
        return held

    return propose


def _far_outside(bundle: Bundle, rng: np.random.Generator) -> Proposer:
    centre = 0.5 * (bundle.input_low + bundle.input_high)
    half = 0.5 * (bundle.input_high - bundle.input_low)
    return lambda x, t: centre + half * rng.standard_cauchy(len(centre)) * 10.0


def _uniform(bundle: Bundle, rng: np.random.Generator) -> Proposer:
    return lambda x, t: rng.uniform(bundle.input_low, bundle.input_high)


def _not_numbers(bundle: Bundle, rng: np.random.Generator) -> Proposer:
    box = corners(bundle)
    bad = (math.nan, math.inf, -math.inf)

    def propose(x: Array, t: float) -> Array | None:
        kind = rng.integers(4)
        if kind == 0:
            return None
        u = box[rng.integers(len(box))].copy()
        if kind == 1:
            u[rng.integers(len(u))] = bad[rng.integers(3)]
        return u

    return propose
