"""Proposers that try to break the shield.

`adversarial` draws, episode by episode, one of five ways to be bad: the corner of the input box
whose plan comes closest to the boundary; a random corner held for random durations; a proposal far
outside of the box; uniform noise; values that are not numbers, mixed with corners.

`Adversaries` is many of them at once: robot i hears what `make_proposer` with the same generator
would say. Only the worst corner looks at the state; it alone is computed for all robots together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_core.loop import Proposer
from safe_rl_core.policy import Policy

Array = NDArray[np.float64]

KINDS = ("onnx", "random", "adversarial")


class Robot(Protocol):
    """What a strategy knows of a robot; a `Bundle` knows it."""

    @property
    def input_low(self) -> Array:
        """Lower input bounds (m,)."""
        ...

    @property
    def input_high(self) -> Array:
        """Upper input bounds (m,)."""
        ...

    @property
    def period(self) -> float:
        """Control period in s."""
        ...


def make_proposer(kind: str, bundle: Bundle, rng: np.random.Generator) -> Proposer:
    """A proposer of one of KINDS; `adversarial` picks its strategy with `rng`."""
    if kind == "onnx":
        return Policy(bundle).act
    if kind == "random":
        return lambda x, t: rng.uniform(bundle.input_low, bundle.input_high)
    if kind != "adversarial":
        raise ModelError(f"policy must be one of {', '.join(KINDS)}, got '{kind}'")
    chosen = int(rng.integers(1 + len(_BLIND)))
    return _worst_corner(bundle, rng) if chosen == 0 else _BLIND[chosen - 1](bundle, rng)


def corners(robot: Robot) -> Array:
    """The corners of the input box: (2^m, m)."""
    bounds = zip(robot.input_low, robot.input_high, strict=True)
    return np.array(list(itertools.product(*bounds)))


class WorstCorner:
    """Of the corners u of the input box the one whose plan has the smallest margin left.

    The plan of u is F(x, u) and then the backup policy's own plan from there, which is one period
    shorter than the shield's: `rest` is the kernel of that horizon. `margin` (n_h,): of the rows.
    """

    def __init__(self, robot: Robot, margin: Array, rest: BatchKernel) -> None:
        self._box, self._margin, self._rest = corners(robot), margin, rest

    @classmethod
    def of(cls, bundle: Bundle, threads: int = 1) -> WorstCorner:
        """For the robot of a bundle."""
        kernel = bundle.kernel()
        rest = BatchKernel(kernel.compiled, kernel.theorem, kernel.horizon - 1, threads)
        return cls(bundle, bundle.margin, rest)

    def __call__(self, x: Array) -> Array:
        """Per state x (B, n) its worst corner (B, m)."""
        count = len(self._box)
        u = np.tile(self._box, (len(x), 1))
        after = self._rest.evaluate("step", np.repeat(x, count, axis=0), u)
        first = (self._rest.evaluate("safe_set", after) - self._margin).min(axis=1)
        least = np.minimum(first, self._rest.way_out(after)).reshape(len(x), count)
        return self._box[least.argmin(axis=1)]


class Adversaries:
    """Many adversarial proposers at once, one per generator."""

    def __init__(
        self, robot: Robot, worst_corner: WorstCorner, rngs: Sequence[np.random.Generator]
    ) -> None:
        chosen = np.array([rng.integers(1 + len(_BLIND)) for rng in rngs])
        self._worst_corner, self._size = worst_corner, len(robot.input_low)
        self._seeing = chosen == 0
        self._blind = [(i, _BLIND[chosen[i] - 1](robot, rngs[i])) for i in np.flatnonzero(chosen)]

    def __call__(self, x: Array, t: float) -> Array:
        """Proposals (B, m) for the states x (B, n) at task time t in s; nan: there is none."""
        proposed = np.full((len(x), self._size), math.nan)
        if self._seeing.any():
            proposed[self._seeing] = self._worst_corner(x[self._seeing])
        for i, propose in self._blind:
            u = propose(x[i], t)
            if u is not None:
                proposed[i] = u
        return proposed


def _worst_corner(bundle: Bundle, rng: np.random.Generator) -> Proposer:
    find = WorstCorner.of(bundle)
    return lambda x, t: find(x[None])[0]


def _held_corner(robot: Robot, rng: np.random.Generator) -> Proposer:
    box = corners(robot)
    held, until = box[0], -math.inf

    def propose(x: Array, t: float) -> Array:
        nonlocal held, until
        if t >= until:
            held = box[rng.integers(len(box))]
            until = t + rng.uniform(1.0, 40.0) * robot.period
        return held

    return propose


def _far_outside(robot: Robot, rng: np.random.Generator) -> Proposer:
    centre = 0.5 * (robot.input_low + robot.input_high)
    half = 0.5 * (robot.input_high - robot.input_low)
    return lambda x, t: centre + half * rng.standard_cauchy(len(centre)) * 10.0


def _uniform(robot: Robot, rng: np.random.Generator) -> Proposer:
    return lambda x, t: rng.uniform(robot.input_low, robot.input_high)


def _not_numbers(robot: Robot, rng: np.random.Generator) -> Proposer:
    box = corners(robot)
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


#: The strategies that do not look at the state.
_BLIND = (_held_corner, _far_outside, _uniform, _not_numbers)
