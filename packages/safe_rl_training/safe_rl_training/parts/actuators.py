"""Imperfect actuators around an ideal robot, so that a policy of equations survives physics.

The command u of period k reaches the robot late, scaled and through a first-order lag:

    u_late = (1 - d) u_k + d u_{k-1}              d in [0, 1]: delay as a share of a period
    target = gain · u_late
    ẇ = (target - w) / tau                        w: what the actuator delivers
    x_{k+1} = step(x_k, mean of w over the period) + drift · period

tau = 0 is an ideal actuator. The lag is solved exactly over a period; feeding its mean to the
zero-order-hold step is exact for integrators of the input (attitude, speed) to first order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.control_affine import ControlAffineSystem
from torch import Tensor


@dataclass(frozen=True)
class Imperfection:
    """What may go wrong with a robot, as ranges that training draws from, one draw per sample.

    `lag` (low, high) in s and `gain` (low, high) per input; `drift` half-width per state in
    state unit/s; `ideal_share` of the samples has no lag and no delay.
    """

    lag: tuple[tuple[float, float], ...]
    gain: tuple[tuple[float, float], ...]
    drift: dict[str, float]
    ideal_share: float = 0.2
    delayed_share: float = 0.4

    def check(self, system: ControlAffineSystem) -> None:
        """Raise if the ranges do not fit the robot."""
        m, names = len(system.inputs), {c.name for c in system.states}
        if len(self.lag) != m or len(self.gain) != m:
            raise ModelError(
                f"one lag and one gain range per input expected ({m}), got "
                f"{len(self.lag)} and {len(self.gain)}"
            )
        if any(low < 0.0 or high < low for low, high in self.lag):
            raise ModelError(f"lag ranges must be 0 <= low <= high in s, got {self.lag}")
        if set(self.drift) - names:
            raise ModelError(f"drift on unknown states {sorted(set(self.drift) - names)}")


@dataclass(frozen=True)
class Actuators:
    """One set of actuators per sample: tau (s) and gain (B, m), delay (B, 1), drift (B, n)."""

    tau: Tensor
    gain: Tensor
    delay: Tensor
    drift: Tensor


def ideal(system: ControlAffineSystem, count: int) -> Actuators:
    """Actuators that deliver the command at once."""
    n, m = len(system.states), len(system.inputs)
    return Actuators(
        torch.zeros(count, m), torch.ones(count, m), torch.zeros(count, 1), torch.zeros(count, n)
    )


def draw(
    spread: Imperfection, system: ControlAffineSystem, count: int, generator: torch.Generator
) -> Actuators:
    """Draw actuators for `count` samples."""

    def uniform(ranges: list[tuple[float, float]]) -> Tensor:
        low, high = torch.tensor(ranges).unbind(-1)
        return low + (high - low) * torch.rand(count, len(ranges), generator=generator)

    def share(of: float) -> Tensor:
        return (torch.rand(count, 1, generator=generator) < of).float()

    lagging = 1.0 - share(spread.ideal_share)
    limits = [spread.drift.get(c.name, 0.0) for c in system.states]
    return Actuators(
        tau=lagging * uniform(list(spread.lag)),
        gain=uniform(list(spread.gain)),
        delay=lagging * share(spread.delayed_share) * uniform([(0.0, 1.0)]),
        drift=uniform([(-limit, limit) for limit in limits]),
    )


def lag_over_period(
    delivered: Tensor, target: Tensor, tau: Tensor, period: float
) -> tuple[Tensor, Tensor]:
    """First-order lag to a constant target: mean over the period and end value, (..., m)."""
    ratio = tau / period
    # An ideal actuator has tau = 0; the clamp keeps 1/ratio finite and exp(-1000) is 0.
    decay = torch.exp(-1.0 / ratio.clamp(min=1e-3))
    gap = delivered - target
    return target + gap * ratio * (1.0 - decay), target + gap * decay


def step_with(
    actuators: Actuators,
    system: ControlAffineSystem,
    x: Tensor,
    delivered: Tensor,
    previous: Tensor,
    u: Tensor,
) -> tuple[Tensor, Tensor]:
    """One period of x (B, n) with delivered input, last and present command (B, m).

    Returns x_next (B, n) and what the actuators deliver at its end (B, m).
    """
    late = u + actuators.delay * (previous - u)
    mean, end = lag_over_period(delivered, actuators.gain * late, actuators.tau, system.period)
    return system.step(x, mean) + system.period * actuators.drift, end
