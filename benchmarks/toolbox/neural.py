"""A neural backup policy: n -> 64 -> 64 -> m, tanh, squashed into the input box.

    u = centre + half_range tanh(W3 tanh(W2 tanh(W1 x + b1) + b2) + b3)

Trained by regression on what the analytic backup policy of the same robot does, on states of the
operating box and along that policy's own rollouts. As in PS2-RL it is the recovery half of a hard
switch: inside the base set the base controller acts. It exists to be timed on realistic rollouts;
no bundle is shipped with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from safe_rl_core.bundle import Bundle
from safe_rl_systems.backup import SwitchedBackup
from safe_rl_systems.backup.lqr import LinearFeedback
from safe_rl_systems.build import robot_program
from safe_rl_systems.control_affine import ControlAffineSystem, input_box
from safe_rl_systems.robot import ROBOTS, Robot
from torch import Tensor

WIDTH = 64
STEPS = 3000
BATCH = 512
POOL = 40_000
#: What the last layer is asked for at most, so that a saturated action has a finite target.
SATURATION = 0.98


@dataclass(frozen=True)
class NeuralRecovery:
    """The network above as a policy; `layers` are (weight, bias) pairs in float64."""

    system: ControlAffineSystem
    layers: tuple[tuple[Tensor, Tensor], ...]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        low, high = input_box(self.system, x)
        for weight, bias in self.layers:
            x = torch.tanh(torch.nn.functional.linear(x, weight.to(x.dtype), bias.to(x.dtype)))
        return 0.5 * (low + high) + 0.5 * (high - low) * x


def neural_robot(name: str, steps: int = STEPS, say: Callable[[str], None] = print) -> Robot:
    """The shipped robot with a trained network in the place of its recovery law."""
    robot = ROBOTS[name]()
    base = robot.base_controller
    assert isinstance(base, LinearFeedback)
    recovery = imitate(robot, steps, say)
    base_set: Any = robot.base_set
    return replace(robot, backup_policy=SwitchedBackup(base, base_set.level, recovery))


def neural_bundle(bundle: Bundle, robot: Robot, horizon: int) -> Bundle:
    """The shipped bundle with another robot's program and horizon, in memory only."""
    return replace(
        bundle, name=f"{bundle.name} neural", program=robot_program(robot), horizon=horizon
    )


def imitate(robot: Robot, steps: int, say: Callable[[str], None]) -> NeuralRecovery:
    """Regression on the robot's own backup policy; the seed is fixed."""
    generator = torch.Generator().manual_seed(0)
    states = _states(robot, generator)
    low, high = input_box(robot.system, states)
    target = robot.backup_policy(states) - 0.5 * (low + high)
    target = (target / (0.5 * (high - low))).clamp(-SATURATION, SATURATION)
    mean, spread = states.mean(0), states.std(0) + 1e-3
    sizes = (states.shape[1], WIDTH, WIDTH, target.shape[1])
    layers = [_layer(i, o, generator) for i, o in zip(sizes, sizes[1:], strict=False)]
    weights = [tensor for layer in layers for tensor in layer]
    optimiser = torch.optim.Adam(weights, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    scaled = (states - mean) / spread
    error = 0.0
    for step in range(steps):
        batch = torch.randint(len(states), (BATCH,), generator=generator)
        y = scaled[batch]
        for weight, bias in layers:
            y = torch.tanh(torch.nn.functional.linear(y, weight, bias))
        loss = torch.nn.functional.smooth_l1_loss(y, target[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        error = (
            0.99 * error + 0.01 * float((y.detach() - target[batch]).abs().mean()) if step else 1.0
        )
        if (step + 1) % 1000 == 0:
            say(f"  imitating {robot.name}: step {step + 1}/{steps}, mean error {error:.3f}")
    first, *others = layers
    weight = first[0] / spread
    folded = [(weight, first[1] - weight @ mean), *others]
    return NeuralRecovery(
        robot.system, tuple((w.detach().double(), b.detach().double()) for w, b in folded)
    )


def _layer(inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
    return weight.requires_grad_(), torch.zeros(outputs, requires_grad=True)


def _states(robot: Robot, generator: torch.Generator) -> Tensor:
    """Half of the pool from the operating box, half from random moments of backup rollouts."""
    w = 2.0 * torch.rand(POOL, robot.task.operating_dimension, generator=generator) - 1.0
    box = robot.task.operating_state(w)
    x, moments = box[: POOL // 2], []
    for _ in range(robot.horizon):
        moments.append(x)
        x = robot.system.step(x, robot.backup_policy(x))
    chosen = torch.randint(robot.horizon, (POOL // 2,), generator=generator)
    along = torch.stack(moments)[chosen, torch.arange(POOL // 2)]
    states = torch.cat((box, along))
    return states[torch.isfinite(states).all(-1)]
