"""PPO behind the shield: the likelihood is the proposal's, the projection belongs to the robot.

Proposals are drawn in coordinates of the unit box and clipped to it before they are sent:

    a = μ(o) + σ ε,  ε ~ N(0, 1)        u_π = centre + half_range · clip(a, -1, 1)
    u = shield(x, u_π)                  x⁺ = F(x, u),  r = reward(x⁺, u)

μ(o) in (-1, 1)^m is the policy network's action, σ in R^m is learned and the same everywhere.

Where the projection enters, exactly:

1. In the environment. The ratio of PPO is that of N(a; μ(o), σ²), the density of the *proposal*
   before clipping: proposal -> clip -> shield -> robot is one Markov decision process with action
   a, so the policy gradient theorem holds for it as it stands. The density of the *sent* action
   could not be used: projection puts probability mass on faces of the safe actions, where there is
   no density. An action that the shield moved is credited to the proposal that led to it.
2. In the loss. Along a blocked direction the return does not depend on a, hence no gradient holds
   μ there, and it would drift. The differentiable projection P_x onto the rows of the visited
   state (`projection_layer.py`) gives the pull back:

       L = -E min(ρ A, clip(ρ, 1 - c, 1 + c) A) + w E |(P_x(u_μ) - u_μ) / half_range|²

   with u_μ the policy's own action and ρ the ratio. The second term is zero where u_μ is safe, and
   P_x(P_x(u)) = P_x(u), so a policy that proposes the safe action itself pays nothing for it.
   Rows: those kept by the environment, nearest to the backup action; where they contradict each
   other, which the rows of a state with a verified plan do not, there is no pull.

An episode ends by its time limit only, hence V(o_T) is bootstrapped at its end and never zero:

    δ_k = r_k + γ V(o_{k+1}) - V(o_k),  A_k = δ_k + γ λ A_{k+1} within an episode

V is learned in units of the return: mean and spread of the returns are tracked, the last layer is
corrected so that V does not change with them (Pop-Art). Advantages are normalised per batch, the
step size follows the measured KL divergence, so one set of settings serves every robot.

Sources: Schulman et al., Proximal policy optimization, arXiv 1707.06347; Schulman et al.,
Generalized advantage estimation, arXiv 1506.02438; van Hasselt et al., Learning values across many
orders of magnitude, arXiv 1602.07714; step size by KL as in Rudin et al., arXiv 2109.11978.
Deviations: no entropy bonus (with it σ would grow without limit along blocked directions), no
clipping of the value, a separate critic, the target of the KL divergence falls during the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.robot import Robot
from torch import Tensor, nn

from safe_rl_training.envs import ShieldedEnv, Transition, observation_sample
from safe_rl_training.parts.learner import OneEnv, check_finite, flown_scalars
from safe_rl_training.parts.networks import mlp, network_for
from safe_rl_training.projection_layer import ProjectionLayer

#: Learning rates of the policy that the KL divergence may lead to.
LEARNING_RATES = (1e-5, 3e-3)


@dataclass(frozen=True)
class PpoSettings:
    """The symbols are those of the module's docstring; nothing here is a robot's own number.

    A batch is `count` robots times `steps` periods. `discount` γ, `trace` λ, `clip` c, `spread` σ
    at the start, `distance_weight` w, `keep`: rows kept for the second term. `kl` is the target of
    the divergence per batch, falling linearly to `kl_at_end`; `memory`: weight of the old mean and
    spread of the returns per iteration. In the first `critic_first` iterations only V learns, so
    that a policy that is good already is not spoilt.
    """

    iterations: int = 600
    count: int = 64
    steps: int = 128
    epochs: int = 6
    minibatch: int = 1024
    hidden: int = 64
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    spread: float = 0.3
    distance_weight: float = 1.0
    keep: int = 16
    kl: float = 0.01
    kl_at_end: float = 0.002
    learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    gradient_limit: float = 1.0
    memory: float = 0.9
    starts: Literal["task", "mixed"] = "mixed"
    critic_first: int = 0

    def __post_init__(self) -> None:
        if self.count * self.steps % self.minibatch:
            raise ModelError(
                f"count · steps = {self.count * self.steps} must be a multiple of minibatch = "
                f"{self.minibatch}"
            )
        for name in ("discount", "trace", "memory"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ModelError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not (self.spread > 0.0 and self.kl > 0.0 and self.kl_at_end > 0.0):
            raise ModelError("spread, kl and kl_at_end must be > 0")

    def kl_at(self, iteration: int) -> float:
        """Target of the KL divergence."""
        share = min(1.0, iteration / self.iterations)
        return self.kl + share * (self.kl_at_end - self.kl)


class Critic(nn.Module):
    """V(o) = centre + spread · body(o), in the units of the reward; o is already normalised."""

    centre: Tensor
    spread: Tensor

    def __init__(self, observation_size: int, hidden: int) -> None:
        super().__init__()
        self.body = mlp(observation_size, hidden, 1)
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, normalised: Tensor) -> Tensor:
        """(..., k) -> (...)."""
        return self.centre + self.spread * self.body(normalised)[..., 0]

    @torch.no_grad()
    def rescale(self, centre: Tensor, spread: Tensor) -> None:
        """New units for the body's output; V itself stays as it is."""
        weight, bias = self.body[-1].parameters()
        weight.mul_(self.spread / spread)
        bias.mul_(self.spread).add_(self.centre - centre).div_(spread)
        self.centre.copy_(centre)
        self.spread.copy_(spread)


