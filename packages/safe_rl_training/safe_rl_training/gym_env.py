"""A robot behind the nominal shield as a Gymnasium environment, for trainers from elsewhere.

    proposal = centre + half_range · clip(action, -1, 1)        action in the unit box [-1, 1]^m
    observation, reward: those of the robot's task, SI units, float32

What is sent to the robot is the shield's answer (`envs.py`), so every algorithm explores safely
under the assumptions stated there. An episode is truncated at the time limit and never terminated.

    gymnasium.make("safe_rl_training.gym_env:safe_rl/unicycle_lane_paper-v0")

`info` of a step: `action` (m,) SI units as sent; `verdict` "PASSED", "PROJECTED" or "BACKUP";
`margin`: the smallest h - margin on the backup policy's plan from the state in which the next
action takes effect, >= 0 as long as there is a way out; `violation`: did the true state leave the
safe set. Stable-Baselines3 trains faster on many robots at once: `sb3.py`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from safe_rl_core.record import VERDICTS
from safe_rl_systems.robot import ROBOTS, Robot

from safe_rl_training.envs import ShieldedEnv
from safe_rl_training.robot_source import load_robot

try:
    import gymnasium
except ImportError as missing:
    raise ModelError(
        'safe_rl_training.gym_env needs gymnasium, which is not installed: "pip install gymnasium"'
    ) from missing


def robot_of(robot: Robot | str) -> Robot:
    """The robot itself, or what the text names: one in ROBOTS, or a file of your own."""
    return robot if isinstance(robot, Robot) else load_robot(robot)


def proposals(env: ShieldedEnv, action: NDArray[Any]) -> NDArray[np.float64]:
    """Actions (B, m) of the unit box -> proposals (B, m) in SI units; nan stays nan."""
    unit = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
    return 0.5 * (env.low + env.high) + 0.5 * (env.high - env.low) * unit


def spaces(env: ShieldedEnv) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Observation and action space of one robot."""
    return (
        gymnasium.spaces.Box(-np.inf, np.inf, (env.observation_size,), np.float32),
        gymnasium.spaces.Box(-1.0, 1.0, (env.action_size,), np.float32),
    )


class ShieldedGymEnv(gymnasium.Env):
    """One robot; see the module's docstring. `violations` counts over all episodes."""

    metadata = {"render_modes": []}

    def __init__(
        self,
        robot: Robot | str,
        *,
        starts: Literal["task", "mixed"] = "task",
        duration: float | None = None,
        render_mode: None = None,
    ) -> None:
        """`starts`, `duration` in s: as for `ShieldedEnv`. There is nothing to render."""
        self._arguments: dict[str, Any] = {"starts": starts, "duration": duration}
        self._robot, self.render_mode = robot_of(robot), render_mode
        self._env = ShieldedEnv(self._robot, 1, seed=0, **self._arguments)
        self._earlier = 0
        self.observation_space, self.action_space = spaces(self._env)

    @property
    def violations(self) -> int:
        """Visited states outside the safe set so far."""
        return self._earlier + self._env.violations

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new episode; with a seed the same one every time."""
        super().reset(seed=seed)
        self._earlier = self.violations
        start, kernel = int(self.np_random.integers(2**63)), self._env.kernel
        self._env = ShieldedEnv(self._robot, 1, seed=start, kernel=kernel, **self._arguments)
        return self._env.observation[0], {}

    def step(
        self, action: NDArray[Any]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One period with an action (m,) of the unit box."""
        before = self._env.violations
        done = self._env.step(proposals(self._env, action)[None])
        info = {
            "action": done.action[0],
            "verdict": VERDICTS[int(done.verdict[0])],
            "margin": float(self._env.kernel.way_out(done.next_predicted)[0]),
            "violation": self._env.violations > before,
        }
        reward, truncated = float(done.reward[0]), bool(done.ended[0])
        return done.next_observation[0], reward, False, truncated, info


for _name in ROBOTS:
    gymnasium.register(
        id=f"safe_rl/{_name}-v0",
        entry_point="safe_rl_training.gym_env:ShieldedGymEnv",
        kwargs={"robot": _name},
    )
