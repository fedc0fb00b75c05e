"""Phase I by the gradient through the rollout: the backup policy that enlarges the implicit set.

    maximise   mean over x_0 of  sigmoid( kappa m(x_0) )      m: the margin of `parts/arrival.py`

over the correction network of `LearnedRecovery`, which starts near zero: at the analytic law. For
kappa -> inf the objective is the share of starts that have a way out, the volume of the implicit
set itself. The equations are differentiable, so Adam gets its exact gradient through all N + 1
steps of the plan, and no value function is learned. kappa grows during training: at first states
far from a way out are pulled as well, at last only those at the boundary.

Half of each batch is uniform over the safe set. The other half is mined: from a pool of fresh
uniform states, with probability proportional to the slope sigmoid'(kappa m), which is largest at
the boundary of the present implicit set, on both of its sides.

Sources: PS2-RL, arXiv 2606.14536 (what is maximised: the volume of the implicit set); the
objective and the learner are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup.learned import (
    Featured,
    Layers,
    LearnedRecovery,
    feature_size,
    recovery_with,
    with_recovery,
)
from safe_rl_systems.robot import Robot
from torch import Tensor

from safe_rl_training.parts.arrival import (
    Margins,
    Profile,
    inward_clip,
    make_advance,
    plan_margin,
    safe_states,
)
from safe_rl_training.parts.compiling import compiled

_SAMPLE = 4096


@dataclass(frozen=True)
class RolloutSettings:
    """Numbers that fit every robot, because margins and features are normalised.

    `updates` of Adam in all, `block` of them per `iterate`; `sharpness` kappa from first to last;
    `mined` share of a batch and `pool` batches to mine it from, once per block; `discount` g and
    `anywhere` as in `parts/arrival.py`.
    """

    updates: int = 1500
    block: int = 25
    batch: int = 512
    width: int = 32
    learning_rate: float = 3e-3
    last_rate: float = 1e-4
    sharpness: tuple[float, float] = (5.0, 50.0)
    mined: float = 0.5
    pool: int = 8
    gradient_limit: float = 1.0
    adjoint_limit: float = 30.0
    discount: float = 1.0
    anywhere: bool = False
    compiled: bool = True

    def __post_init__(self) -> None:
        for name in ("updates", "block", "batch", "width", "pool"):
            if getattr(self, name) < 1:
                raise ModelError(f"RolloutSettings.{name} must be >= 1, got {getattr(self, name)}")
        if self.updates % self.block:
            raise ModelError(
                f"RolloutSettings.updates must be a multiple of block, got {self.updates} "
                f"and {self.block}"
            )
        if not (0.0 <= self.mined < 1.0 and 0.0 < self.discount <= 1.0):
            raise ModelError(
                "RolloutSettings: mined must lie in [0, 1) and discount in (0, 1], got "
                f"{self.mined} and {self.discount}"
            )

    @property
    def iterations(self) -> int:
        """Calls of `iterate` in all."""
        return self.updates // self.block


class RolloutArrival:
    """The learner in the middle of its run; `layers` is the backup network so far."""

    def __init__(self, robot: Robot, settings: RolloutSettings, seed: int) -> None:
        self.robot, self.settings = robot, settings
        self.iteration = 0
        self.generator = torch.Generator().manual_seed(seed)
        sample = safe_states(robot, _SAMPLE, self.generator)
        self.margins = Margins.measured(robot, sample, Profile.nominal(robot))
        self._network = _network(robot, settings.width, self.generator)
        self._parameters = [tensor for layer in self._network for tensor in layer]
        self._optimiser = torch.optim.Adam(self._parameters, lr=settings.learning_rate)
        recovery = recovery_with(robot, self._network)
        self._scaled = _Scaled.measured(recovery, sample)
        # The normalisation stands apart while Adam works: all weights are of one size then.
        recovery = replace(recovery, system=self._scaled, limit=inward_clip)
        policy = with_recovery(robot, recovery).backup_policy
        advance = make_advance(self.margins, policy, settings.adjoint_limit)
        self._advance = compiled(advance, settings.compiled)

    @property
    def layers(self) -> Layers:
        """The network so far, its normalisation folded in. float64."""
        (weight, bias), *others = (
            (w.detach().double(), b.detach().double()) for w, b in self._network
        )
        weight = weight / self._scaled.std
        return ((weight, bias - weight @ self._scaled.mean), *others)

    def set_profile(self, profile: Profile) -> None:
        """Other margins from now on: those that the plans of the present policy need."""
        self.margins = self.margins.with_profile(profile)

    def margin(self, x: Tensor) -> Tensor:
        """m(x), `batch` states at a time: the compiled step knows no other size. -> (B,)."""
        size, found = self.settings.batch, []
        for begin in range(0, len(x), size):
            piece = x[begin : begin + size]
            short = size - len(piece)
            full = torch.cat((piece, piece[:1].expand(short, -1))) if short else piece
            found.append(self._margin(full).detach()[: len(piece)])
        return torch.cat(found)

    def _margin(self, x: Tensor) -> Tensor:
        s = self.settings
        return plan_margin(self._advance, self.margins, x, s.discount, s.anywhere)

    @property
    def sharpness(self) -> float:
        """kappa of this iteration: reached after four fifths of the run, geometric before."""
        first, last = self.settings.sharpness
        done = self.iteration / (0.8 * self.settings.iterations)
        return first * (last / first) ** min(1.0, done)

    def _rate(self, update: int) -> float:
        first, last = self.settings.learning_rate, self.settings.last_rate
        done = update / self.settings.updates
        return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * done))

    def iterate(self) -> dict[str, float]:
        """Mine once, then `block` updates."""
        s, kappa = self.settings, self.sharpness
        mined = round(s.mined * s.batch)
        pool = safe_states(self.robot, s.pool * s.batch, self.generator)
        found = self.margin(pool)
        share = torch.sigmoid(kappa * found).nan_to_num(0.0)
        weight = share * (1.0 - share) + 1e-9
        volume = norm = 0.0
        for k in range(s.block):
            fresh = safe_states(self.robot, s.batch - mined, self.generator)
            if mined:
                chosen = torch.multinomial(weight, mined, generator=self.generator)
                fresh = torch.cat((fresh, pool[chosen]))
            soft = torch.sigmoid(kappa * self._margin(fresh)).mean()
            for group in self._optimiser.param_groups:
                group["lr"] = self._rate(self.iteration * s.block + k)
            norm += self._climb(soft, kappa) / s.block
            volume += float(soft.detach()) / s.block
        self.iteration += 1
        return {
            "volume/pool": float((found >= 0.0).float().mean()),
            "volume/soft": volume,
            "gradient_norm": norm,
            "sharpness": kappa,
        }

    def _climb(self, soft: Tensor, kappa: float) -> float:
        self._optimiser.zero_grad()
        # A sample's margin then has a slope of 1 at most, which the adjoint limit is relative to.
        (-4.0 / kappa * self.settings.batch * soft).backward()
        limit = self.settings.gradient_limit * self.settings.batch
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        if not math.isfinite(norm):
            raise ModelError(
                f"{self.robot.name}: the gradient norm is {norm} at iteration {self.iteration}; "
                "lower learning_rate or the first sharpness"
            )
        self._optimiser.step()
        return norm / self.settings.batch

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "iteration": self.iteration,
            "generator": self.generator.get_state(),
            "parameters": [p.detach().clone() for p in self._parameters],
            "optimiser": self._optimiser.state_dict(),
            "profile_rows": torch.from_numpy(self.margins.profile.rows.copy()),
            "profile_base": self.margins.profile.base,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, in a learner made with the same arguments."""
        self.iteration = stored["iteration"]
        self.generator.set_state(stored["generator"])
        with torch.no_grad():
            for own, value in zip(self._parameters, stored["parameters"], strict=True):
                own.copy_(value)
        self._optimiser.load_state_dict(stored["optimiser"])
        self.set_profile(Profile(stored["profile_rows"].numpy(), stored["profile_base"]))


@dataclass(frozen=True)
class _Scaled:
    """A system's features, normalised by their mean and spread (f,) over the safe set. float64."""

    system: Featured
    mean: Tensor
    std: Tensor

    @classmethod
    def measured(cls, recovery: LearnedRecovery, x: Tensor) -> _Scaled:
        y = recovery.system.features(x.double(), recovery.bounded)
        return cls(recovery.system, y.mean(0), y.std(0).clamp(min=1e-6))

    def features(self, x: Tensor, bounded: frozenset[int]) -> Tensor:
        y = self.system.features(x, bounded)
        return (y - self.mean.to(y.dtype)) / self.std.to(y.dtype)


def _network(robot: Robot, width: int, generator: torch.Generator) -> Layers:
    """Two hidden layers; the last layer is nearly zero: at first the analytic law."""
    sizes = (feature_size(robot), width, width, len(robot.system.inputs))
    layers = []
    for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weight = torch.randn(o, i, generator=generator) / math.sqrt(i)
        if k == len(sizes) - 2:
            weight = 0.01 * weight
        layers.append((weight.requires_grad_(), torch.zeros(o).requires_grad_()))
    return tuple(layers)