@dataclass(frozen=True)
class Batch:
    """What one collection leaves, flattened to M = steps · count; `a` unclipped, `mean` is μ.

    `observation` (M, k), `a`, `mean` (M, m), `normals` (M, keep, m), `offsets` (M, keep),
    `advantage`, `target` (M,): A, normalised, and the return that V is fitted to.
    """

    observation: Tensor
    a: Tensor
    mean: Tensor
    normals: Tensor
    offsets: Tensor
    advantage: Tensor
    target: Tensor

    def __getitem__(self, index: Tensor) -> Batch:
        return Batch(*(getattr(self, f.name)[index] for f in fields(self)))


def log_density(a: Tensor, mean: Tensor, log_spread: Tensor) -> Tensor:
    """log N(a; mean, exp(log_spread)²), up to a constant: (..., m) -> (...)."""
    return (-0.5 * ((a - mean) / log_spread.exp()) ** 2 - log_spread).sum(-1)


def divergence(mean: Tensor, log_spread: Tensor, new_mean: Tensor, new: Tensor) -> Tensor:
    """KL(old | new) of the two Gaussians, `new` the new log_spread: (..., m) -> (...)."""
    ratio = ((mean - new_mean) ** 2 + (2.0 * log_spread).exp()) / (2.0 * (2.0 * new).exp())
    return (new - log_spread + ratio - 0.5).sum(-1)


def advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, ended: Tensor, discount: float, trace: float
) -> Tensor:
    """A of the module's docstring; all (T, B), `ended` bool. The end only cuts the sum."""
    delta = reward + discount * next_value - value
    out, following = torch.empty_like(delta), torch.zeros_like(delta[0])
    for k in reversed(range(len(delta))):
        following = delta[k] + discount * trace * torch.where(ended[k], 0.0, following)
        out[k] = following
    return out


