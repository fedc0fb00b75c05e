"""Phase I by twin-delayed deterministic policy gradient: a backup policy from a learned value.

Two value functions, for a state x, an input u and n steps to go; g, f: x in B, x outside C; h, l
the margins `safe` and `base` of `parts/arrival.py`, those of the tubes subtracted, in [-1, 1]:

    safe_arrival   V_n = 1 on B, 0 outside C, else beta max_u V_{n-1}(x⁺)      V_0 = 1 on B, else 0
    reach_avoid    V_n = min(h, max(l, beta max_u V_{n-1}(x⁺)))                V_0 = min(h, l)

The first is the published one, beta^k for arrival after k steps; the second has the sign of "can
arrive" for every beta, because beta^n > 0 changes no sign, and a slope where nobody arrives. What
is known is not learned: with Q(x, u, n) the value of going on, the critics' share of V is

    full = g + (1 - g - f) Q   (safe_arrival)        min(h, max(l, Q))   (reach_avoid)

Inside B the base controller acts, in both. The second value goes on there, since l still grows.

    y = beta full(h⁺, l⁺, min_i Q_i'(x⁺, pi'(x⁺), n - 1))     loss = Huber(Q_i - y)

    actor: climb min_i w(Q_i(x, pi(x), n)), not `full`, which is flat where it clips; pi is the
           residual network of `LearnedRecovery`; w(q) = q, for reach_avoid sigmoid(10 q)

Steps to go are an input of the critics and not of the policy: arriving as early as possible is
optimal for every n at once. One transition teaches all n, so n is drawn anew with every batch.

Source: PS2-RL, arXiv 2606.14536, and its released configuration (`TdSettings.published`: raw
states and actions, no clipping beyond [0, 1], infinite horizon, no target noise, one update per
eight steps). TD3: Fujimoto et al., arXiv 1802.09477. Operator: Li et al., arXiv 2408.07866.

Deviations, always: the simulator is set to states all over the safe set instead of a curriculum
box or a library of flights; the actor is the tanh residual that is deployed, not a ReLU network;
noise is a share of the half-range, not of the upper bound; a non-finite loss raises, gradients are
not zeroed. By default also: steps to go, features and actions normalised, a quarter of the inputs
uniform over the box, an actor that waits until the critics know the analytic law.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup.learned import Layers, feature_size, recovery_with
from safe_rl_systems.robot import Robot
from torch import Tensor
from torch.nn import functional

from safe_rl_training.parts.arrival import Margins, Profile, inward_clip, safe_states

VALUES = ("safe_arrival", "reach_avoid")
#: Settings of the publication that differ between its two robots.
_PUBLISHED = {
    "unicycle": {"discount": 0.92, "actor_rate": 3e-4, "noise": 0.08, "action_penalty": 0.02},
    "quadrotor": {"discount": 0.99, "actor_rate": 1e-4, "noise": 0.10, "action_penalty": 0.05},
}
#: Of the actor's climb on the sign-exact value: it counts arrivals where this is large.
SHARPNESS = 10.0
#: States from which normalisation is measured.
SAMPLE = 4096


@dataclass(frozen=True)
class TdSettings:
    """One iteration: every one of `envs` robots goes `collect` steps, then `updates` updates.

    `value` is one of VALUES: the published one, which saved more states on the same budget. Noise
    and its limit are shares of the half-range of the input box. `random_share` of the inputs
    are uniform over the box; so are all of the first `warmup` steps. In the first `settle` updates
    the critics learn the value of the analytic policy that the actor begins with.
    """

    value: str = "safe_arrival"
    horizon_aware: bool = True
    discount: float = 0.99
    envs: int = 128
    collect: int = 10
    updates: int = 40
    iterations: int = 500
    batch: int = 512
    replay: int = 200_000
    warmup: int = 20_000
    settle: int = 2000
    hidden: int = 128
    actor_hidden: int = 64
    actor_rate: float = 3e-4
    critic_rate: float = 1e-3
    final_rate: float = 0.1
    delay: int = 2
    averaging: float = 0.02
    noise: float = 0.2
    noise_limit: float = 0.5
    target_noise: float = 0.02
    random_share: float = 0.25
    gradient_limit: float = 5.0
    action_penalty: float = 0.0
    normalised: bool = True

    def __post_init__(self) -> None:
        if self.value not in VALUES:
            raise ModelError(f"TdSettings.value must be one of {VALUES}, got {self.value!r}")
        if not 0.0 < self.discount <= 1.0:
            raise ModelError(f"TdSettings.discount must lie in (0, 1], got {self.discount}")
        for name in ("envs", "collect", "updates", "batch", "hidden", "delay", "iterations"):
            if getattr(self, name) < 1:
                raise ModelError(f"TdSettings.{name} must be >= 1, got {getattr(self, name)}")
        if self.replay < self.envs * self.collect:
            raise ModelError(
                f"TdSettings.replay must hold an iteration, {self.envs * self.collect} steps, "
                f"got {self.replay}"
            )

    @classmethod
    def published(cls, robot: Robot) -> TdSettings:
        """The released configuration, 3 or 5 million steps in chunks of 32 x 128."""
        if robot.robot not in _PUBLISHED:
            raise ModelError(
                f"PS2-RL published settings for {sorted(_PUBLISHED)}, not for {robot.robot!r}; "
                "use TdSettings()"
            )
        steps = 3_000_000 if robot.robot == "unicycle" else 5_000_000
        given = cls(
            value="safe_arrival",
            horizon_aware=False,
            envs=32,
            collect=128,
            updates=512,
            iterations=math.ceil(steps / (32 * 128)),
            batch=128,
            replay=400_000,
            warmup=5_000,
            settle=0,
            actor_hidden=128,
            critic_rate=3e-4,
            final_rate=1.0,
            averaging=0.0025,
            noise_limit=0.10,
            target_noise=0.0,
            random_share=0.0,
            normalised=False,
        )
        return replace(given, **_PUBLISHED[robot.robot])


class SafeArrival:
    """The published value: see the module's equations. Margins h, l and values are (B,)."""

    #: All is known on B: nothing that begins there is stored, and arrival ends an episode.
    ends_on_base = True

    def content(self, raw: Tensor) -> Tensor:
        """The critic's output as a value of going on."""
        return torch.sigmoid(raw)

    def full(self, h: Tensor, l: Tensor, q: Tensor) -> Tensor:  # noqa: E741
        """The value where `q` is that of going on."""
        return torch.where(h < 0.0, 0.0, torch.where(l >= 0.0, 1.0, q))

    def nothing(self, h: Tensor) -> Tensor:
        """The value of going on with no steps to go."""
        return torch.zeros_like(h)

    def worth(self, q: Tensor) -> Tensor:
        """What the actor climbs."""
        return q


