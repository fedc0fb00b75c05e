"""The baseline of phase I: the analytic recovery law with its gains tuned by cross-entropy.

    candidates   gains = hand-set gains · exp(z),  z ~ N(mu, diag(sigma²))
    score        share of fresh states of the safe set with m >= 0          (parts/arrival.py)
    update       mu, sigma <- mean and spread of the best candidates, smoothed

Tuned are the positive gains of the cascade, or the entries of the linear feedback that are not
zero; of a law of one's own, a frozen dataclass, the positive fields that its attribute `tunable`
names. A law without it is left as it is. The first candidate of every generation is the present
mean. All candidates of a generation fly from the same states at once, gains being one more batch
dimension of the same equations (for a law of one's own, one candidate after the other).

Source of the method: Rubinstein, The cross-entropy method (1999). The tuned law is what a network
has to beat: benchmarks/arrival_learners.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup import CascadeBackup, LinearFeedback, SwitchedBackup
from safe_rl_systems.backup.learned import BaseOrRecovery, analytic_recovery
from safe_rl_systems.robot import Robot
from safe_rl_systems.robust import ReservedAuthority
from torch import Tensor

from safe_rl_training.parts.arrival import Margins, make_advance, plan_margin, safe_states

#: Gains of the cascade and the dimensions of a gain beside (candidates, states).
CASCADE_GAINS = {
    "margin": 0,
    "lateral_gain": 0,
    "height_gain": 0,
    "climb_gain": 0,
    "rate_gain": 1,
}
Policy = Callable[[Tensor], Tensor]
#: Name of a gain -> its "hand_set" and its "tuned" value.
Tuning = dict[str, dict[str, float]]


@dataclass(frozen=True)
class TuningSettings:
    """`spread` sigma at first; `smoothing` share of the new mean and spread in each update."""

    generations: int = 20
    candidates: int = 24
    elites: int = 6
    states: int = 384
    spread: float = 0.5
    smoothing: float = 0.7

    def __post_init__(self) -> None:
        if not 1 < self.elites <= self.candidates:
            raise ModelError(
                f"TuningSettings: 1 < elites <= candidates, got {self.elites}, {self.candidates}"
            )


@dataclass(frozen=True)
class Gains:
    """The gains of a recovery law as one positive vector: names (g,) and hand-set values (g,)."""

    law: Any
    names: tuple[str, ...]
    values: Tensor

    @classmethod
    def of(cls, robot: Robot) -> Gains:
        """The gains of a robot's analytic recovery; ModelError if nobody names them."""
        found = cls.find(robot)
        if found is None:
            law = type(analytic_recovery(robot)).__name__
            raise ModelError(
                f"{robot.name}: the gains of its recovery law {law} are not known to the tuner; "
                f"name them in an attribute `tunable` of {law} (docs/your_robot.md), or take "
                "--backup analytic or learned"
            )
        return found

    @classmethod
    def find(cls, robot: Robot) -> Gains | None:
        """The gains of a robot's analytic recovery, if they are known."""
        law = analytic_recovery(robot)
        if isinstance(law, LinearFeedback):
            gain = torch.as_tensor(law.gain)
            places = gain.nonzero().tolist()
            values = torch.stack([gain[i, j] for i, j in places])
            return cls(law, tuple(f"gain[{i}, {j}]" for i, j in places), values.float())
        if isinstance(law, CascadeBackup):
            names = tuple(CASCADE_GAINS)
        elif is_dataclass(law) and hasattr(law, "tunable"):
            names = tuple(law.tunable)
        else:
            return None
        found = {name: getattr(law, name, None) for name in names}
        if not found or not all(isinstance(g, float) and g > 0.0 for g in found.values()):
            raise ModelError(
                f"{robot.name}: `tunable` of {type(law).__name__} must name fields that are "
                f"positive floats, got {found}"
            )
        return cls(law, names, torch.tensor(list(found.values())))

    def applied(self, values: Tensor) -> Policy:
        """The law with other gains: (g,) for one law, (P, 1, g) for P laws on states (P, B, n)."""
        if isinstance(self.law, LinearFeedback):
            places = torch.as_tensor(self.law.gain).nonzero().unbind(-1)
            gain = torch.zeros(*values.shape[:-1], *self.law.gain.shape, dtype=values.dtype)
            gain[..., places[0], places[1]] = values
            return replace(self.law, gain=gain if values.ndim > 1 else gain.double().numpy())
        if values.ndim == 1:
            return replace(self.law, **dict(zip(self.names, values.tolist(), strict=True)))
        if isinstance(self.law, CascadeBackup):
            wide = {
                name: values[..., k : k + 1] if extra else values[..., k]
                for k, (name, extra) in enumerate(CASCADE_GAINS.items())
            }
            return replace(self.law, **wide)
        laws = [self.applied(own) for own in values[:, 0]]
        return lambda x: torch.stack([law(y) for law, y in zip(laws, x, strict=True)])


