"""The composed backup policy: the base controller inside the base ellipsoid, else a recovery law.

Source: PS2-RL: "pi_b = pi_B inside B, pi_SA outside, hard switch".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_rl_systems.backup.lqr import LinearFeedback


@dataclass(frozen=True)
class SwitchedBackup:
    """pi_b(x) = base(x) where V(x) <= level, else recovery(x)."""

    base: LinearFeedback
    level: float
    recovery: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        inside = (self.base.level(x) <= self.level).unsqueeze(-1)
        return torch.where(inside, self.base(x), self.recovery(x))