class Ppo(OneEnv):
    """A `Learner`: collects with `ShieldedEnv` and learns as the module's docstring says."""

    def __init__(
        self,
        robot: Robot,
        settings: PpoSettings,
        seed: int,
        threads: int,
        device: str,
        kernel: BatchKernel | None = None,
    ) -> None:
        self.robot, self.settings, self.device = robot, settings, torch.device(device)
        self.iteration = 0
        self.env = ShieldedEnv(
            robot,
            settings.count,
            seed=seed,
            threads=threads,
            kernel=kernel,
            keep=settings.keep,
            starts=settings.starts,
        )
        torch.manual_seed(seed)
        observed = self.env.observation_size
        self.policy = network_for(robot.system, observed, settings.hidden).to(self.device)
        self.critic = Critic(observed, settings.hidden).to(self.device)
        sample = observation_sample(robot, self.env.kernel, seed)
        self.policy.measure_normalisation(torch.from_numpy(sample).to(self.device))
        spread = math.log(settings.spread) * torch.ones(self.env.action_size, device=self.device)
        self.log_spread = nn.Parameter(spread)
        layer = ProjectionLayer(self.env.scale, self.env.low, self.env.high)
        self.layer = layer.float().to(self.device)
        self._generator = torch.Generator().manual_seed(seed)
        actor = [*self.policy.parameters(), self.log_spread]
        self._actor_optimiser = torch.optim.Adam(actor, lr=settings.learning_rate)
        rate = settings.critic_learning_rate
        self._critic_optimiser = torch.optim.Adam(self.critic.parameters(), lr=rate)

    def iterate(self) -> dict[str, float]:
        """Fly one batch and learn from it; scalars to log, "return" when an episode ended."""
        batch, scalars = self._collect()
        scalars |= self._update(batch)
        remedies = {
            "loss/policy": f"lower learning_rate, now {self.settings.learning_rate}",
            "loss/value": f"lower critic_learning_rate, now {self.settings.critic_learning_rate}",
            "loss/distance": f"lower distance_weight, now {self.settings.distance_weight}",
            "kl": f"lower kl, now {self.settings.kl}",
        }
        check_finite(scalars, self.iteration, remedies)
        self.iteration += 1
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        parts = {name: getattr(self, name).state_dict() for name in self._PARTS}
        return {
            **parts,
            "log_spread": self.log_spread.detach().clone(),
            "generator": self._generator.get_state(),
            "iteration": self.iteration,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, in a learner made with the same arguments."""
        for name in self._PARTS:
            getattr(self, name).load_state_dict(stored[name])
        with torch.no_grad():
            self.log_spread.copy_(stored["log_spread"])
        self._generator.set_state(stored["generator"])
        self.iteration = stored["iteration"]

    _PARTS = ("env", "policy", "critic", "_actor_optimiser", "_critic_optimiser")

    def _mean(self, observation: Tensor) -> Tensor:
        """μ(o): (..., k) -> (..., m)."""
        return (self.policy(observation) - self.policy.centre) / self.policy.half_range

    def _value(self, observation: Tensor) -> Tensor:
        return self.critic((observation - self.policy.mean) / self.policy.std)

    @torch.no_grad()
    def _collect(self) -> tuple[Batch, dict[str, float]]:
        flown: list[Transition] = []
        means, proposals = [], []
        for _ in range(self.settings.steps):
            mean = self._mean(self._tensor(self.env.observation))
            noise = torch.randn(mean.shape, generator=self._generator).to(self.device)
            a = mean + self.log_spread.exp() * noise
            proposed = self.policy.centre + self.policy.half_range * a.clamp(-1.0, 1.0)
            flown.append(self.env.step(proposed.cpu().numpy()))
            means.append(mean)
            proposals.append(a)
        return self._batch(flown, torch.stack(means), torch.stack(proposals)), flown_scalars(flown)

    def _batch(self, flown: list[Transition], mean: Tensor, a: Tensor) -> Batch:
        def stacked(name: str) -> Tensor:
            return torch.stack([self._tensor(getattr(one, name)) for one in flown])

        observation, ended = stacked("observation"), stacked("ended").bool()
        value, following = self._value(observation), self._value(stacked("next_observation"))
        s = self.settings
        a_hat = advantages(stacked("reward"), value, following, ended, s.discount, s.trace)
        target = value + a_hat
        self._follow_returns(target)
        a_hat = (a_hat - a_hat.mean()) / (a_hat.std() + 1e-8)
        parts = (observation, a, mean, stacked("normals"), stacked("offsets"), a_hat, target)
        return Batch(*(part.flatten(0, 1) for part in parts))

    def _follow_returns(self, target: Tensor) -> None:
        centre, spread = target.mean(), target.std().clamp(min=1e-6)
        if self.iteration > 0:
            old = self.settings.memory
            second = old * (self.critic.spread**2 + self.critic.centre**2)
            second = second + (1.0 - old) * (spread**2 + centre**2)
            centre = old * self.critic.centre + (1.0 - old) * centre
            spread = (second - centre**2).clamp(min=1e-12).sqrt()
        self.critic.rescale(centre, spread)

    def _update(self, batch: Batch) -> dict[str, float]:
        old = self.log_spread.detach().clone()
        losses = [self._epoch(batch, old) for _ in range(self.settings.epochs)][-1]
        names = ("loss/policy", "loss/value", "loss/distance", "kl")
        last = dict(zip(names, losses.tolist(), strict=True))
        if self.iteration >= self.settings.critic_first:
            self._follow_divergence(last["kl"])
        return last | {
            "learning_rate": self._actor_optimiser.param_groups[0]["lr"],
            "spread": float(self.log_spread.detach().exp().mean()),
        }

    def _epoch(self, batch: Batch, old: Tensor) -> Tensor:
        """All minibatches once. -> mean of what `_step` returns."""
        order = torch.randperm(len(batch.a), generator=self._generator).to(self.device)
        parts = order.split(self.settings.minibatch)
        return torch.stack([self._step(batch[index], old) for index in parts]).mean(0)

    def _step(self, part: Batch, old: Tensor) -> Tensor:
        """One step of both optimisers on a minibatch. -> policy, value, distance loss, KL."""
        s = self.settings
        mean = self._mean(part.observation)
        kl = divergence(part.mean, old, mean.detach(), self.log_spread.detach()).mean()
        change = log_density(part.a, mean, self.log_spread) - log_density(part.a, part.mean, old)
        ratio = change.exp()
        clipped = ratio.clamp(1.0 - s.clip, 1.0 + s.clip)
        gain = torch.minimum(ratio * part.advantage, clipped * part.advantage).mean()
        distance = self._distance(mean, part)
        wrong = (self._value(part.observation) - part.target) / self.critic.spread
        value_loss = (wrong**2).mean()
        actor = [*self.policy.parameters(), self.log_spread]
        steps = [(self._critic_optimiser, value_loss, list(self.critic.parameters()))]
        if self.iteration >= s.critic_first:
            steps.append((self._actor_optimiser, s.distance_weight * distance - gain, actor))
        for optimiser, loss, parameters in steps:
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, s.gradient_limit)
            optimiser.step()
        return torch.stack((-gain, value_loss, distance, kl)).detach()

    def _distance(self, mean: Tensor, part: Batch) -> Tensor:
        """E |(P_x(u_μ) - u_μ) / half_range|²."""
        centre, half_range = self.policy.centre, self.policy.half_range
        proposed = centre + half_range * mean
        safe = self.layer(proposed, part.normals, part.offsets, proposed)
        away = (safe.action - proposed) / half_range * safe.feasible[:, None]
        return (away**2).sum(-1).mean()

    def _follow_divergence(self, kl: float) -> None:
        """The divergence grows with the square of the step size."""
        group, target = self._actor_optimiser.param_groups[0], self.settings.kl_at(self.iteration)
        change = math.sqrt(target / max(kl, 1e-9))
        low, high = LEARNING_RATES
        group["lr"] = min(max(group["lr"] * min(max(change, 1.0 / 1.5), 1.5), low), high)

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array).to(self.device, torch.float32)


def make(
    robot: Robot,
    settings: PpoSettings,
    seed: int,
    threads: int,
    device: str,
    kernel: BatchKernel | None = None,
) -> Ppo:
    """A fresh learner."""
    return Ppo(robot, settings, seed, threads, device, kernel)
