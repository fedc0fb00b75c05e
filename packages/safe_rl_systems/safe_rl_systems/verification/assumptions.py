"""What the constants of a certificate are derived for, and small helpers that share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.interval import Array, Interval
from safe_rl_systems.verification.search import subdivide

#: Called with (what is being derived, parts done, parts in all).
Progress = Callable[[str, int, int], None]
#: Stored bounds exceed the derived ones by this share, so that another arithmetic confirms them;
#: it also covers the rounding of the few sums of bounds that are taken in plain floats.
ROOM = 1e-6
#: Entries of a bundle's assumptions that say where its bounds hold, in their order.
DOMAINS = (
    "error_domain", "input_domain", "state_low", "state_high", "schedule_low", "schedule_high",
    "schedule_cells",
)  # fmt: skip


@dataclass(frozen=True)
class Assumptions:
    """What the bounds are derived for; k error channels, m inputs, p schedule variables, n states.

    `period` (s), `jitter` (s); per period and channel `disturbance` (k), `estimate_error` (k);
    `base_extent` (k), the half widths of the base set; the rest are the domains of the contract in
    safe_rl_core/certificate.py, whose names they share. States may be unbounded where they do not
    matter.
    """

    period: float
    delay_steps: int
    jitter: float
    disturbance: Array
    estimate_error: Array
    error_domain: Array
    input_domain: Array
    base_extent: Array
    input_low: Array
    input_high: Array
    state_low: Array
    state_high: Array
    schedule_low: Array
    schedule_high: Array
    schedule_cells: Array

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.name not in ("period", "delay_steps", "jitter"):
                value = np.asarray(getattr(self, item.name), np.float64)
                object.__setattr__(self, item.name, value)
        k, m, p = len(self.disturbance), len(self.input_low), len(self.schedule_low)
        for name, size in {
            "estimate_error": k,
            "error_domain": k,
            "base_extent": k,
            "input_domain": m,
            "input_high": m,
            "schedule_high": p,
            "schedule_cells": p,
            "state_high": len(self.state_low),
        }.items():
            if getattr(self, name).shape != (size,):
                raise CertificateError(
                    f"Assumptions.{name} needs {size} numbers, got {getattr(self, name).shape}"
                )
        for name in ("disturbance", "estimate_error", "error_domain", "input_domain"):
            value = getattr(self, name)
            if not (np.all(value >= 0.0) and np.all(np.isfinite(value))):
                raise CertificateError(f"Assumptions.{name} must be finite and >= 0, got {value}")
        if not (self.period > 0.0 and 0.0 <= self.jitter < self.period and self.delay_steps >= 0):
            raise CertificateError(
                "Assumptions need period > 0, 0 <= jitter < period and delay_steps >= 0, got "
                f"{self.period}, {self.jitter}, {self.delay_steps}"
            )


def stated(
    assumed: Mapping[str, Any],
    base_extent: Array,
    *,
    period: float,
    delay_steps: int,
    input_low: Array,
    input_high: Array,
) -> Assumptions:
    """From the entry `assumptions` of bundle.yaml, for base sets within `base_extent` (k)."""
    channels = assumed["errors"]
    return Assumptions(
        period=period,
        delay_steps=delay_steps,
        jitter=float(assumed["jitter_s"]),
        disturbance=[channel["disturbance"] for channel in channels],
        estimate_error=[channel["estimate_error"] for channel in channels],
        base_extent=base_extent,
        input_low=input_low,
        input_high=input_high,
        **{name: assumed[name] for name in DOMAINS},
    )


def schedule_box(given: Assumptions) -> Interval:
    """The box of all schedules, (p,)."""
    return Interval(given.schedule_low, given.schedule_high)


def schedule_boxes(given: Assumptions) -> Interval:
    """The cells of the schedule box, row-major, (C, p).

    Each is wider by 1e-9 of its width, so that a reader who computes a cell's index in floats
    never falls beside the cell.
    """
    cells = subdivide(schedule_box(given), given.schedule_cells.astype(int))
    extra = 1e-9 * (cells.high - cells.low)
    return Interval(cells.low - extra, cells.high + extra)
