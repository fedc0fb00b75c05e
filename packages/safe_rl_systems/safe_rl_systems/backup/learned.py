"""A learned backup policy: a small smooth network that corrects the analytic recovery law.

    z = W3 tanh( W2 tanh( W1 y + b1 ) + b2 ) + b3
    u = clip( r(x) + authority · (high - low)/2 ∘ tanh z )

r is the robot's analytic recovery and y = features(x) the state without what the safe set does
not depend on. With W3 = b3 = 0 the policy is the analytic one, so that training starts no worse.
The correction is smooth; what is not is the clip into [low, high], which the analytic law has as
well. A normalisation of y is folded into W1 and b1.

As in PS2-RL it is the recovery half of a hard switch: the base controller acts wherever the base
set holds. A robot with reserved authority keeps its smaller box.

Layers are a dozen small arrays in an npz file, bound to the robot that they were trained for by
its name and by the hash of its program, whose backup policy they replace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.backup.switched import SwitchedBackup
from safe_rl_systems.robust import ReservedAuthority
from safe_rl_systems.trace import trace_program

if TYPE_CHECKING:
    from safe_rl_systems.robot import Robot

Array = NDArray[np.float64]
#: (weight (o, i), bias (o,)) of each dense layer, first to last.
Layers = tuple[tuple[Tensor, Tensor], ...]
Policy = Callable[[Tensor], Tensor]

#: Largest correction, as a share of the box's half-range: from one side to the other and no more.
AUTHORITY = 2.0
_FORMAT = "safe_rl learned backup 1"


class Featured(Protocol):
    """A system that says what a network should see of its state."""

    def features(self, x: Tensor, bounded: frozenset[int]) -> Tensor:
        """(..., n) -> (..., f), continuous; `bounded`: the states that the safe set limits."""
        ...


def clip(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """u moved into [low, high]: (..., m) -> (..., m)."""
    return torch.minimum(torch.maximum(u, low), high)


@dataclass(frozen=True)
class LearnedRecovery:
    """The network above as a policy. `low`, `high` (m,): the box that it may use.

    `limit` is how the sum is kept inside it; a trainer may pass one with another derivative.
    """

    system: Featured
    bounded: frozenset[int]
    layers: Layers
    reference: Policy
    low: tuple[float, ...]
    high: tuple[float, ...]
    limit: Callable[[Tensor, Tensor, Tensor], Tensor] = clip

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        low, high = x.new_tensor(self.low), x.new_tensor(self.high)
        y = self.system.features(x, self.bounded)
        for weight, bias in self.layers:
            y = torch.tanh(torch.nn.functional.linear(y, weight.to(x.dtype), bias.to(x.dtype)))
        correction = 0.5 * AUTHORITY * (high - low) * y
        return self.limit(self.reference(x) + correction, low, high)


@dataclass(frozen=True)
class BaseOrRecovery:
    """pi_b(x) = base(x) where every row of the base set is >= 0, else recovery(x)."""

    base_set: Policy
    base: Policy
    recovery: LearnedRecovery

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        first, *others = self.base_set(x).unbind(-1)
        for row in others:
            first = torch.minimum(first, row)
        inside = (first >= 0.0).unsqueeze(-1)
        return torch.where(inside, self.base(x), self.recovery(x))


def analytic_recovery(robot: Robot) -> Policy:
    """The recovery law that a robot's backup policy falls back on outside its base set."""
    policy = robot.backup_policy
    if isinstance(policy, ReservedAuthority):
        policy = policy.policy
    if isinstance(policy, BaseOrRecovery):
        return policy.recovery.reference
    return policy.recovery if isinstance(policy, SwitchedBackup) else policy


def bounded_states(robot: Robot) -> frozenset[int]:
    """The states that move a row of the safe set somewhere in the operating box."""
    w = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64).unsqueeze(-1)
    x = robot.task.operating_state(w.expand(-1, robot.task.operating_dimension)).requires_grad_()
    rows = robot.safe_set(x)
    moved = torch.zeros(x.shape[-1], dtype=torch.bool)
    for row in rows.unbind(-1):
        (slope,) = torch.autograd.grad(row.sum(), x, retain_graph=True)
        moved |= (slope != 0.0).any(0)
    return frozenset(moved.nonzero().flatten().tolist())


