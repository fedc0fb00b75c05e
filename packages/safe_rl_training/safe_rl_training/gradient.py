"""The analytic-gradient learner: back-propagation through robot, task and shield.

    maximise  E [ 1/H sum_{k<H} r_k ] / s  -  d E |(u_k - π(o_k)) / half_range|²

    u_k = shield(x_k, π(o_k))       x_{k+1} = step(x_k, u_k)

over windows of H steps that B robots fly one after another, each from where it stands; a robot
whose episode is over starts anew. The equations are differentiable, so Adam gets the gradient of
the return itself. H grows during the first part of training, because the inner loop must work
before the outer one can depend on it. s is the running scale of the rewards.

How the shield enters. Forwards everything is the environment's: the nominal shield's own decisions
in the compiled kernel, so a robot in training is exactly as safe as one in flight. Backwards the
action follows the proposal by the slope that the kernel gives with its decision,

    passed  1      projected  blend · (projection onto the active rows)      backup  0.

The rows depend on x too; that is left out, as in PS2-RL, where x is replay data. It is the
derivative of a stiff closed loop over the whole backup horizon: with it gradients grew by ten
orders of magnitude within one powerloop. So the gradient is exact where the shield is passive and
biased where it acts. Half of the episodes begin anywhere in the implicit set ("mixed"): from the
task's starts alone the powerloop is not found behind a shield. The gradient that reaches one state
is limited to `state_gradient_limit`, in rewards per step and unit of state.

`shielded=False` flies the proposals as they are, clipped to the box, anywhere.

Source: the layer is PS2-RL's (arXiv 2606.14536); growing windows of back-propagation through a
model as in Mora et al., PODS (ICML 2021), and Xu et al., SHAC (ICLR 2022). Deviation from SHAC: no
critic at the window's end, which slowed the powerloop down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.robot import Robot
from torch import Tensor, nn

from safe_rl_training.envs import ShieldedEnv, Transition, observation_sample
from safe_rl_training.parts.compiling import compiled
from safe_rl_training.parts.learner import OneEnv, check_finite, flown_scalars
from safe_rl_training.parts.networks import network_for

#: Smallest spread of an observation, in its unit: one that hardly varies must not blow up.
SMALLEST_SPREAD = 0.1


@dataclass(frozen=True)
class GradientSettings:
    """All settings; the symbols are those of the module.

    `batch` B robots; `horizon` (first, last) H in steps, reached after `growth` of the
    iterations; `distance_weight` d; `learning_rate` (first, last) of a cosine; `compiled`: by
    torch.compile where that works, which pays after about a minute.
    """

    iterations: int = 300
    batch: int = 128
    horizon: tuple[int, int] = (20, 60)
    growth: float = 0.4
    hidden: int = 64
    learning_rate: tuple[float, float] = (2e-3, 2e-5)
    distance_weight: float = 0.3
    state_gradient_limit: float = 300.0
    gradient_limit: float = 1.0
    starts: Literal["task", "mixed"] = "mixed"
    shielded: bool = True
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


class GradientLearner(OneEnv):
    """See the module. One `iterate` is one window of all robots and one step of Adam."""

    def __init__(
        self,
        robot: Robot,
        settings: GradientSettings,
        seed: int,
        threads: int = 1,
        kernel: BatchKernel | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.robot, self.settings = robot, settings
        self.env = ShieldedEnv(
            robot, settings.batch, seed=seed, threads=threads, kernel=kernel,
            starts=settings.starts, shielded=settings.shielded,
        )  # fmt: skip
        self.policy = network_for(robot.system, self.env.observation_size, settings.hidden)
        sample = torch.from_numpy(observation_sample(robot, self.env.kernel, seed))
        self.policy.measure_normalisation(sample)
        self.policy.std.clamp_(min=SMALLEST_SPREAD)
        self._optimiser = torch.optim.Adam(self.policy.parameters())
        self.iteration, self._reward_scale = 0, 0.0
        task, policy = robot.task, self.policy
        functions = (lambda x, t: policy(task.observation(x, t)), robot.system.step, task.reward)
        self._propose, self._advance, self._reward = (
            compiled(function, settings.compiled) for function in functions
        )

    def iterate(self) -> dict[str, float]:
        """Fly one window, then one step of Adam."""
        settings = self.settings
        horizon = settings.horizon_at(self.iteration)
        rewards, gaps, flown = self._fly(horizon)
        share = 0.01 if self.iteration else 1.0
        scale = float(rewards.detach().abs().mean())
        self._reward_scale += share * (scale - self._reward_scale)
        distance = gaps.mean()
        loss = settings.distance_weight * distance - rewards.mean() / self._reward_scale
        self._optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), settings.gradient_limit)
        scalars = {
            "loss/policy": loss.item(),
            "loss/distance": distance.item(),
            "gradient": norm.item(),
            **flown_scalars(flown),
        }
        check_finite(scalars, self.iteration, _REMEDIES)
        for group in self._optimiser.param_groups:
            group["lr"] = settings.learning_rate_at(self.iteration)
        self._optimiser.step()
        self.iteration += 1
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        return {
            "policy": self.policy.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "env": self.env.state_dict(),
            "iteration": self.iteration,
            "reward_scale": self._reward_scale,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.policy.load_state_dict(stored["policy"])
        self._optimiser.load_state_dict(stored["optimiser"])
        self.env.load_state_dict(stored["env"])
        self.iteration, self._reward_scale = stored["iteration"], stored["reward_scale"]

    def _fly(self, horizon: int) -> tuple[Tensor, Tensor, list[Transition]]:
        """`horizon` periods from where the robots stand; values by the env, slopes by torch.

        -> rewards (H, B); squared distances from proposal to action (H, B); what was flown.
        """
        env, half = self.env, self.policy.half_range
        path = [_single(x) for x in env.path]
        rewards, gaps, transitions = [], [], []
        for _ in range(horizon):
            t = _single(env.t)
            u = self._propose(path[0], t)
            flown = env.step(u.detach().double().numpy())
            path, action = self._move(path, u, flown, horizon)
            rewards.append(self._reward(path[0], action, t + env.period)[..., 0])
            gaps.append((((u - _single(flown.action)) / half) ** 2).sum(-1))
            transitions.append(flown)
            ended = torch.from_numpy(flown.ended)[:, None]
            if ended.any():
                fresh = [_single(x) for x in env.path]
                path = [torch.where(ended, a, b) for a, b in zip(fresh, path, strict=True)]
        return torch.stack(rewards), torch.stack(gaps), transitions

    def _move(
        self, path: list[Tensor], u: Tensor, flown: Transition, horizon: int
    ) -> tuple[list[Tensor], Tensor]:
        """The env's own step, with the slopes of action and motion attached."""
        follow = (_single(flown.slope) @ (u - u.detach())[..., None])[..., 0]
        action = _single(flown.action) + follow
        moved = self._advance(path[-1], action)
        moved = _single(flown.next_predicted) + (moved - moved.detach())
        if moved.requires_grad:
            moved.register_hook(self._limit(horizon))
        return [*path[1:], moved], action

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


_REMEDIES = {
    "loss/policy": "lower learning_rate or the first horizon",
    "gradient": "lower state_gradient_limit",
}


def make(
    robot: Robot,
    settings: GradientSettings,
    seed: int,
    threads: int,
    device: str = "cpu",
    kernel: BatchKernel | None = None,
) -> GradientLearner:
    """A fresh learner. CPU only: its environment is the compiled kernel."""
    if device != "cpu":
        raise ModelError(
            f"gradient runs on the CPU, got device {device!r}; use --learner sac there"
        )
    return GradientLearner(robot, settings, seed, threads, kernel)


def _single(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array).float()