class ReachAvoid:
    """The sign-exact value: see the module's equations. Margins h, l and values are (B,)."""

    #: On B the value is that of the base controller's best moment.
    ends_on_base = False

    def content(self, raw: Tensor) -> Tensor:
        """The critic's output as a value of going on."""
        return raw

    def full(self, h: Tensor, l: Tensor, q: Tensor) -> Tensor:  # noqa: E741
        """The value where `q` is that of going on."""
        return torch.minimum(h, torch.maximum(l, q)).clamp(-1.0, 1.0)

    def nothing(self, h: Tensor) -> Tensor:
        """The value of going on with no steps to go."""
        return torch.full_like(h, -1.0)

    def worth(self, q: Tensor) -> Tensor:
        """What the actor climbs: nearly "can arrive", steep where that is decided."""
        return torch.sigmoid(SHARPNESS * q)


def _dense(sizes: tuple[int, ...], copies: int, last: float, generator: torch.Generator) -> list:
    """Weights (copies, i, o) and biases (copies, 1, o) in turns; the last layer is scaled."""
    tensors = []
    for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False)):
        scale = math.sqrt(2.0 / i) * (last if k == len(sizes) - 2 else 1.0)
        weight = scale * torch.randn(copies, i, o, generator=generator)
        tensors += [weight.requires_grad_(), torch.zeros(copies, 1, o).requires_grad_()]
    return tensors


