"""The largest provable level of a given controller and shape, by bisection over proofs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.base_set import BaseProof, Settings, prove
from safe_rl_systems.verification.falsifier import worst_step


@dataclass(frozen=True)
class LargestLevel:
    """`level` was proved by `proof`; `next_level`, a little higher, ended as `obstacle` says.

    `refuted_level` is the smallest level that search refuted, infinite if none up to the limit.
    Between `level` and it nothing is known.
    """

    level: float
    proof: BaseProof
    next_level: float
    obstacle: BaseProof
    refuted_level: float


def largest_level(
    at_level: Callable[[float], BaseProblem],
    settings: Settings,
    low: float,
    high: float,
    tolerance: float = 0.02,
    tell: Callable[[float, BaseProof], None] = lambda level, proof: None,
) -> LargestLevel:
    """Bisection between `low`, which must be provable, and `high`, to a share of `tolerance`.

    `settings.max_cells` bounds the effort of each try, so the result is what is provable with it.
    """
    if not 0.0 < low < high:
        raise CertificateError(f"levels must satisfy 0 < low < high, got {low} and {high}")

    def attempt(level: float) -> BaseProof:
        proof = prove(at_level(level), settings)
        tell(level, proof)
        return proof

    best = attempt(low)
    if not best.proved:
        raise CertificateError(
            f"the lowest level {low} is not provable, start lower: {best.advice}"
        )
    refuted = _refuted_level(at_level, low, high, settings.samples)
    top = min(high, refuted)
    obstacle = attempt(top)
    if obstacle.proved:
        raise CertificateError(f"even the highest level {high} is provable: raise it")
    while top / low > 1.0 + tolerance:
        middle = float(np.sqrt(low * top))
        proof = attempt(middle)
        if proof.proved:
            low, best = middle, proof
        else:
            top, obstacle = middle, proof
    return LargestLevel(low, best, top, obstacle, refuted)


def _refuted_level(
    at_level: Callable[[float], BaseProblem], low: float, high: float, samples: int
) -> float:
    """The smallest level at which hill climbing finds a step out of the set, to 1 %."""
    if worst_step(at_level(high), samples=samples).value <= 1.0:
        return np.inf
    while high / low > 1.01:
        middle = float(np.sqrt(low * high))
        if worst_step(at_level(middle), samples=samples).value > 1.0:
            high = middle
        else:
            low = middle
    return high
