"""Gain, shape and level of a base set together. Untrusted: what it finds has to be proved.

    python -m safe_rl_systems.verification.synthesis quadrotor

tries a list of wishes, for each one a linear matrix inequality on sampled slopes (`lmi`), then
evolution on the loop itself (`polish`), then the proof (`base_set`), and keeps the design of the
largest log det that is proved. It prints the constants as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.base_set import BaseProof, Settings, prove
from safe_rl_systems.verification.interval import Interval
from safe_rl_systems.verification.lmi import Design, Targets, closure, solve
from safe_rl_systems.verification.polish import Wish, polish, with_design
from safe_rl_systems.verification.slopes import Box, slopes

Array = NDArray[np.float64]
Tell = Callable[[str], None]

_SAMPLES = 12
#: (rho, slack, share of the limits at which slopes are sampled) of the inequality.
_ATTEMPTS = ((0.98, 0.0, 0.4), (0.985, 0.0, 0.4), (0.97, 0.0, 0.4), (0.99, 0.0, 0.3))


def first_design(problem: BaseProblem, wish: Wish, period: float) -> Design | None:
    """The largest solution of the inequality over a few targets, or None."""
    room = np.minimum(problem.input_high - problem.input, problem.input - problem.input_low)
    drive = np.minimum(room, wish.drive)
    best: Design | None = None
    for contraction, slack, share in _ATTEMPTS:
        targets = Targets(
            samples=sampled_slopes(problem, share * wish.extent, share * drive),
            contraction=contraction - slack,
            omega=1.0 - contraction,
            nu=1.0 - contraction,
            extent=wish.extent,
            drive=drive,
            disturbance=problem.disturbance,
            tracking_error=problem.tracking_error,
            period=period,
            group=wish.group,
        )
        found = solve(targets, None)
        if found is not None:
            found = solve(targets, found) or found
            if best is None or np.linalg.det(found.spread) > np.linalg.det(best.spread):
                best = found
    return best


def sampled_slopes(problem: BaseProblem, extent: Array, drive: Array) -> list[tuple[Array, Array]]:
    """Slopes (S_e, S_v) at 0 and at corners, edges and faces of the box of (e, v)."""
    k, m = len(extent), len(drive)
    rng = np.random.default_rng(0)
    x = rng.choice((-1.0, 0.0, 1.0), p=(0.4, 0.2, 0.4), size=(_SAMPLES, k + m))
    x *= np.concatenate((extent, drive))
    x[0] = 0.0
    _, s = slopes(
        problem.program,
        "error_map",
        {"s": problem.schedule, "w": np.zeros(k)},
        [Box("e", Interval(x[:, :k])), Box("v", Interval(x[:, k:]))],
    )
    return [(mid[:, :k], mid[:, k:]) for mid in s.mid if np.isfinite(mid).all()]


def synthesise(
    problem: BaseProblem,
    wishes: Sequence[Wish],
    settings: Settings,
    period: float,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> BaseProof:
    """The proof of the largest design over the wishes; `problem` supplies everything but it."""
    best: BaseProof | None = None
    for wish in wishes:
        design = first_design(problem, wish, period)
        if design is None:
            tell(f"extent {wish.extent}, gap {wish.gap}: the inequality has no solution")
            continue
        design = polish(problem, wish, design, seed, tell)
        proof = prove(with_design(problem, design, wish.lead_row), settings)
        tell(f"extent {wish.extent}, gap {wish.gap}: {summary(proof)}")
        if proof.proved and (best is None or proof.problem.volume > best.problem.volume):
            best = proof
    if best is None:
        raise CertificateError(
            "no design could be proved: allow larger extents, ask for a larger gap, or assume "
            "smaller disturbance and estimate error"
        )
    return best


def summary(proof: BaseProof) -> str:
    """One line for people."""
    problem = proof.problem
    return (
        f"{proof.status}, rho {proof.contraction:.4f} omega {proof.disturbance_norm:.4f} "
        f"nu {proof.estimate_norm:.4f}, found {proof.nominal.value:.4f}, "
        f"extent {np.round(problem.extent, 3).tolist()}, volume {problem.volume:.4g}, "
        f"{proof.state.cells} cells, {len(proof.state.leaves_low)} leaves, {proof.seconds:.1f} s"
        + (f"; {proof.advice}" if proof.advice else "")
    )