def with_gains(robot: Robot, values: Tensor) -> Robot:
    """The robot with other gains of its recovery law; composed as its own backup policy is."""
    recovery = Gains.of(robot).applied(values)
    policy, base = robot.backup_policy, robot.base_controller
    if isinstance(policy, ReservedAuthority):
        return replace(robot, backup_policy=replace(policy, policy=recovery))
    if isinstance(policy, SwitchedBackup):
        return replace(robot, backup_policy=replace(policy, recovery=recovery))
    if policy is not base:
        return replace(robot, backup_policy=recovery)
    level = getattr(robot.base_set, "level", None)
    if isinstance(base, LinearFeedback) and level is not None:
        return replace(robot, backup_policy=SwitchedBackup(base, float(level), recovery))
    return replace(robot, backup_policy=BaseOrRecovery(robot.base_set, base, recovery))


def with_tuning(robot: Robot, tuning: Tuning) -> Robot:
    """The robot with the gains of a tuner's account, whatever their order in it."""
    values = [tuning[name]["tuned"] for name in Gains.of(robot).names]
    return with_gains(robot, torch.tensor(values))


def tune(
    robot: Robot,
    margins: Margins,
    settings: TuningSettings,
    seed: int,
    say: Callable[[str], None],
) -> Tuning:
    """What was found; `with_tuning` makes a robot of it."""
    generator = torch.Generator().manual_seed(seed)
    gains = Gains.of(robot)
    mean = torch.zeros(len(gains.names))
    spread = torch.full_like(mean, settings.spread)
    scores = torch.zeros(1)
    for generation in range(settings.generations):
        z = mean + spread * torch.randn(settings.candidates, len(mean), generator=generator)
        z[0] = mean
        x = safe_states(robot, settings.states, generator)
        scores = _scores(robot, margins, (gains.values * torch.exp(z)).unsqueeze(1), x)
        best = z[scores.argsort(descending=True, stable=True)[: settings.elites]]
        keep = 1.0 - settings.smoothing
        mean = keep * mean + settings.smoothing * best.mean(0)
        spread = keep * spread + settings.smoothing * best.std(0)
        if (generation + 1) % 5 == 0:
            say(
                f"tuning the analytic backup: {generation + 1}/{settings.generations}, mean "
                f"{float(scores[0]):.3f}, best {float(scores.max()):.3f} of {len(x)} states"
            )
    values = gains.values * torch.exp(mean)
    found = zip(gains.names, gains.values.tolist(), values.tolist(), strict=True)
    return {name: {"hand_set": old, "tuned": new} for name, old, new in found}


@torch.no_grad()
def _scores(robot: Robot, margins: Margins, values: Tensor, x: Tensor) -> Tensor:
    """The share of x (B, n) that each of P candidates (P, 1, g) saves. -> (P,)."""
    policy = with_gains(robot, values).backup_policy
    wide = x.expand(len(values), *x.shape)
    found = plan_margin(make_advance(margins, policy), margins, wide)
    return (found >= 0.0).float().mean(-1)
