"""Soft actor-critic through the projection layer: the published phase II, repaired.

With z ~ N(mean(o), std(o)), a~ = tanh z in the unit box, u = centre + half_range a~ the proposal
and P(o, u) its projection onto the shield's rows at the state of o:

    critic    minimise (Q_i(o, u*) - y)²,   u* the executed action, i = 1, 2
              y = r/s + gamma [min_i Q'_i(o', P(o', u')) - alpha log p(a~'|o')],  u' fresh at o'
    actor     minimise alpha log p(a~|o) - min_i Q_i(o, P(o, u)) + w |P(o, u) - u|² / |half_range|²
    alpha     so that the entropy of a~ is `entropy_per_input` · m
    Q' follows Q by the share `averaging` per update; s: running std of the discounted return.

The gradient of the actor goes through P. The last term, in the metric of the projection, is what
still acts along directions that the rows block: without it proposals drift there. P is the
projection alone, onto the `keep` rows that `facing_rows` chose when the state was visited;
the shield, which executes, has all rows, and verifies and blends too.

Source: PS2-RL (arXiv 2606.14536) and its released settings. What they do that `SacSettings()` does
not: observations, actions and rewards in physical units; entropy in physical units; value 0 after
the time limit; no loss on the distance; rows rebuilt in every update; both a random and the
policy's action projected in every period; all episodes from the task's start.

`SacSettings.published(robot)` is the published recipe without these repairs. It differs from the
original where the layer and the shield do: discrete rows, no slack variable, exact projection in
place of an interior point's, an action verified and blended before it is executed. Further: rows
kept, and not all of them; random and policy action not both projected, which has no effect on what
is learned; torch's initialisation in place of He's; no clipping of log p at ±20 and of y at ±5e6;
the task's own observation; episodes that begin with a verified backup plan only; and a warm start
that is the actor alone, as the tracker is trained without critics: with `critic_first` the critics
learn first, for so many updates.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.build import batch_kernel
from safe_rl_systems.robot import Robot
from torch import Tensor, nn

from safe_rl_training.envs import ShieldedEnv, Transition, observation_sample
from safe_rl_training.parts.learner import OneEnv, ReturnScale, check_finite, flown_scalars
from safe_rl_training.parts.networks import network_for
from safe_rl_training.parts.replay import Batch, Replay
from safe_rl_training.parts.stochastic import Actor, TwinCritic
from safe_rl_training.projection_layer import ProjectionLayer

REMEDIES = {
    "loss/critic": "lower critic_rate",
    "loss/actor": "lower critic_rate or actor_rate",
    "loss/alpha": "lower alpha_rate",
    "gradient/critic": "lower critic_rate or gradient_limit",
    "gradient/actor": "lower actor_rate or distance_weight",
}


@dataclass(frozen=True)
class SacSettings:
    """What a run does; nothing here depends on the robot.

    An iteration is `periods` periods of `robots` robots, each followed by `updates` updates on
    `batch` transitions, once `update_after` env steps are there. The first `random_steps` env
    steps propose at random. `replay`: transitions kept, each with `keep` rows. `normalised`:
    observations, actions, rewards and entropy without units. `terminal_limit`: no value beyond the
    time limit.
    """

    iterations: int = 300
    robots: int = 32
    periods: int = 32
    updates: int = 2
    batch: int = 256
    replay: int = 300_000
    keep: int = 16
    random_steps: int = 4096
    update_after: int = 4096
    critic_first: int = 0
    discount: float = 0.99
    averaging: float = 0.02
    actor_rate: float = 1e-3
    critic_rate: float = 1e-3
    alpha_rate: float = 3e-3
    hidden: int = 128
    activation: str = "tanh"
    first_alpha: float = 0.01
    least_alpha: float = 0.0
    entropy_per_input: float = -1.0
    distance_weight: float = 0.01
    gradient_limit: float = 5.0
    normalised: bool = True
    terminal_limit: bool = False
    starts: Literal["task", "mixed"] = "mixed"

    @classmethod
    def published(cls, robot: Robot) -> SacSettings:
        """The published recipe, unrepaired, for one of the two published robots."""
        common = cls(
            updates=4,
            batch=64,
            random_steps=4000,
            update_after=2000,
            averaging=0.005,
            activation="relu",
            first_alpha=0.2,
            least_alpha=0.01,
            distance_weight=0.0,
            normalised=False,
            terminal_limit=True,
            starts="task",
        )
        rates = {"actor_rate": 1e-4, "critic_rate": 3e-4, "alpha_rate": 1e-4}
        halved = {"actor_rate": 5e-5, "critic_rate": 1e-4, "alpha_rate": 5e-5}
        if robot.robot == "unicycle":
            return replace(common, iterations=977, **rates)
        if robot.robot == "quadrotor":
            warm = {"random_steps": 0, "update_after": 1024}
            return replace(common, iterations=1465, hidden=256, **halved, **warm)
        raise ModelError(
            f'the published recipe knows "unicycle" and "quadrotor", not "{robot.robot}"; use '
            "SacSettings()"
        )


class Sac(OneEnv):
    """A run of the module docstring's algorithm; see `parts/learner.py`."""

    def __init__(
        self, robot: Robot, settings: SacSettings, seed: int, kernel: BatchKernel, device: str
    ) -> None:
        self.robot, self.settings, self.device = robot, settings, torch.device(device)
        self.iteration = self.updates = 0
        self.env = ShieldedEnv(
            robot,
            settings.robots,
            seed=seed,
            kernel=kernel,
            keep=settings.keep,
            starts=settings.starts,
            staggered=settings.starts != "task",
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._make_networks(seed)
        if settings.normalised:
            seen = observation_sample(robot, kernel, seed)
            self.policy.measure_normalisation(torch.from_numpy(seen).to(self.device))
        self._layer = ProjectionLayer(self.env.scale, self.env.low, self.env.high)
        self._layer = self._layer.float().to(self.device)
        self._replay = Replay(
            max(2, settings.replay // settings.robots),
            settings.robots,
            (self.env.observation_size, self.env.action_size, self.env.keep),
            with_ended=settings.terminal_limit,
            device=device,
        )
        self._scale, self._unit = ReturnScale(settings.robots, settings.discount), 1.0

    def _make_networks(self, seed: int) -> None:
        settings, k, m = self.settings, self.env.observation_size, self.env.action_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = network_for(self.robot.system, k, settings.hidden, settings.activation)
            self._actor = Actor(self.policy, settings.hidden).to(self.device)
            self._critic = TwinCritic(k + m, settings.hidden).to(self.device)
        self._target = TwinCritic(k + m, settings.hidden).to(self.device)
        self._target.load_state_dict(self._critic.state_dict())
        self._log_alpha = torch.tensor(math.log(settings.first_alpha), device=self.device)
        self._log_alpha.requires_grad_()
        self._optimisers = {
            name: torch.optim.Adam(parameters, rate, fused=True)
            for name, parameters, rate in (
                ("actor", [*self._actor.parameters()], settings.actor_rate),
                ("critic", [*self._critic.parameters()], settings.critic_rate),
                ("alpha", [self._log_alpha], settings.alpha_rate),
            )
        }
        half = self.policy.half_range
        #: log p of the action in the settings' coordinates is that of a~ minus this.
        self._log_volume = 0.0 if settings.normalised else float(half.log().sum())
        scale = torch.tensor(self.robot.input_scale, device=self.device)
        self._distance_unit = float(((half / scale) ** 2).mean())

    def iterate(self) -> dict[str, float]:
        """`periods` periods and their updates."""
        flown, learned = [], []
        if self.settings.normalised:
            self._rescale(self._scale.value)
        for _ in range(self.settings.periods):
            flown.append(self._collect())
            if self.env.steps >= self.settings.update_after:
                learned += [self._update() for _ in range(self.settings.updates)]
        self.iteration += 1
        scalars = flown_scalars(flown)
        scalars["reward_scale"] = self._unit
        if learned:
            means = {k: torch.stack([d[k] for d in learned if k in d]) for k in learned[-1]}
            scalars |= {name: float(values.mean()) for name, values in means.items()}
            check_finite(scalars, self.iteration, REMEDIES)
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        return {
            "settings": self._identity(),
            "iteration": self.iteration,
            "updates": self.updates,
            "actor": self._actor.state_dict(),
            "critic": self._critic.state_dict(),
            "target": self._target.state_dict(),
            "log_alpha": self._log_alpha.detach().clone(),
            "optimisers": {name: o.state_dict() for name, o in self._optimisers.items()},
            "generator": self._generator.get_state(),
            "scale": self._scale.state_dict(),
            "unit": self._unit,
            "env": self.env.state_dict(),
            "replay": self._replay.state_dict(),
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, in a learner made with the same arguments."""
        if stored["settings"] != self._identity():
            raise ModelError(
                f"the checkpoint was made with {stored['settings']}, this run has "
                f"{self._identity()}; resume with the same robot and settings, or start anew"
            )
        self.iteration, self.updates = stored["iteration"], stored["updates"]
        self._actor.load_state_dict(stored["actor"])
        self._critic.load_state_dict(stored["critic"])
        self._target.load_state_dict(stored["target"])
        with torch.no_grad():
            self._log_alpha.copy_(stored["log_alpha"])
        for name, optimiser in self._optimisers.items():
            optimiser.load_state_dict(stored["optimisers"][name])
        self._generator.set_state(stored["generator"])
        self._scale.load_state_dict(stored["scale"])
        self._unit = stored["unit"]
        self.env.load_state_dict(stored["env"])
        self._replay.load_state_dict(stored["replay"])

    def _identity(self) -> dict[str, Any]:
        """What must be equal to resume; a run may be made longer."""
        settings = asdict(self.settings)
        del settings["iterations"]
        return {"robot": self.robot.name, **settings}

    @torch.no_grad()
    def _rescale(self, unit: float) -> None:
        """Another unit of rewards: values and alpha mean what they meant before."""
        ratio, self._unit = self._unit / unit, unit
        for critic in (self._critic, self._target):
            critic.weights[-1].mul_(ratio)
            critic.biases[-1].mul_(ratio)
        if self.updates > 0:
            self._log_alpha.add_(math.log(ratio))

    def _noise(self, count: int) -> Tensor:
        # Drawn on the CPU: the same numbers on every device, and one state to keep
        size = (count, self.env.action_size)
        return torch.randn(size, generator=self._generator).to(self.device)

    @torch.no_grad()
    def _collect(self) -> Transition:
        """One period of all robots."""
        if self.env.steps < self.settings.random_steps:
            size = (self.env.count, self.env.action_size)
            unit = (2.0 * torch.rand(size, generator=self._generator) - 1.0).to(self.device)
        else:
            observation = torch.from_numpy(self.env.observation).to(self.device)
            unit, _ = self._actor(observation, self._noise(self.env.count))
        transition = self.env.step(self._proposal(unit).double().cpu().numpy())
        self._replay.add(transition)
        self._scale.update(transition.reward, transition.ended)
        return transition

    def _proposal(self, unit: Tensor) -> Tensor:
        return self.policy.centre + self.policy.half_range * unit

    def _value(self, critic: TwinCritic, observation: Tensor, action: Tensor) -> Tensor:
        """Both critics at actions in SI units. -> (2, B)."""
        if self.settings.normalised:
            action = (action - self.policy.centre) / self.policy.half_range
        return critic(self.policy.normalise(observation), action)

    def _update(self) -> dict[str, Tensor]:
        """One step of critics, actor, alpha and target; what to log."""
        size, settings = self.settings.batch, self.settings
        batch = self._replay.sample(size, self._generator)
        scene, alpha = batch.scene, self._log_alpha.detach().exp()
        # One pass for both ends of the transitions: the projection costs per call, not per element
        unit, log_p = self._actor(scene.observation, self._noise(2 * size))
        log_p = log_p - self._log_volume
        proposed = self._proposal(unit)
        safe = self._layer(proposed, scene.normals, scene.offsets, scene.backup)
        told = self._update_critic(
            batch, safe.action[size:].detach(), alpha * log_p[size:].detach()
        )
        self.updates += 1
        if self.updates <= settings.critic_first:
            return told
        here = scene.observation[:size]
        value = self._value(self._critic, here, safe.action[:size]).min(0).values.mean()
        distance = safe.squared_distance[:size].mean() / self._distance_unit
        loss = alpha * log_p[:size].mean() - value + settings.distance_weight * distance
        gradient = self._step("actor", loss)
        lacking = log_p[:size].detach().mean() + settings.entropy_per_input * unit.shape[1]
        alpha_loss = -self._log_alpha * lacking
        self._step("alpha", alpha_loss)
        if settings.least_alpha > 0.0:
            with torch.no_grad():
                self._log_alpha.clamp_(min=math.log(settings.least_alpha))
        return told | {
            "loss/actor": loss.detach(),
            "loss/alpha": alpha_loss.detach(),
            "gradient/actor": gradient,
            "alpha": alpha,
            "entropy": -log_p[:size].detach().mean(),
            "value": value.detach(),
            "distance": distance.detach(),
            "projected": safe.projected[:size].float().mean(),
            "infeasible": 1.0 - safe.feasible.float().mean(),
        }

    def _update_critic(
        self, batch: Batch, next_action: Tensor, surprise: Tensor
    ) -> dict[str, Tensor]:
        """`surprise`: alpha log p of the next proposals."""
        settings, size = self.settings, len(batch.reward)
        observation = batch.scene.observation
        with torch.no_grad():
            following = self._value(self._target, observation[size:], next_action).min(0).values
            goes_on = 1.0 - batch.ended.float() if settings.terminal_limit else 1.0
            goal = batch.reward / self._unit + settings.discount * goes_on * (following - surprise)
        error = self._value(self._critic, observation[:size], batch.action) - goal
        loss = (error**2).mean(1).sum()
        gradient = self._step("critic", loss)
        with torch.no_grad():
            torch._foreach_lerp_(
                [*self._target.parameters()], [*self._critic.parameters()], settings.averaging
            )
        return {"loss/critic": loss.detach(), "gradient/critic": gradient}

    def _step(self, name: str, loss: Tensor) -> Tensor:
        """One step of that optimiser's parameters alone; the norm of their gradient."""
        optimiser = self._optimisers[name]
        parameters = optimiser.param_groups[0]["params"]
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.gradient_limit)
        optimiser.step()
        return norm


def make(
    robot: Robot,
    settings: SacSettings,
    seed: int,
    threads: int = 1,
    device: str = "cpu",
    kernel: BatchKernel | None = None,
) -> Sac:
    """A learner at its start; its env runs on `threads` threads of the CPU."""
    kernel = batch_kernel(robot, threads) if kernel is None else kernel
    return Sac(robot, settings, seed, kernel, device)
