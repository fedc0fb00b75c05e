"""SAC's networks: a policy with noise, and two critics."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from safe_rl_training.parts.networks import PolicyNetwork

#: log std = LOWEST + HALF_SPAN (tanh + 1), in [-5, 2], as published.
LOWEST, HALF_SPAN = -5.0, 3.5


class Actor(nn.Module):
    """The policy, whose output is the mean action, and a second head for the noise."""

    def __init__(self, policy: PolicyNetwork, hidden: int) -> None:
        super().__init__()
        self.policy = policy
        self.log_std = nn.Linear(hidden, len(policy.centre))
        with torch.no_grad():
            self.log_std.weight.mul_(0.1)
            self.log_std.bias.zero_()

    def forward(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, k), standard normal noise (B, m) -> a~ (B, m), log p(a~) (B,)."""
        features = self.policy.body[:-1](self.policy.normalise(observation))
        log_std = LOWEST + HALF_SPAN * (torch.tanh(self.log_std(features)) + 1.0)
        z = self.policy.body[-1](features) + log_std.exp() * noise
        # log(1 - tanh² z), without its cancellation
        slope = 2.0 * (math.log(2.0) - z - functional.softplus(-2.0 * z))
        each = -0.5 * noise**2 - log_std - 0.5 * math.log(2.0 * math.pi) - slope
        return torch.tanh(z), each.sum(-1)


class TwinCritic(nn.Module):
    """Two critics with two hidden layers each, evaluated together."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        sizes = (inputs, hidden, hidden, 1)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for size, width in pairwise(sizes):
            bound = size**-0.5
            self.weights.append(nn.Parameter(torch.empty(2, size, width).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(2, 1, width).uniform_(-bound, bound)))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """(B, k), (B, m) -> (2, B)."""
        value = torch.cat((observation, action), -1).expand(2, -1, -1)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = torch.baddbmm(bias, functional.relu(value) if k else value, weight)
        return value[..., 0]
