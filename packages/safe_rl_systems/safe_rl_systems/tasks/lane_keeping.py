"""Lane keeping: follow a sinusoid that leaves the lane on both sides, at 5 m/s.

    py_ref = 2.5 sin(2 pi t / 10 s) m (the lane ends at 1.8 m),  v_ref = 5 m/s,
    theta_ref = asin(ṗy_ref / v_ref)

    reward = -20 (ev/5)² - 50 (ey/1.8)² - 10 (etheta/(pi/3))² - 0.05 [(accel/5)² + turn_rate²]

with the errors after the step. px_ref is the mean speed along the lane times t and is shown only,
never scored. Source: PS2-RL's released configuration; the observation is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_rl_systems.control_affine import from_unit
from safe_rl_systems.systems.unicycle import LaneUnicycle, Unicycle


@dataclass(frozen=True)
class LaneKeeping:
    """The task of the module docstring for a unicycle, with or without px."""

    system: Unicycle | LaneUnicycle
    amplitude: float = 2.5
    lap: float = 10.0
    speed: float = 5.0

    name = "lane_keeping"
    start_dimension = 3
    operating_dimension = 3
    tracked = ("py", "theta", "v")

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names and units of the observation, in order."""
        return (
            "py_error [m]",
            "theta_error [rad]",
            "v_error [m/s]",
            "py [m]",
            "theta [rad]",
            "v [m/s]",
            "sin_phase [1]",
            "cos_phase [1]",
        )

    def _pick(self, x: Tensor, name: str) -> Tensor:
        return x[..., [c.name for c in self.system.states].index(name)]

    def _state(self, px: Tensor, py: Tensor, theta: Tensor, v: Tensor) -> Tensor:
        parts = {"px": px, "py": py, "theta": theta, "v": v}
        return torch.stack([parts[c.name] for c in self.system.states], -1)

    def phase(self, t: Tensor) -> Tensor:
        """Phase of the sinusoid: (..., 1) -> (...)."""
        return 2.0 * math.pi / self.lap * t[..., 0]

    def reference(self, t: Tensor) -> Tensor:
        """The reference state at task time t: (..., 1) -> (..., n)."""
        phi = self.phase(t)
        slope = 2.0 * math.pi / self.lap * self.amplitude * torch.cos(phi)
        return self._state(
            self._mean_forward_speed() * t[..., 0],
            self.amplitude * torch.sin(phi),
            torch.asin(slope / self.speed),
            self.speed + torch.zeros_like(phi),
        )

    def _mean_forward_speed(self) -> float:
        side = 2.0 * math.pi / self.lap * self.amplitude / self.speed
        share = sum(math.sqrt(1.0 - (side * math.cos(math.pi * k / 50)) ** 2) for k in range(50))
        return self.speed * share / 50

    def observation(self, x: Tensor, t: Tensor) -> Tensor:
        """What the policy sees, in SI units: (..., n), (..., 1) -> (..., 8)."""
        ref, phi = self.reference(t), self.phase(t)
        names = ("py", "theta", "v")
        errors = [self._pick(x, name) - self._pick(ref, name) for name in names]
        values = [self._pick(x, name) for name in names]
        return torch.stack((*errors, *values, torch.sin(phi), torch.cos(phi)), -1)

    def reward(self, x_next: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """Reward of the step that ended in x_next at time t. -> (..., 1)."""
        ref = self.reference(t)
        ev, ey, et = (
            (self._pick(x_next, name) - self._pick(ref, name)) for name in ("v", "py", "theta")
        )
        cost = (
            20.0 * (ev / 5.0) ** 2
            + 50.0 * (ey / 1.8) ** 2
            + 10.0 * (et / (math.pi / 3.0)) ** 2
            + 0.05 * ((u[..., 0] / 5.0) ** 2 + u[..., 1] ** 2)
        )
        return -cost.unsqueeze(-1)

    def initial_state(self, w: Tensor) -> Tensor:
        """The task's starts from w in [-1, 1]^3: py ±0.5 m, v 5 ± 1.5 m/s, theta ±0.2 rad."""
        return self._state(
            torch.zeros_like(w[..., 0]), 0.5 * w[..., 0], 0.2 * w[..., 1], 5.0 + 1.5 * w[..., 2]
        )

    def operating_state(self, w: Tensor) -> Tensor:
        """A state of the operating box from w in [-1, 1]^3, px = 0. -> (..., n)."""
        box = {c.name: c for c in self.system.states}
        py, theta, v = (
            from_unit(box[name].low, box[name].high, w[..., i])
            for i, name in enumerate(("py", "theta", "v"))
        )
        return self._state(torch.zeros_like(py), py, theta, v)
