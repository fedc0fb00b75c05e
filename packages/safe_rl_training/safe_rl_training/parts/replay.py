"""Replay of what `count` robots did in the last `length` periods, with the projection's rows.

A row of the memory is one period of all robots, so that the successor of an entry is the entry of
the next period: next observation and next rows are not stored again. Hence the latest period
cannot be drawn yet, and neither, unless `with_ended`, can the last one of an episode: what follows
it in the memory is the start of another. The rows depend on the state alone: kept, they need no
backup rollout in any update.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_training.envs import Transition

#: An episode has at least a few periods: so many draws miss its last one.
MOST_DRAWS = 1000


@dataclass(frozen=True)
class Scene:
    """Where actions are chosen: observations (S, k), normals (S, keep, m), offsets, backup."""

    observation: Tensor
    normals: Tensor
    offsets: Tensor
    backup: Tensor


@dataclass(frozen=True)
class Batch:
    """S transitions: `scene` has 2 S elements, first where they begin, then where they lead."""

    scene: Scene
    action: Tensor
    reward: Tensor
    ended: Tensor


class Replay:
    """A ring of periods, float32 on the CPU; batches come on `device`."""

    def __init__(
        self,
        length: int,
        count: int,
        sizes: tuple[int, int, int],
        *,
        with_ended: bool,
        device: str = "cpu",
    ) -> None:
        """`sizes`: (k, m, keep) of an observation, an action, and the rows kept per state."""
        if length < 2:
            raise ModelError(f"the replay must hold at least 2 periods, got {length}")
        k, m, keep = sizes
        self.length, self.count, self.with_ended, self.device = length, count, with_ended, device
        self.scene = Scene(
            torch.zeros(length, count, k),
            torch.zeros(length, count, keep, m),
            torch.zeros(length, count, keep),
            torch.zeros(length, count, m),
        )
        self.action = torch.zeros(length, count, m)
        self.reward = torch.zeros(length, count)
        self.ended = torch.zeros(length, count, dtype=torch.bool)
        self.filled = self.head = 0

    def add(self, transition: Transition) -> None:
        """The newest period replaces the oldest once the ring is full."""
        for name, tensor in self._tensors().items():
            tensor[self.head] = torch.from_numpy(getattr(transition, name))
        self.head = (self.head + 1) % self.length
        self.filled = min(self.filled + 1, self.length)

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """`size` transitions, uniform over those that can be drawn."""
        if self.filled < 2:
            raise ModelError("the replay is empty: collect at least 2 periods before an update")
        period, robot = self._drawn(size, generator)
        for _ in range(MOST_DRAWS):
            ended = self.ended[period, robot]
            if self.with_ended or not bool(ended.any()):
                break
            period[ended], robot[ended] = self._drawn(int(ended.sum()), generator)
        else:
            raise ModelError("every kept period ends an episode; lengthen the episodes")
        both = torch.cat((period, (period + 1) % self.length)), torch.cat((robot, robot))
        scene = (getattr(self.scene, f.name)[both].to(self.device) for f in fields(Scene))
        mine = (t[period, robot].to(self.device) for t in (self.action, self.reward, self.ended))
        return Batch(Scene(*scene), *mine)

    def state_dict(self) -> dict[str, Any]:
        """The filled part."""
        tensors = {name: t[: self.filled].clone() for name, t in self._tensors().items()}
        return {**tensors, "filled": self.filled, "head": self.head}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Into a replay of the same sizes."""
        for name, tensor in self._tensors().items():
            if stored[name].shape[1:] != tensor.shape[1:] or len(stored[name]) > self.length:
                raise ModelError(
                    f"the stored replay's {name} {tuple(stored[name].shape)} does not fit into "
                    f"{tuple(tensor.shape)}; resume with the settings of the first run"
                )
            tensor[: stored["filled"]] = stored[name]
        self.filled, self.head = stored["filled"], stored["head"]

    def _tensors(self) -> dict[str, Tensor]:
        own = {"action": self.action, "reward": self.reward, "ended": self.ended}
        return {**{f.name: getattr(self.scene, f.name) for f in fields(Scene)}, **own}

    def _drawn(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Periods and robots, the latest period left out."""
        oldest = self.head if self.filled == self.length else 0
        age = torch.randint(self.filled - 1, (size,), generator=generator)
        return (oldest + age) % self.length, torch.randint(
            self.count, (size,), generator=generator
        )
