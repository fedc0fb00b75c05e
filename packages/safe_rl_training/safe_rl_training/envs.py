"""Many robots behind the nominal shield at once: what every learner of phase II collects from.

    u_k = shield(x̂_k, proposal_k)      x̂_k = x_{k+d}, the state in which u_k takes effect
    x_{k+1} = F(x_k, u_{k-d})          r_k = reward(x_{k+1}, u_k, t_{k+1})

d = `delay_steps`; before the first own action the stop action is sent. The equations are those of
the robot's compiled program, so that the states x_k .. x_{k+d} are known when u_k is decided: they
are what is kept. An episode ends by its time limit only: that is no terminal state, its value goes
on. Every start has a verified backup plan, as the shield's theorem asks; a violation is a visited
state with a negative safe-set row, and by that theorem there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import PASSED, BatchKernel
from safe_rl_systems.build import batch_kernel
from safe_rl_systems.robot import Robot

from safe_rl_training.parts.facing_rows import facing_rows, rays
from safe_rl_training.parts.start_path import start_path, startable

Array = NDArray[np.float64]
Single = NDArray[np.float32]
Flags = NDArray[np.bool_]
Draw = Callable[[int], Array]

MOST_DRAWS = 100_000
#: Starts drawn at a time, at least: one call of the kernel costs as much as a few states.
CHUNK = 64


@dataclass(frozen=True)
class Transition:
    """One period of B robots, all as of before the reset of those whose episode ended.

    `observation`, `next_observation` (B, k) float32; `predicted`, `next_predicted` (B, n): x̂
    before and after; `proposed`, `action`, `backup` (B, m) SI; `slope` (B, m, m): d action /
    d proposal as the kernel gives it; `reward` (B,); `ended` (B,): time limit, not terminal;
    `verdict` (B,): PASSED, PROJECTED, BACKUP; `blend` (B,): share of the candidate in the action;
    `normals` (B, keep, m), `offsets` (B, keep): rows of the projection at `predicted`, float32,
    see `facing_rows`. `returns` (B,): sum of the episode's rewards so far, nan where it
    did not begin at a start of the task or is cut short.
    """

    observation: Single
    predicted: Array
    proposed: Array
    action: Array
    slope: Array
    backup: Array
    reward: Array
    next_observation: Single
    next_predicted: Array
    ended: Flags
    verdict: NDArray[np.int8]
    blend: Array
    normals: Single
    offsets: Single
    returns: Array


class ShieldedEnv:
    """`count` robots, each behind the shield; without it proposals are clipped to the box only.

    `keep`: how many of the projection's rows a transition carries. `starts`: "task": the task's
    own at t = 0; "mixed": half of them anywhere in the operating box, at any time of the lap.
    `duration` of an episode in s, by default the robot's. `staggered`: the first episodes end
    anywhere, so that the robots' resets, else in one period, are spread over time.
    """

    def __init__(
        self,
        robot: Robot,
        count: int,
        *,
        seed: int,
        threads: int = 1,
        kernel: BatchKernel | None = None,
        shielded: bool = True,
        keep: int = 0,
        starts: Literal["task", "mixed"] = "task",
        duration: float | None = None,
        staggered: bool = False,
    ) -> None:
        if starts not in ("task", "mixed"):
            raise ModelError(f'starts must be "task" or "mixed", got {starts!r}')
        if count < 1 or keep < 0:
            raise ModelError(f"count must be >= 1 and keep >= 0, got {count} and {keep}")
        self.robot, self.count, self.starts, self.shielded = robot, count, starts, shielded
        self.kernel = batch_kernel(robot, threads) if kernel is None else kernel
        self.keep = min(keep, self.kernel.num_rows) if shielded else 0
        self.period = robot.system.period
        self.episode_steps = round((duration or robot.duration) / self.period)
        self.low = np.array([c.low for c in robot.system.inputs])
        self.high = np.array([c.high for c in robot.system.inputs])
        self.scale = np.array(robot.input_scale)
        self.observation_size = len(robot.task.observation_names)
        self.action_size = len(self.low)
        self.steps = self.violations = self.starts_drawn = self.starts_rejected = 0
        self._stop = np.array(robot.stop_action)
        self._rays = rays(self.low, self.high, self.scale)
        self._rng = np.random.default_rng(seed)
        n = len(robot.system.states)
        self._path = np.zeros((robot.delay_steps + 1, count, n))
        self._begun, self._returns = np.zeros(count), np.zeros(count)
        self._age, self._end = np.zeros((2, count), dtype=np.int64)
        self._begin(np.ones(count, dtype=np.bool_))
        if staggered:
            self._end = self._rng.integers(1, self.episode_steps, count, endpoint=True)
            self._returns[:] = np.nan

    @property
    def x(self) -> Array:
        """True states (B, n)."""
        return self._path[0].copy()

    @property
    def path(self) -> Array:
        """The states (d+1, B, n) from the true one to that in which the coming action acts."""
        return self._path.copy()

    @property
    def predicted(self) -> Array:
        """The states (B, n) in which the coming action takes effect."""
        return self._path[-1].copy()

    @property
    def t(self) -> Array:
        """Task time (B, 1) in s."""
        return (self._begun + self._age * self.period)[:, None]

    @property
    def share_of_starts_rejected(self) -> float:
        """Of all starts drawn so far, the share without a verified backup plan."""
        return self.starts_rejected / self.starts_drawn

    def step(self, proposed: Array) -> Transition:
        """One period with proposals (B, m) in SI units; nan: no proposal."""
        proposed = np.asarray(proposed, dtype=np.float64)
        if proposed.shape != (self.count, self.action_size):
            expected = (self.count, self.action_size)
            raise ModelError(f"proposals must have shape {expected}, got {proposed.shape}")
        before, observation = self.predicted, self.observation
        decided = self._decide(before, proposed)
        after = self.kernel.evaluate("step", before, decided["action"])
        self._path = np.concatenate((self._path[1:], after[None]))
        self._age += 1
        self.steps += self.count
        rows = self.kernel.evaluate("safe_set", self._path[0])
        self.violations += int((~(rows >= 0.0).all(-1)).sum())
        reward = self.kernel.evaluate("reward", self._path[0], decided["action"], self.t)[:, 0]
        self._returns += reward
        self._observe()
        ended = self._age >= self._end
        transition = Transition(
            observation=observation,
            predicted=before,
            proposed=proposed,
            reward=reward,
            next_observation=self.observation,
            next_predicted=after,
            ended=ended,
            returns=self._returns.copy(),
            **decided,
        )
        if ended.any():
            self._begin(ended)
        return transition

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in self._ARRAYS}
        counters = {name: getattr(self, name) for name in self._COUNTERS}
        return {**arrays, **counters, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, in an env made with the same arguments."""
        for name in self._ARRAYS:
            array, mine = stored[name].numpy(), getattr(self, name)
            if array.shape != mine.shape:
                raise ModelError(
                    f"stored {name} has shape {array.shape}, this env needs {mine.shape}; resume "
                    "with the robot and the number of robots of the first run"
                )
            setattr(self, name, array.copy())
        for name in self._COUNTERS:
            setattr(self, name, stored[name])
        self._rng.bit_generator.state = stored["rng"]
        self._observe()

    _ARRAYS = ("_path", "_begun", "_age", "_end", "_returns")
    _COUNTERS = ("steps", "violations", "starts_drawn", "starts_rejected")

    def _decide(self, x: Array, proposed: Array) -> dict[str, Any]:
        none = np.zeros((self.count, 0, self.action_size), dtype=np.float32)
        kept = {"normals": none, "offsets": np.zeros((self.count, 0), dtype=np.float32)}
        if self.shielded:
            decisions = self.kernel.decide(x, proposed, with_rows=self.keep > 0)
            names = ("action", "slope", "verdict", "blend", "backup")
            if self.keep:
                inside = decisions.backup / self.scale
                kept["normals"], kept["offsets"] = facing_rows(
                    decisions.normals, decisions.offsets, inside, self._rays, self.keep
                )
            return {name: getattr(decisions, name) for name in names} | kept
        usable = np.isfinite(proposed).all(-1, keepdims=True)
        action = np.where(usable, np.clip(proposed, self.low, self.high), self._stop)
        return {
            "action": action,
            "slope": np.eye(self.action_size) * (action == proposed)[:, None, :],
            "verdict": np.full(self.count, PASSED, dtype=np.int8),
            "blend": np.ones(self.count),
            "backup": np.tile(self._stop, (self.count, 1)),
            **kept,
        }

    def _observe(self) -> None:
        found = self.kernel.evaluate("observation", self._path[0], self.t)
        self.observation: Single = found.astype(np.float32)

    def _begin(self, which: Flags) -> None:
        """New episodes for the robots `which` (B,)."""
        index = np.flatnonzero(which)
        anywhere = np.zeros(len(index), dtype=np.bool_)
        if self.starts == "mixed":
            anywhere = self._rng.random(len(index)) < 0.5
        paths = self._drawn(self._task_states, len(index))
        begun = np.zeros(len(index))
        if anywhere.any():
            paths[:, anywhere] = self._drawn(self._operating_states, int(anywhere.sum()))
            begun[anywhere] = self._rng.uniform(0.0, self.robot.task.lap, int(anywhere.sum()))
        self._path[:, index], self._begun[index], self._age[index] = paths, begun, 0
        self._end[index] = self.episode_steps
        self._returns[index] = np.where(anywhere, np.nan, 0.0)
        self._observe()

    def _drawn(self, draw: Draw, count: int) -> Array:
        """`count` accepted starts, as paths (d+1, B, n) to where the first own action acts."""
        accepted: list[Array] = []
        found = drawn = 0
        while found < count:
            if drawn >= MOST_DRAWS * (found + 1):
                raise ModelError(
                    f"{self.robot.name}: of {drawn} drawn starts {found} have a verified backup "
                    "plan; lengthen the horizon, improve the backup policy or move the starts"
                )
            paths = start_path(
                self.kernel, draw(max(count - found, CHUNK)), self._stop, self.robot.delay_steps
            )
            good = startable(self.kernel, paths)
            accepted.append(paths[:, good])
            found, drawn = found + int(good.sum()), drawn + len(good)
            self.starts_drawn += len(good)
            self.starts_rejected += int((~good).sum())
        return np.concatenate(accepted, axis=1)[:, :count]

    def _task_states(self, count: int) -> Array:
        return self._evaluated("initial_state", self.robot.task.start_dimension, count)

    def _operating_states(self, count: int) -> Array:
        return self._evaluated("operating_state", self.robot.task.operating_dimension, count)

    def _evaluated(self, name: str, size: int, count: int) -> Array:
        return self.kernel.evaluate(name, self._rng.uniform(-1.0, 1.0, (count, size)))


def observation_sample(
    robot: Robot, kernel: BatchKernel, seed: int, count: int = 128, periods: int = 32
) -> Single:
    """Observations (count · periods, k) of shielded robots that try something else now and then.

    What a policy's normalisation is measured on: states near the task and far from it.
    """
    env = ShieldedEnv(robot, count, seed=seed, kernel=kernel, starts="mixed")
    rng = np.random.default_rng([seed, 1])
    proposed, seen = np.zeros((count, env.action_size)), []
    for k in range(periods):
        if k % 8 == 0:
            proposed = rng.uniform(env.low, env.high, proposed.shape)
        seen.append(env.step(proposed).observation)
    return np.concatenate(seen)