class TdArrival:
    """A learner in the middle of its run; `layers` is the backup network so far."""

    def __init__(self, robot: Robot, settings: TdSettings, seed: int) -> None:
        self.robot, self.settings = robot, settings
        self.iteration = self.env_steps = self.updates_done = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.operator = SafeArrival() if settings.value == "safe_arrival" else ReachAvoid()
        sample = safe_states(robot, SAMPLE, self.generator)
        self.margins = Margins.measured(robot, sample, Profile.nominal(robot))
        self.set_profile(self.margins.profile)
        self.steps = len(self.kept)
        self.far = self.margins.base(sample).abs().quantile(0.95)
        self._prepare_networks(sample)
        n, m = sample.shape[1], len(self.low)
        sizes = {"x": n, "u": m, "after": n}
        self.replay = {key: torch.zeros(settings.replay, size) for key, size in sizes.items()}
        self.filled = self.head = 0
        self.x = safe_states(robot, settings.envs, self.generator)
        self.to_go = torch.full((settings.envs,), self.steps)

    def set_profile(self, profile: Profile) -> None:
        """From now on, keep these margins from the rows."""
        self.margins = self.margins.with_profile(profile)
        self.kept = torch.as_tensor(profile.rows, dtype=torch.float32)

    def _prepare_networks(self, sample: Tensor) -> None:
        robot, s = self.robot, self.settings
        m = len(robot.system.inputs)
        none = ((torch.zeros(m, feature_size(robot)), torch.zeros(m)),)
        self.recovery = replace(recovery_with(robot, none), limit=inward_clip)
        self.low, self.high = (torch.tensor(v) for v in (self.recovery.low, self.recovery.high))
        self.centre, self.half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        y = self.features(sample)
        self.mean, self.std = torch.zeros(y.shape[1]), torch.ones(y.shape[1])
        if s.normalised:
            self.mean, self.std = y.mean(0), y.std(0).clamp(min=1e-3)
        k, g = y.shape[1], self.generator
        self.actor = _dense((k, s.actor_hidden, s.actor_hidden, m), 1, 0.0, g)
        self.critic = _dense((k + m + 1, s.hidden, s.hidden, 1), 2, 0.1, g)
        self.actor_target = [p.detach().clone() for p in self.actor]
        self.critic_target = [p.detach().clone() for p in self.critic]
        self.actor_optimiser = torch.optim.Adam(self.actor, lr=s.actor_rate, fused=True)
        self.critic_optimiser = torch.optim.Adam(self.critic, lr=s.critic_rate, fused=True)

    def features(self, x: Tensor) -> Tensor:
        """What both networks see of the state, not yet normalised. (B, n) -> (B, f)."""
        return self.recovery.system.features(x, self.recovery.bounded)

    def normalised_margins(self, x: Tensor, to_go: Tensor) -> tuple[Tensor, Tensor]:
        """h and l in [-1, 1] of a state with `to_go` steps left. (B, n), (B,) -> (B,), (B,).

        The base set's margin falls far outside: asinh keeps the values near 0 apart.
        """
        kept = self.kept[(self.steps - 1 - to_go).clamp(min=0)]
        h, l = self.margins.safe(x, kept), torch.asinh(self.margins.base(x))  # noqa: E741
        return h.clamp(-1.0, 1.0), (l / torch.asinh(self.far)).clamp(-1.0, 1.0)

    @property
    def layers(self) -> Layers:
        """The network in float64, its normalisation folded into the first layer."""
        return tuple(
            (w.detach().double(), b.detach().double()) for w, b in self._folded(self.actor)
        )

    def _folded(self, actor: list[Tensor]) -> Layers:
        """Differentiable, in float32."""
        pairs = [(w[0].T, b[0, 0]) for w, b in zip(actor[::2], actor[1::2], strict=True)]
        weight = pairs[0][0] / self.std
        return ((weight, pairs[0][1] - weight @ self.mean), *pairs[1:])

    def policy(self, x: Tensor, actor: list[Tensor]) -> Tensor:
        """pi(x) outside B: (B, n) -> (B, m)."""
        return replace(self.recovery, layers=self._folded(actor))(x)

    def composed(self, x: Tensor, u: Tensor) -> Tensor:
        """u, and the base controller's input on B. (B, n), (B, m) -> (B, m)."""
        inside = self.margins.base(x) >= 0.0
        return torch.where(inside[:, None], self.robot.base_controller(x), u)

    def going_on(self, x: Tensor, u: Tensor, to_go: Tensor, critic: list[Tensor]) -> Tensor:
        """Both critics before `content`. (B, n), (B, m), (B,) -> (2, B)."""
        s = self.settings
        action = (u - self.centre) / self.half if s.normalised else u
        share = to_go[:, None] / self.steps if s.horizon_aware else torch.ones(len(x), 1)
        z = torch.cat(((self.features(x) - self.mean) / self.std, action, share), -1)
        z = z.expand(2, *z.shape)
        for weight, bias in zip(critic[:-2:2], critic[1:-2:2], strict=True):
            z = functional.relu(torch.baddbmm(bias, z, weight))
        return torch.baddbmm(critic[-1], z, critic[-2])[..., 0]

    def iterate(self) -> dict[str, float]:
        """Collect and update; ModelError where a loss is not finite."""
        s = self.settings
        share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.iteration / s.iterations)))
        decay = s.final_rate + (1.0 - s.final_rate) * share
        self.actor_optimiser.param_groups[0]["lr"] = decay * s.actor_rate
        self.critic_optimiser.param_groups[0]["lr"] = decay * s.critic_rate
        arrived = self._collect()
        critic_loss, climbed = math.nan, math.nan
        if self.env_steps >= s.warmup:
            for _ in range(s.updates):
                critic_loss, climbed = self._update(climbed)
        self.iteration += 1
        return {"arrived": arrived, "loss/critic": critic_loss, "value": climbed}

    @torch.no_grad()
    def _collect(self) -> float:
        """Steps of all robots into the replay. -> share of the ended episodes that arrived."""
        s, ended, arrived = self.settings, 0, 0
        for _ in range(s.collect):
            u = self.composed(self.x, self._explore(self.x))
            after = self.robot.system.step(self.x, u)
            self._store(x=self.x, u=u, after=after)
            self.to_go -= 1
            h, l = self.normalised_margins(after, self.to_go)  # noqa: E741
            there = (h >= 0.0) & (l >= 0.0)
            over = (there & self.operator.ends_on_base) | (h < 0.0) | (self.to_go == 0)
            ended, arrived = ended + int(over.sum()), arrived + int((there & over).sum())
            fresh = safe_states(self.robot, len(after), self.generator)
            self.x = torch.where(over[:, None], fresh, after)
            self.to_go = torch.where(over, self.steps, self.to_go)
            self.env_steps += len(after)
        return arrived / max(1, ended)

    def _explore(self, x: Tensor) -> Tensor:
        s, g = self.settings, self.generator
        uniform = self.centre + self.half * (
            2.0 * torch.rand(len(x), len(self.low), generator=g) - 1
        )
        if self.env_steps < s.warmup:
            return uniform
        noise = s.noise * torch.randn(uniform.shape, generator=g)
        noisy = self.policy(x, self.actor) + self.half * noise.clamp(-s.noise_limit, s.noise_limit)
        anywhere = torch.rand(len(x), 1, generator=g) < s.random_share
        return torch.where(anywhere, uniform, noisy).clamp(self.low, self.high)

    def _store(self, **columns: Tensor) -> None:
        """Only transitions from where there is something to learn."""
        x = columns["x"]
        h, l = self.normalised_margins(x, torch.full((len(x),), self.steps))  # noqa: E741
        between = (h >= 0.0) & ((l < 0.0) | (not self.operator.ends_on_base))
        where = (self.head + torch.arange(int(between.sum()))) % self.settings.replay
        for name, column in columns.items():
            self.replay[name][where] = column[between]
        self.head = (self.head + len(where)) % self.settings.replay
        self.filled = min(self.filled + len(where), self.settings.replay)

    def _update(self, climbed: float) -> tuple[float, float]:
        """One step of the critics, and of the actor every `delay` of them."""
        s = self.settings
        drawn = torch.randint(self.filled, (s.batch,), generator=self.generator)
        x, u, after = (column[drawn] for column in self.replay.values())
        to_go = torch.randint(1, self.steps + 1, (s.batch,), generator=self.generator)
        with torch.no_grad():
            y = self._target(after, to_go - 1)
        q = self.operator.content(self.going_on(x, u, to_go, self.critic))
        loss = functional.huber_loss(q, y.expand_as(q))
        self._descend(loss, "critic", self.critic, self.critic_optimiser)
        self.updates_done += 1
        if self.updates_done % s.delay == 0:
            if self.updates_done > s.settle:
                climbed = self._improve(x, to_go)
            with torch.no_grad():
                for target, live in (
                    *zip(self.critic_target, self.critic, strict=True),
                    *zip(self.actor_target, self.actor, strict=True),
                ):
                    target.lerp_(live, s.averaging)
        return loss.item(), climbed

    def _target(self, after: Tensor, to_go: Tensor) -> Tensor:
        s = self.settings
        h, l = self.normalised_margins(after, to_go)  # noqa: E741
        u = self.policy(after, self.actor_target)
        if s.target_noise:
            noise = s.target_noise * torch.randn(u.shape, generator=self.generator)
            u = (u + self.half * noise).clamp(self.low, self.high)
        u = self.composed(after, u)
        q = self.operator.content(self.going_on(after, u, to_go, self.critic_target)).amin(0)
        if s.horizon_aware:
            q = torch.where(to_go == 0, self.operator.nothing(h), q)
        return s.discount * self.operator.full(h, l, q)

    def _improve(self, x: Tensor, to_go: Tensor) -> float:
        s = self.settings
        u = self.policy(x, self.actor)
        raw = self.going_on(x, u, to_go, self.critic).amin(0)
        outside = (self.margins.base(x) < 0.0).float()
        worth = self.operator.worth(self.operator.content(raw))
        value = (outside * worth).sum() / outside.sum().clamp(min=1.0)
        loss = s.action_penalty * ((u / self.high) ** 2).mean() - value
        self._descend(loss, "actor", self.actor, self.actor_optimiser)
        return value.item()

    def _descend(
        self, loss: Tensor, name: str, parameters: list[Tensor], optimiser: torch.optim.Adam
    ) -> None:
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"{self.robot.name}: the {name}'s loss is {loss.item()} at iteration "
                f"{self.iteration}; lower TdSettings.{name}_rate, now "
                f"{getattr(self.settings, f'{name}_rate')}"
            )
        slopes = torch.autograd.grad(loss, parameters)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.gradient_limit)
        optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            **{name: getattr(self, name).clone() for name in ("x", "to_go")},
            **{name: [p.detach().clone() for p in getattr(self, name)] for name in _NETWORKS},
            "replay": {name: t[: self.filled].clone() for name, t in self.replay.items()},
            "generator": self.generator.get_state(),
            "profile_rows": torch.from_numpy(self.margins.profile.rows.copy()),
            "profile_base": self.margins.profile.base,
            **{name: deepcopy(getattr(self, name).state_dict()) for name in _OPTIMISERS},
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, in a learner made with the same arguments."""
        for name in _COUNTERS:
            setattr(self, name, stored[name])
        self.x, self.to_go = stored["x"].clone(), stored["to_go"].clone()
        with torch.no_grad():
            for name in _NETWORKS:
                for mine, theirs in zip(getattr(self, name), stored[name], strict=True):
                    mine.copy_(theirs)
        for name, tensor in self.replay.items():
            tensor[: self.filled] = stored["replay"][name]
        self.generator.set_state(stored["generator"])
        self.set_profile(Profile(stored["profile_rows"].numpy(), stored["profile_base"]))
        for name in _OPTIMISERS:
            getattr(self, name).load_state_dict(stored[name])


_COUNTERS = ("iteration", "env_steps", "updates_done", "filled", "head")
_NETWORKS = ("actor", "critic", "actor_target", "critic_target")
_OPTIMISERS = ("actor_optimiser", "critic_optimiser")
