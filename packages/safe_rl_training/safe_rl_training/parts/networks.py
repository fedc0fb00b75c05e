"""The policy network: observation in SI units in, action in SI units out, bounded by construction.

    u = centre + half_range · tanh(MLP((o - mean) / std))

so the action lies in the input box whatever the observation is. Mean and std are buffers: they are
measured once before training and travel with the weights into the checkpoint and the ONNX file.
"""

from __future__ import annotations

import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.control_affine import ControlAffineSystem
from torch import Tensor, nn

SMALLEST_STD = 1e-3


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def mlp(
    inputs: int, hidden: int, outputs: int, activation: type[nn.Module] = nn.Tanh
) -> nn.Sequential:
    """Two hidden layers of one width."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        activation(),
        nn.Linear(hidden, hidden),
        activation(),
        nn.Linear(hidden, outputs),
    )


class PolicyNetwork(nn.Module):
    """Two hidden layers between a fixed normalisation and the input box. All float32."""

    mean: Tensor
    std: Tensor
    centre: Tensor
    half_range: Tensor

    def __init__(
        self,
        observation_size: int,
        low: Tensor,
        high: Tensor,
        hidden: int,
        activation: str = "tanh",
    ) -> None:
        """`low`, `high` (m,): the input box in SI units; `hidden`: width of both hidden layers."""
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ModelError(f"activation must be one of {[*ACTIVATIONS]}, got {activation!r}")
        if not bool((low < high).all() and (high - low).isfinite().all()):
            raise ModelError(f"the input box must be finite with low < high, got {low}, {high}")
        self.body = mlp(observation_size, hidden, len(low), ACTIVATIONS[activation])
        with torch.no_grad():
            # A small last layer starts all actions at the centre of the box, where tanh has slope.
            weight, bias = self.body[-1].parameters()
            weight.mul_(0.1)
            bias.zero_()
        self.register_buffer("mean", torch.zeros(observation_size))
        self.register_buffer("std", torch.ones(observation_size))
        self.register_buffer("centre", (0.5 * (low + high)).float())
        self.register_buffer("half_range", (0.5 * (high - low)).float())

    def measure_normalisation(self, observations: Tensor) -> None:
        """Take mean and std from a sample of observations (count, k)."""
        self.mean.copy_(observations.mean(0))
        self.std.copy_(observations.std(0).clamp(min=SMALLEST_STD))

    def forward(self, observation: Tensor) -> Tensor:
        """(..., k) -> (..., m), both in SI units."""
        return self.centre + self.half_range * torch.tanh(self.body(self.normalise(observation)))

    def normalise(self, observation: Tensor) -> Tensor:
        """(o - mean) / std. (..., k) -> (..., k)."""
        return (observation - self.mean) / self.std


def network_for(
    system: ControlAffineSystem, observation_size: int, hidden: int, activation: str = "tanh"
) -> PolicyNetwork:
    """A fresh network for a robot's input box."""
    low = torch.tensor([c.low for c in system.inputs])
    high = torch.tensor([c.high for c in system.inputs])
    return PolicyNetwork(observation_size, low, high, hidden, activation)
