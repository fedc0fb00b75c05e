"""From a bundle's assumptions and program to its certificate.

    outcome = certify(bundle)      outcome.certificate, or why there is none

derives the bounds (`bounds`), proves the base set (`base_set`) and puts both together. Nothing of
it is trusted: `safe_rl_core.checker` derives the same again in another arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safe_rl_core.bundle import Bundle
from safe_rl_core.certificate import BaseCertificate, Certificate
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification import base_set, bounds
from safe_rl_systems.verification.assumptions import DOMAINS, stated
from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.interval import Array

#: Parts of the root box per cell direction.
CELL_SPLITS = 6


@dataclass(frozen=True)
class Outcome:
    """`proof` of the base set, the derived `bounds`, and the certificate if all is proved."""

    bounds: bounds.Bounds
    proof: base_set.BaseProof
    certificate: Certificate | None


def certify(
    bundle: Bundle,
    *,
    provenance: Mapping[str, Any] | None = None,
    workers: int | None = None,
    state_file: Path | None = None,
    on_bounds: bounds.Progress | None = None,
    on_cells: Callable[[base_set.Progress], None] | None = None,
) -> Outcome:
    """Derive and prove everything that `bundle.assumptions` asks for.

    With `state_file` an interrupted proof of the base set is taken up again. More than one worker
    means new processes: call it from under `if __name__ == "__main__"`.
    """
    assumed = bundle.assumptions
    if assumed is None:
        raise CertificateError(
            f"{bundle.name} states no assumptions, so there is nothing to certify; give its robot "
            "a RobustDesign (docs/bounds.md) and build the bundle again"
        )
    given = stated(
        assumed,
        _extent(np.array(assumed["base"]["factor"])),
        period=bundle.period,
        delay_steps=bundle.delay_steps,
        input_low=bundle.input_low,
        input_high=bundle.input_high,
    )
    derived = bounds.derive_bounds(
        bundle.program,
        given,
        restrict=_manifold(bundle),
        progress=on_bounds,
    )
    problem = BaseProblem.stated(bundle.program, assumed, given, derived.tracking_error)
    splits = (CELL_SPLITS,) * len(problem.cell_directions)
    settings = base_set.Settings(cell_splits=splits, workers=workers)
    proof = base_set.prove(problem, settings, on_cells, state_file)
    if not proof.proved:
        return Outcome(derived, proof, None)
    return Outcome(derived, proof, _assemble(bundle, assumed, derived, proof, provenance or {}))


def _assemble(
    bundle: Bundle,
    assumed: Mapping[str, Any],
    derived: bounds.Bounds,
    proof: base_set.BaseProof,
    provenance: Mapping[str, Any],
) -> Certificate:
    problem, state, channels = proof.problem, proof.state, assumed["errors"]
    base = BaseCertificate(
        input=problem.input,
        schedule=problem.schedule,
        gain=problem.gain,
        factor=problem.factor,
        contraction=proof.contraction,
        disturbance_norm=proof.disturbance_norm,
        estimate_norm=proof.estimate_norm,
        extent=problem.extent,
        cell_directions=problem.cell_directions,
        cell_splits=_array(proof.settings.cell_splits),
        leaves_low=state.leaves_low,
        leaves_high=state.leaves_high,
        leaves_multipliers=state.multipliers,
        symmetries=_array(problem.symmetries),
    )
    return Certificate(
        program=bundle.program.hash,
        period=bundle.period,
        delay_steps=bundle.delay_steps,
        error_names=tuple(c["name"] for c in channels),
        error_units=tuple(c["unit"] for c in channels),
        disturbance=problem.disturbance,
        estimate_error=_array([c["estimate_error"] for c in channels]),
        jitter=float(assumed["jitter_s"]),
        input_low=bundle.input_low,
        input_high=bundle.input_high,
        tracking_gain=_array(assumed["tracking_gain"]),
        **{name: _array(assumed[name]) for name in DOMAINS},
        remainder_splits=derived.remainder_splits,
        remainder=derived.remainder,
        shift_remainder=derived.shift_remainder,
        safe_remainder=derived.safe_remainder,
        prediction_error=derived.prediction_error,
        tracking_error=derived.tracking_error,
        sampling_margin=derived.sampling_margin,
        base=base,
        provenance=dict(provenance),
    )


def _manifold(bundle: Bundle) -> Any:
    """States with a unit quaternion are restricted to it."""
    names = [channel.name for channel in bundle.states]
    quaternion = [names.index(name) for name in ("qw", "qx", "qy", "qz") if name in names]
    return bounds.unit_norm(quaternion) if len(quaternion) == 4 else None


def _extent(factor: Array) -> Array:
    """Half-widths of {|L'e| <= 1}, a little enlarged."""
    return (1.0 + 1e-9) * np.sqrt(np.diag(np.linalg.inv(factor @ factor.T)))


def _array(values: Any) -> Array:
    return np.array(values, np.float64)
