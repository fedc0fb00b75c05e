"""The analytic-gradient learner: back-propagation through robot, task and shield.

    maximise  E [ 1/H sum_{k<H} r_k + V(o_H)/H ] / s  -  d E |(u_k - π(o_k)) / input_scale|²

    u_k = shield(x_k, π(o_k))       x_{k+1} = step(x_k, u_k)

over windows of H steps that B robots fly one after another, each from where it stands; a robot
whose episode is over starts anew. The equations are differentiable, so Adam gets the gradient of
the return itself. The critic V closes windows that end before the episode does; H grows during the
first part of training, because the inner loop must work before the outer one can depend on it.
s is the running scale of the rewards.

How the shield enters. Forwards everything is the environment's: the nominal shield's own decisions
in the compiled kernel, so a robot in training is exactly as safe as one in flight. Backwards the
action follows the proposal by the derivative that the kernel gives with its decision,

    passed  1      projected  blend · (projection onto the active rows)      backup  0.

The rows depend on x too; that is left out, as in PS2-RL, where x is replay data. It is the
derivative of a stiff closed loop over the whole backup horizon: with it gradients grew by ten
orders of magnitude within one powerloop. For the same reason the gradient that reaches one state
is limited to `state_gradient_limit`, in rewards per step and unit of state.

Source: the layer is PS2-RL's (arXiv 2606.14536); windows with a critic are those of SHAC, Xu et
al., Accelerated Policy Learning with Parallel Differentiable Simulation (ICLR 2022).
Deviations from SHAC: no exploration noise, windows that grow, a shield.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.robot import Robot
from torch import Tensor, nn

from safe_rl_training.envs import BACKUP, PASSED, ShieldedEnv, Transition, observation_sample
from safe_rl_training.parts.learner import check_finite
from safe_rl_training.parts.networks import network_for

#: Smallest spread of an observation, in its unit: one that hardly varies must not blow up.
SMALLEST_SPREAD = 0.1


@dataclass(frozen=True)
class ShacSettings:
    """All settings; the symbols are those of the module.

    `batch` B robots; `horizon` (first, last) H in steps, reached after `growth` of the
    iterations; `distance_weight` d; `learning_rate` (first, last) of a cosine; `compiled`: by
    torch.compile,
    which needs a C++ compiler and pays after about a minute.
    """

    iterations: int = 1000
    batch: int = 64
    horizon: tuple[int, int] = (20, 100)
    growth: float = 0.4
    hidden: int = 64
    learning_rate: tuple[float, float] = (2e-3, 2e-5)
    critic_rate: float = 1e-3
    critic_hidden: int = 128
    critic_updates: int = 8
    discount: float = 0.99
    distance_weight: float = 0.05
    state_gradient_limit: float = 300.0
    gradient_limit: float = 1.0
    starts: Literal["task", "mixed"] = "task"
    compiled: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.horizon[0] <= self.horizon[1]:
            raise ModelError(f"horizon must be 0 < first <= last, got {self.horizon}")

    def horizon_at(self, iteration: int) -> int:
        """Steps per window."""
        share = min(1.0, iteration / max(1.0, self.growth * self.iterations))
        return round(self.horizon[0] + share * (self.horizon[1] - self.horizon[0]))

    def learning_rate_at(self, iteration: int) -> float:
        """Cosine from the first to the last learning rate."""
        first, last = self.learning_rate
        cosine = 0.5 * (1.0 + math.cos(math.pi * iteration / self.iterations))
        return last + (first - last) * cosine


@dataclass
class _Window:
    """One window as it was flown: lists over its steps."""

    rewards: list[Tensor]
    observations: list[Tensor]
    closing: list[Tensor]
    closed: list[Tensor]
    flown: list[Transition]
    distance: Tensor


class ShacLearner:
    """See the module. One `iterate` is one window of all robots and one step of Adam."""

    def __init__(
        self,
        robot: Robot,
        settings: ShacSettings,
        seed: int,
        threads: int = 1,
        kernel: BatchKernel | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.robot, self.settings = robot, settings
        self.env = ShieldedEnv(
            robot, settings.batch, seed=seed, threads=threads, kernel=kernel,
            starts=settings.starts,
        )  # fmt: skip
        self.policy = network_for(robot.system, self.env.observation_size, settings.hidden)
        sample = torch.from_numpy(observation_sample(robot, self.env.kernel, seed))
        self.policy.measure_normalisation(sample)
        self.policy.std.clamp_(min=SMALLEST_SPREAD)
        self.critic = _critic(self.env.observation_size, settings.critic_hidden)
        self._actor_optimiser = torch.optim.Adam(self.policy.parameters())
        self._critic_optimiser = torch.optim.Adam(
            self.critic.parameters(), lr=settings.critic_rate
        )
        self.iteration, self._reward_scale = 0, 0.0
        task, policy = robot.task, self.policy
        wrap = torch.compile if settings.compiled else _as_it_is
        self._propose = wrap(lambda x, t: policy(task.observation(x, t)))
        self._advance = wrap(robot.system.step)
        self._reward = wrap(task.reward)

    @property
    def env_steps(self) -> int:
        """Periods that all robots together have been flown."""
        return self.env.steps

    @property
    def violations(self) -> int:
        """Visited states outside the safe set."""
        return self.env.violations

    def iterate(self) -> dict[str, float]:
        """Fly one window, then one step of the policy and a few of the critic."""
        settings = self.settings
        horizon = settings.horizon_at(self.iteration)
        window = self._fly(horizon)
        rewards = torch.stack(window.rewards)
        scale = float(rewards.detach().abs().mean())
        share = 0.01 if self.iteration else 1.0
        self._reward_scale += share * (scale - self._reward_scale)
        closing = torch.stack(window.closing).sum(0)
        total = (rewards.sum(0) / self._reward_scale + closing).mean() / horizon
        loss = settings.distance_weight * window.distance - total
        self._actor_optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), settings.gradient_limit)
        scalars = {
            "loss/policy": loss.item(),
            "gradient": norm.item(),
            "reward": rewards.detach().mean().item(),
            **_shares(window),
        }
        for group in self._actor_optimiser.param_groups:
            group["lr"] = settings.learning_rate_at(self.iteration)
        self._actor_optimiser.step()
        scalars["loss/critic"] = self._teach_critic(window, rewards.detach())
        check_finite(scalars, self.iteration, _REMEDIES)
        self.iteration += 1
        return scalars

    def _fly(self, horizon: int) -> _Window:
        """`horizon` periods from where the robots stand; values from the env, slopes by torch."""
        env, half = self.env, self.policy.half_range
        path = [_single(x) for x in env.path]
        window = _Window([], [], [], [], [], torch.zeros(()))
        for k in range(horizon):
            t = _single(env.t)
            u = self._propose(path[0], t)
            flown = env.step(u.detach().double().numpy())
            path, action = self._move(path, u, flown, horizon)
            reward = self._reward(path[0], action, t + env.period)[..., 0]
            ended = torch.from_numpy(flown.ended)
            closed = torch.ones_like(ended) if k == horizon - 1 else ended
            gap = ((u - _single(flown.action)) / half) ** 2
            window.rewards.append(reward)
            window.observations.append(torch.from_numpy(flown.observation))
            window.closing.append(self._value(path[0], t + env.period, closed))
            window.closed.append(closed)
            window.flown.append(flown)
            window.distance = window.distance + gap.sum(-1).mean() / horizon
            if ended.any():
                fresh = [_single(x) for x in env.path]
                path = [
                    torch.where(ended[:, None], new, old)
                    for new, old in zip(fresh, path, strict=True)
                ]
        return window

    def _move(
        self, path: list[Tensor], u: Tensor, flown: Transition, horizon: int
    ) -> tuple[list[Tensor], Tensor]:
        """The env's own step, with the derivative of action and motion attached."""
        follow = (_single(flown.slope) @ (u - u.detach())[..., None])[..., 0]
        action = _single(flown.action) + follow
        moved = self._advance(path[-1], action)
        moved = _single(flown.next_predicted) + (moved - moved.detach())
        if moved.requires_grad:
            moved.register_hook(self._limit(horizon))
        return [*path[1:], moved], action

    def _value(self, x: Tensor, t: Tensor, closed: Tensor) -> Tensor:
        """V where a window closes, in units of the reward scale; 0 elsewhere. -> (B,)."""
        if not closed.any():
            return torch.zeros(len(x))
        seen = self.policy.normalise(self.robot.task.observation(x, t))
        return torch.where(closed, self.critic(seen)[:, 0], 0.0)

    def _limit(self, horizon: int) -> Callable[[Tensor | None], Tensor | None]:
        """A hook that keeps the gradient reaching one robot's state below the limit."""
        steps = horizon * self.settings.batch
        most = self.settings.state_gradient_limit / (self._reward_scale or 1.0) / steps

        def limited(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            length = gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            return gradient * (most / length).clamp(max=1.0)

        return limited

    def _teach_critic(self, window: _Window, rewards: Tensor) -> float:
        """Regression on the window's discounted returns, closed by V itself. -> last loss."""
        targets, ahead = [], torch.zeros(self.env.count)
        windows = zip(rewards, window.closing, window.closed, strict=True)
        for reward, value, closed in reversed(list(windows)):
            ahead = torch.where(closed, value.detach(), ahead)
            ahead = reward / self._reward_scale + self.settings.discount * ahead
            targets.append(ahead)
        target = torch.stack(targets[::-1]).reshape(-1)
        seen = self.policy.normalise(torch.stack(window.observations)).flatten(0, 1)
        loss = torch.zeros(())
        for _ in range(self.settings.critic_updates):
            loss = nn.functional.smooth_l1_loss(self.critic(seen)[:, 0], target)
            self._critic_optimiser.zero_grad()
            loss.backward()
            self._critic_optimiser.step()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "actor_optimiser": self._actor_optimiser.state_dict(),
            "critic_optimiser": self._critic_optimiser.state_dict(),
            "env": self.env.state_dict(),
            "iteration": self.iteration,
            "reward_scale": self._reward_scale,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.policy.load_state_dict(stored["policy"])
        self.critic.load_state_dict(stored["critic"])
        self._actor_optimiser.load_state_dict(stored["actor_optimiser"])
        self._critic_optimiser.load_state_dict(stored["critic_optimiser"])
        self.env.load_state_dict(stored["env"])
        self.iteration, self._reward_scale = stored["iteration"], stored["reward_scale"]


_REMEDIES = {
    "loss/policy": "lower learning_rate or the first horizon",
    "gradient": "lower state_gradient_limit",
    "loss/critic": "lower critic_rate",
}


def make(
    robot: Robot, settings: ShacSettings, seed: int, threads: int, device: str = "cpu"
) -> ShacLearner:
    """A fresh learner. CPU only: its environment is the compiled kernel."""
    if device != "cpu":
        raise ModelError(f"shac runs on the CPU, got device {device!r}; use --learner sac there")
    return ShacLearner(robot, settings, seed, threads)


def _shares(window: _Window) -> dict[str, float]:
    """What the shield did in the window, and the mean return of the episodes that it ended."""
    verdicts = np.concatenate([flown.verdict for flown in window.flown])
    returns = np.concatenate([flown.returns[flown.ended] for flown in window.flown])
    returns = returns[np.isfinite(returns)]
    found = {
        "intervention": float((verdicts != PASSED).mean()),
        "backup": float((verdicts == BACKUP).mean()),
        "distance": window.distance.item(),
    }
    return {**found, "return": float(returns.mean())} if returns.size else found


def _critic(observation_size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(observation_size, hidden),
        nn.Tanh(),
        nn.Linear(hidden, hidden),
        nn.Tanh(),
        nn.Linear(hidden, 1),
    )


def _single(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array).float()


def _as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function
