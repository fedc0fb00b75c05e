"""Many shielded robots for Stable-Baselines3, and the way of its policies into a bundle.

Actions, observations and `info` are those of `gym_env.py` (of `info`: `action` and `verdict`); all
robots are flown by one call of the kernel. An episode's end is a time limit, hence
`info["TimeLimit.truncated"]` is set and Stable-Baselines3 bootstraps the value there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from safe_rl_core.record import VERDICTS
from safe_rl_systems.robot import Robot
from torch import nn

from safe_rl_training.envs import ShieldedEnv
from safe_rl_training.gym_env import proposals, robot_of, spaces
from safe_rl_training.parts.networks import ACTIVATIONS, PolicyNetwork, network_for

try:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as missing:
    raise ModelError(
        "safe_rl_training.sb3 needs Stable-Baselines3, which is not installed: "
        '"pip install stable-baselines3"'
    ) from missing

Indices = None | int | Iterable[int]


class ShieldedVecEnv(VecEnv):
    """`count` robots behind the shield. `violations` counts over all episodes of all robots."""

    def __init__(
        self,
        robot: Robot | str,
        count: int,
        *,
        seed: int = 0,
        threads: int = 1,
        starts: Literal["task", "mixed"] = "task",
        duration: float | None = None,
    ) -> None:
        """All arguments as for `ShieldedEnv`."""
        self._arguments: dict[str, Any] = {"starts": starts, "duration": duration}
        self._robot, self.render_mode = robot_of(robot), None
        self._env = ShieldedEnv(self._robot, count, seed=seed, threads=threads, **self._arguments)
        self._earlier, self._fresh = 0, np.random.default_rng(seed)
        super().__init__(count, *spaces(self._env))

    @property
    def violations(self) -> int:
        """Visited states outside the safe set so far."""
        return self._earlier + self._env.violations

    def reset(self) -> NDArray[np.float32]:
        """New episodes of all robots; the same ones after the same `seed(...)`."""
        if self._seeds[0] is not None:
            self._fresh = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._earlier = self.violations
        start, kernel = int(self._fresh.integers(2**63)), self._env.kernel
        self._env = ShieldedEnv(
            self._robot, self.num_envs, seed=start, kernel=kernel, **self._arguments
        )
        return self._env.observation.copy()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions (B, m) of the unit box."""
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Observations after the resets, rewards, ends, infos."""
        done = self._env.step(proposals(self._env, self._actions))
        infos: list[dict[str, Any]] = [
            {"action": action, "verdict": VERDICTS[int(verdict)], "TimeLimit.truncated": bool(end)}
            for action, verdict, end in zip(done.action, done.verdict, done.ended, strict=True)
        ]
        for k in np.flatnonzero(done.ended):
            infos[k]["terminal_observation"] = done.next_observation[k]
        return self._env.observation.copy(), done.reward.astype(np.float32), done.ended, infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The attribute of the whole, once per robot asked for."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Refused: the robots have no attributes of their own."""
        raise ModelError(f"ShieldedVecEnv cannot set {attr_name!r}; pass it when you make the env")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refused: the robots are no environments of their own."""
        raise ModelError(f"ShieldedVecEnv has no method {method_name!r} per robot")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """No robot is wrapped by itself."""
        return [False for _ in self._get_indices(indices)]


def policy_network(model: BaseAlgorithm, robot: Robot) -> PolicyNetwork:
    """The deterministic policy of a trained SAC, TD3 or DDPG with two equal hidden layers.

    The normalisation of a `VecNormalize` around the env goes along; what that would clip (10
    standard deviations) is not clipped.
    """
    layers = _layers(model)
    linear, between = layers[::2], layers[1::2]
    hidden = linear[0].out_features
    kind = type(between[0])
    name = next((k for k, known in ACTIVATIONS.items() if kind is known), kind.__name__)
    network = network_for(robot.system, linear[0].in_features, hidden, name)
    with torch.no_grad():
        for mine, theirs in zip(network.body[::2], linear, strict=True):
            mine.weight.copy_(theirs.weight)
            mine.bias.copy_(theirs.bias)
    normalise = model.get_vec_normalize_env()
    if normalise is not None and normalise.norm_obs:
        seen: Any = normalise.obs_rms
        network.mean.copy_(torch.from_numpy(seen.mean))
        network.std.copy_(torch.from_numpy(np.sqrt(seen.var + normalise.epsilon)))
    return network


def _layers(model: BaseAlgorithm) -> list[Any]:
    """Linear, activation, linear, activation, linear of the squashed actor."""
    actor = getattr(model.policy, "actor", None)
    if actor is None:
        raise ModelError(
            f"{type(model).__name__} clips its mean action where a bundle's policy squashes it by "
            "tanh; train with SAC, TD3 or DDPG"
        )
    mean = actor.mu
    layers = [*actor.latent_pi, mean] if isinstance(mean, nn.Linear) else [*mean][:-1]
    kinds = [isinstance(layer, nn.Linear) for layer in layers]
    widths = {layer.out_features for layer in layers[:-1] if isinstance(layer, nn.Linear)}
    if kinds != [True, False, True, False, True] or len(widths) != 1:
        raise ModelError(
            "a bundle's policy has two hidden layers of the same width, this actor is "
            f"{actor}; train with policy_kwargs={{'net_arch': [64, 64]}}"
        )
    return layers
