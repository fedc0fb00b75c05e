"""The constants of a certificate, derived from a program by interval derivatives.

`derive_bounds` turns assumptions (disturbance, estimate error, domains) and the traced functions
error_map, shifted, safe_at, schedule, dynamics, safe_set, difference, retract and base_point into
a `Bounds`; docs/theory.md says how each enters the theorem. Every number is an upper bound over
boxes that cover its domain. Nothing is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Program

from safe_rl_systems.verification.assumptions import ROOM, Assumptions, Progress, schedule_box
from safe_rl_systems.verification.interval import Array, Interval, evaluate, point
from safe_rl_systems.verification.jets import constant, gradients, propagate, seeded
from safe_rl_systems.verification.remainder import (
    choose_splits,
    error_jets,
    error_remainder,
    safe_remainder,
    second_order,
    shift_remainder,
)
from safe_rl_systems.verification.sampling import sampling_margin, unit_norm
from safe_rl_systems.verification.search import Restrict, supremum

__all__ = ["Assumptions", "Bounds", "derive_bounds", "unit_norm"]


@dataclass(frozen=True)
class Bounds:
    """The derived fields of a certificate."""

    remainder: Array
    remainder_splits: Array
    shift_remainder: Array
    safe_remainder: Array
    prediction_error: Array
    tracking_error: Array
    sampling_margin: Array


def derive_bounds(
    program: Program,
    given: Assumptions,
    *,
    restrict: Restrict | None = None,
    sub_boxes: int = 4096,
    progress: Progress | None = None,
) -> Bounds:
    """All derived fields of the certificate.

    `restrict` shrinks boxes (cells, n) to the states in them, for states on a manifold (see
    `unit_norm`); `sub_boxes` limits the subdivision of each schedule cell, and in
    proportion that of the other domains.
    """
    tell = progress or (lambda what, done, parts: None)
    tell("remainder_splits", 0, 1)
    splits = choose_splits(program, given, sub_boxes)
    table = error_remainder(program, given, splits, tell)
    tell("shift_remainder", 0, 1)
    shift = shift_remainder(program, given, sub_boxes)
    tell("safe_remainder", 0, 1)
    safe = safe_remainder(program, given, restrict, sub_boxes)
    tell("prediction_error", 0, 1)
    prediction = prediction_error(program, given, table, sub_boxes)
    tell("tracking_error", 0, 1)
    tracking = tracking_error(program, given, prediction, sub_boxes)
    tell("sampling_margin", 0, 1)
    margin = sampling_margin(program, given, restrict, sub_boxes)
    tell("sampling_margin", 1, 1)
    bounds = Bounds(table, splits, shift, safe, prediction, tracking, margin)
    for item in fields(bounds):
        if not np.all(np.isfinite(getattr(bounds, item.name))):
            raise CertificateError(
                f"the derived {item.name} is not finite: somewhere in the domain the program "
                "divides by zero or leaves the domain of a root; make the domain smaller"
            )
    return bounds


def _at_reference(given: Assumptions, schedule: Interval) -> Interval:
    """Boxes (cells, p) of schedules with no error, deviation or disturbance: (cells, p+k+m+k)."""
    rest = np.zeros((schedule.shape[0], 2 * len(given.disturbance) + len(given.input_low)))
    return Interval(
        np.concatenate((schedule.low, rest), 1), np.concatenate((schedule.high, rest), 1)
    )


def prediction_error(program: Program, given: Assumptions, remainder: Array, budget: int) -> Array:
    """|x [-] x_pred| after delay_steps periods from an estimate, whatever the inputs were."""
    error, m = given.estimate_error, len(given.input_low)
    for _ in range(given.delay_steps):
        if np.any(error > given.error_domain):
            raise CertificateError(
                f"the prediction error {error} leaves error_domain {given.error_domain}: "
                "enlarge the domain, or assume a smaller estimate error or delay"
            )
        size = np.concatenate((error, np.zeros(m), given.disturbance))

        def spread(boxes: Interval, size: Array = size) -> Array:
            jets, d = error_jets(program, given, _at_reference(given, boxes), 1)
            return gradients(jets, d, boxes.shape[0]).mag @ size

        rest = second_order(remainder, size).max(axis=0)
        error = (supremum(spread, schedule_box(given), budget=4 * budget) + rest) * (1.0 + ROOM)
    return error


def tracking_error(program: Program, given: Assumptions, prediction: Array, budget: int) -> Array:
    """|difference(x_hat, z) - difference(x, z)| for |difference(x, x_hat)| <= prediction.

    With d = difference(x_hat, x) this is |shifted(e, d) - shifted(e, 0)| for e = difference(x, z),
    at most sup |d shifted / dd| |d|. What |difference(x, x_hat)| says about d is the same at every
    state (charts.py), so one reference state is enough.
    """
    k = len(prediction)
    middle = Interval(given.state_low, given.state_high).mid
    z = point(program("base_point", middle)[None])
    moved = evaluate(program, "retract", z, Interval(-prediction, prediction)[None])
    back = evaluate(program, "difference", z, moved).mag[0]
    reach = np.maximum(given.error_domain, given.base_extent)

    def spread(boxes: Interval) -> Array:
        d = Interval(-back, back).broadcast_to(boxes.shape)
        jets = propagate(program, "shifted", [constant(boxes), seeded(d)], 1)
        return gradients(jets, k, boxes.shape[0]).mag @ back

    return supremum(spread, Interval(-reach, reach), budget=4 * budget) * (1.0 + ROOM)
