"""Phase I in common: states all over the safe set, and the margin of a backup plan as a number.

A plan from x_0 visits x_1 .. x_{N+1}, the states that the shield checks. With h the rows of the
safe set, d what is kept from them, and l the rows of the base set,

    s_i(x) = (h_i(x) - d_i) / a_i                      a_i: half the spread of h_i over the states
    e_j(x) = 1 - sqrt(1 - l_j(x) / b_j) - t            b_j: the largest l_j that a flight ends with
    m(x_0) = max over t in T of  g^t min( min_{k <= t} s(x_k), e(x_t) )

m >= 0 exactly where the plan is a way out. e has the sign of l and is a length where l is a
square: for l = 1 - |z|², e = 1 - |z| - t. All a and b are measured, so that no robot needs
numbers of its own. T is the last step alone, or every step (`anywhere`): because the base set is
invariant under its controller the sign is the same. g < 1 is the sign-exact reach-avoid operator
of Li et al., arXiv 2408.07866, V = min(h, max(l, g V')): g^t > 0 changes no sign.

For a robot with a certificate, d_i of each step and t are what the tubes of its plans need, as
measured by VALID on plans of the policy so far (`Profile`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import Robot
from torch import Tensor

Array = NDArray[np.float64]
#: Below this 1 - l/b the square root is straight, so that its slope stays finite at the centre.
_CENTRE = 1e-6
_DRAWS = 400


def safe_states(robot: Robot, count: int, generator: torch.Generator) -> Tensor:
    """States (count, n) uniform over the operating box inside the safe set. float32."""
    found: list[Tensor] = []
    missing = count
    for _ in range(_DRAWS):
        w = torch.rand(2 * missing + 16, robot.task.operating_dimension, generator=generator)
        x = robot.task.operating_state(2.0 * w - 1.0)
        x = x[(robot.safe_set(x) >= 0.0).all(-1)][:missing]
        found.append(x)
        missing -= len(x)
        if missing == 0:
            return torch.cat(found)
    raise ModelError(
        f"{robot.name}: after {_DRAWS} draws hardly a state of the operating box lies in the safe "
        "set; make the task's operating_state fit the safe set"
    )


@dataclass(frozen=True)
class Profile:
    """What VALID keeps from the rows: `rows` (N+1, H) in the rows' units, `base` t of e."""

    rows: Array
    base: float

    @classmethod
    def nominal(cls, robot: Robot) -> Profile:
        """The margins that the nominal shield keeps, the same at every step."""
        kept = [robot.margins.get(name, 0.0) for name in robot.safe_set.names]
        return cls(np.tile(kept, (robot.horizon + 1, 1)), 0.0)


@dataclass(frozen=True)
class Margins:
    """s and e of the module docstring for one robot: `row_scale` a (H,), `base_top` b (J,)."""

    robot: Robot
    row_scale: Tensor
    base_top: Tensor
    profile: Profile

    @classmethod
    def measured(cls, robot: Robot, x: Tensor, profile: Profile) -> Margins:
        """`x` (B, n): states all over the safe set."""
        rows = robot.safe_set(x)
        scale = 0.5 * (rows.amax(0) - rows.amin(0))
        for _ in range(2 * robot.horizon):
            x = robot.system.step(x, robot.backup_policy(x))
        level = robot.base_set(x)
        there = torch.isfinite(level).all(-1) & (level > 0.0).all(-1)
        if not bool(there.any()):
            raise ModelError(
                f"{robot.name}: its analytic backup reaches the base set from none of {len(x)} "
                "states; there is nothing to start learning from: choose other gains or base set"
            )
        return cls(robot, scale, level[there].amax(0), profile)

    def safe(self, x: Tensor, kept: Tensor) -> Tensor:
        """min_i s_i(x) for the row margins `kept` (H,) of this step. (..., n) -> (...)."""
        return ((self.robot.safe_set(x) - kept) / self.row_scale).amin(-1)

    def base(self, x: Tensor) -> Tensor:
        """min_j e_j(x). (..., n) -> (...)."""
        square = 1.0 - self.robot.base_set(x) / self.base_top
        return (1.0 - torch.sqrt(square.clamp(min=_CENTRE))).amin(-1) - self.profile.base

    def with_profile(self, profile: Profile) -> Margins:
        """The same scales with other margins."""
        return replace(self, profile=profile)


#: (x, lowest, kept (H,)) -> the state after one period of the backup policy, min(lowest, s).
Advance = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def make_advance(
    margins: Margins, policy: Callable[[Tensor], Tensor], adjoint_limit: float = math.inf
) -> Advance:
    """One period of the closed loop of `policy`, as a function that torch can compile.

    `adjoint_limit`: largest norm of a sample's derivative that is passed on to the state before.
    """
    system, limited = margins.robot.system, math.isfinite(adjoint_limit)

    def advance(x: Tensor, lowest: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        if limited:
            x = cast(Tensor, _Limited.apply(x, adjoint_limit))
        x = system.step(x, policy(x))
        return x, torch.minimum(lowest, margins.safe(x, kept))

    return advance


def plan_margin(
    advance: Advance,
    margins: Margins,
    x: Tensor,
    discount: float = 1.0,
    anywhere: bool = False,
) -> Tensor:
    """m(x) of the module docstring. (..., n) -> (...)."""
    kept = torch.as_tensor(margins.profile.rows, dtype=x.dtype)
    lowest = torch.full_like(x[..., 0], torch.inf)
    best = torch.full_like(lowest, -torch.inf)
    last = len(kept) - 1
    for step, row in enumerate(kept):
        x, lowest = advance(x, lowest, row)
        if anywhere or step == last:
            arrived = torch.minimum(lowest, margins.base(x))
            best = torch.maximum(best, discount ** (step + 1) * arrived)
    return best


class _Inward(torch.autograd.Function):
    """A clip that a descent may still leave inwards: outside, slopes that lead back pass."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(u, low, high)
        return torch.minimum(torch.maximum(u, low), high)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        u, low, high = ctx.saved_tensors
        outward = ((u > high) & (slope < 0.0)) | ((u < low) & (slope > 0.0))
        return torch.where(outward, torch.zeros_like(slope), slope), None, None


class _Limited(torch.autograd.Function):
    """The identity, whose derivative has a bounded norm in every sample.

    Where a plan hits a stiff loop or a switch, its derivative grows over the steps before by
    powers of ten; one such sample would outweigh the batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        norm = torch.sqrt((slope * slope).sum(-1, keepdim=True))
        return slope * (ctx.limit / norm.clamp(min=ctx.limit)), None


def inward_clip(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """u clipped into [low, high] for `LearnedRecovery.limit` while a trainer descends."""
    return cast(Tensor, _Inward.apply(u, low, high))
