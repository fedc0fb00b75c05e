"""What a robot needs to be proved safe in the loop: assumed bounds, chart, gains, base family.

Everything here is a claim or a choice, not a proof: `safe-rl verify` derives the certificate from
it and from the robot's program, and an independent checker derives it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.charts import Chart
from safe_rl_systems.control_affine import ControlAffineSystem, clip_to_box
from safe_rl_systems.quaternion import heading

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HoverPoint:
    """x*: at rest, level, with the heading of x, where x would come to rest.

    The position is p + `lead` v (s), clipped into [low, high] (m), the box in which the base set
    fits into the safe set.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    lead: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., 10) -> (..., 10)."""
        p = x[..., 0:3] + self.lead * x[..., 3:6]
        p = torch.minimum(torch.maximum(p, p.new_tensor(self.low)), p.new_tensor(self.high))
        return torch.cat((p, torch.zeros_like(p), heading(x[..., 6:10])), -1)


@dataclass(frozen=True)
class CruisePoint:
    """x*: on the lane's centre line beside x, along it, at cruise speed (m/s)."""

    speed: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., 4) -> (..., 4)."""
        zero = torch.zeros_like(x[..., 0])
        return torch.stack((x[..., 0], zero, zero, zero + self.speed), -1)


@dataclass(frozen=True)
class BaseController:
    """u = u* + K_B difference(x, x*(x)), clipped to the input box."""

    system: ControlAffineSystem
    chart: Chart
    point: Callable[[Tensor], Tensor]
    input: Array
    gain: Array

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        e = self.chart.difference(x, self.point(x))
        gain = torch.as_tensor(self.gain, dtype=x.dtype, device=x.device)
        rest = torch.as_tensor(self.input, dtype=x.dtype, device=x.device)
        return clip_to_box(self.system, rest + (gain * e.unsqueeze(-2)).sum(-1))


@dataclass(frozen=True)
class EllipsoidAboutPoint:
    """h_B(x) = 1 - |Lᵀ difference(x, x*(x))|²."""

    chart: Chart
    point: Callable[[Tensor], Tensor]
    factor: Array

    names: tuple[str, ...] = ("ellipsoid",)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., 1)."""
        e = self.chart.difference(x, self.point(x))
        factor = torch.as_tensor(self.factor, dtype=x.dtype, device=x.device)
        y = (factor * e.unsqueeze(-1)).sum(-2)
        return 1.0 - (y * y).sum(-1, keepdim=True)


@dataclass(frozen=True)
class ReservedAuthority:
    """A policy kept inside a smaller box, so that tracking its plan never saturates."""

    policy: Callable[[Tensor], Tensor]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        u = self.policy(x)
        return torch.minimum(torch.maximum(u, u.new_tensor(self.low)), u.new_tensor(self.high))


@dataclass(frozen=True)
class RobustDesign:
    """The assumptions and the choices from which a certificate is derived.

    Per error channel of `chart` and control period: `disturbance`, how far the plant may be from
    F after one period; `estimate_error`, how far the true state may be from the estimate;
    `jitter` (s), how late an input may switch. `error_domain` (k), `input_domain` (m),
    `state_low`, `state_high` (n), `schedule_low`, `schedule_high` (p): where the derived bounds
    hold, checked at run time; `schedule_cells` (p) divides the schedule box. `tracking_gain`
    (m, k) holds a plan, `base` is the certified controller with its shape `factor` (k, k).
    `cell_directions` (q, k) are the error combinations that carry the base loop's nonlinearity,
    `symmetries` the sign vectors (k + m + p) that the error map commutes with.
    """

    chart: Chart
    disturbance: tuple[float, ...]
    estimate_error: tuple[float, ...]
    tracking_gain: Array
    base: BaseController
    base_set: EllipsoidAboutPoint
    base_schedule: tuple[float, ...]
    error_domain: tuple[float, ...]
    input_domain: tuple[float, ...]
    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    schedule_low: tuple[float, ...]
    schedule_high: tuple[float, ...]
    schedule_cells: tuple[int, ...]
    cell_directions: Array
    symmetries: tuple[tuple[int, ...], ...] = ()
    jitter: float = 0.0

    def __post_init__(self) -> None:
        k, p = len(self.chart.errors), self.chart.num_schedule
        for name, size in {
            "disturbance": k,
            "estimate_error": k,
            "error_domain": k,
            "schedule_low": p,
            "schedule_high": p,
            "schedule_cells": p,
            "base_schedule": p,
        }.items():
            if len(getattr(self, name)) != size:
                raise ModelError(
                    f"RobustDesign.{name} needs {size} numbers, got {len(getattr(self, name))}"
                )

    def shifted(self, e: Tensor, d: Tensor) -> Tensor:
        """The error of the point displaced by d from the point with error e."""
        z, _ = self.chart.reference(e.new_tensor(self.base_schedule).expand(*e.shape[:-1], -1))
        return self.chart.difference(self.chart.retract(self.chart.retract(z, e), d), z)


def gains(robot: str) -> dict[str, Array]:
    """`tracking_gain` (m, k), `base_gain` (m, k), `base_factor` (k, k) of a robot's design file.

    Designs for published plants have no tracking gain.

    Untrusted choices: `safe-rl verify` proves what follows from them.
    """
    path = resources.files("safe_rl_systems.designs").joinpath(f"{robot}.json")
    data = json.loads(path.read_text())
    names = ("tracking_gain", "base_gain", "base_factor")
    return {name: np.array(data[name], np.float64) for name in names if name in data}