def recovery_with(robot: Robot, layers: Layers) -> LearnedRecovery:
    """The network as a correction of the robot's analytic recovery, in the box that it may use."""
    policy = robot.backup_policy
    reserved = isinstance(policy, ReservedAuthority)
    low = policy.low if reserved else tuple(c.low for c in robot.system.inputs)
    high = policy.high if reserved else tuple(c.high for c in robot.system.inputs)
    bounded, size = bounded_states(robot), feature_size(robot)
    for index, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or weight.shape[1] != size or bias.shape != weight.shape[:1]:
            raise ModelError(
                f"{robot.name}: layer {index} of the learned backup has weight "
                f"{tuple(weight.shape)} and bias {tuple(bias.shape)}, expected {size} inputs and "
                "one bias per output; train it for this robot"
            )
        size = len(bias)
    if size != len(low):
        raise ModelError(
            f"{robot.name}: the learned backup has {size} outputs, the robot {len(low)} inputs"
        )
    return LearnedRecovery(_featured(robot), bounded, layers, analytic_recovery(robot), low, high)


def feature_size(robot: Robot) -> int:
    """How many features the robot's network gets."""
    x = torch.zeros(len(robot.system.states), dtype=torch.float64)
    return _featured(robot).features(x, bounded_states(robot)).shape[-1]


def _featured(robot: Robot) -> Featured:
    if not hasattr(robot.system, "features"):
        raise ModelError(
            f"{robot.name}: {type(robot.system).__name__} has no method features(x, bounded); "
            "write one that returns what a learned backup should see of the state"
        )
    return cast(Featured, robot.system)


def with_recovery(robot: Robot, recovery: LearnedRecovery) -> Robot:
    """The robot with `recovery` outside its base set, and its authority reserved as before."""
    policy: Policy = BaseOrRecovery(robot.base_set, robot.base_controller, recovery)
    if isinstance(robot.backup_policy, ReservedAuthority):
        policy = replace(robot.backup_policy, policy=policy)
    return replace(robot, backup_policy=policy)


def with_backup(robot: Robot, layers: Layers) -> Robot:
    """The robot with the learned recovery of these layers."""
    return with_recovery(robot, recovery_with(robot, layers))


def fingerprint(robot: Robot) -> str:
    """Hash of what a backup is trained on: map, sets, base controller and analytic law.

    Tasks, margins and horizon are left out: one backup may serve several.
    """
    n, m = len(robot.system.states), len(robot.system.inputs)
    x = (("x", n),)
    return trace_program(
        {
            "step": (robot.system.step, (("x", n), ("u", m))),
            "safe_set": (robot.safe_set, x),
            "base_set": (robot.base_set, x),
            "base_controller": (robot.base_controller, x),
            "recovery": (analytic_recovery(robot), x),
        }
    ).hash


def save_backup(path: Path, robot: Robot, layers: Layers) -> None:
    """Write the layers with the robot's name and fingerprint."""
    arrays: dict[str, NDArray[np.generic]] = {
        "format": np.array(_FORMAT),
        "robot": np.array(robot.name),
        "fingerprint": np.array(fingerprint(robot)),
    }
    for index, (weight, bias) in enumerate(layers):
        arrays[f"weight_{index}"] = weight.detach().double().cpu().numpy()
        arrays[f"bias_{index}"] = bias.detach().double().cpu().numpy()
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_backup(path: Path, robot: Robot) -> Layers:
    """Layers that were trained for this robot; ModelError if the file is of another one."""
    if not path.is_file():
        raise ModelError(f"no learned backup at {path}; run safe-rl train ps2 {robot.name}")
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    found = {name: str(arrays.get(name, "")) for name in ("format", "robot", "fingerprint")}
    expected = {"format": _FORMAT, "robot": robot.name, "fingerprint": fingerprint(robot)}
    for name, wanted in expected.items():
        if found[name] != wanted:
            raise ModelError(
                f"{path} does not fit {robot.name}: its {name} is {found[name]!r}, expected "
                f"{wanted!r}; train the backup again"
            )
    count = sum(name.startswith("weight_") for name in arrays)
    return tuple(
        (torch.from_numpy(arrays[f"weight_{i}"]), torch.from_numpy(arrays[f"bias_{i}"]))
        for i in range(count)
    )
