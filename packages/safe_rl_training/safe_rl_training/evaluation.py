"""How well a tracker follows its reference on the robot's equations, with and without lag.

Nothing here is shielded. The figures go into training.json; flights in full physics are the
simulator's business, not the trainer's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from safe_rl_systems.robot import Robot
from torch import Tensor

from safe_rl_training.parts.actuators import Actuators, ideal, step_with
from safe_rl_training.parts.networks import PolicyNetwork


@dataclass(frozen=True)
class Flight:
    """Closed-loop episodes: states (K+1, B, n), actions (K, B, m), rewards (K, B)."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    period: float


@torch.no_grad()
def fly(
    network: PolicyNetwork, robot: Robot, actuators: Actuators, x: Tensor, steps: int
) -> Flight:
    """Track from the states x (B, n) at task time 0."""
    t = torch.zeros(len(x), 1)
    delivered = previous = network(robot.task.observation(x, t))
    states, actions, rewards = [x], [], []
    for k in range(steps):
        u = network(robot.task.observation(x, t))
        x, delivered = step_with(actuators, robot.system, x, delivered, previous, u)
        t = torch.full_like(t, (k + 1) * robot.system.period)
        rewards.append(robot.task.reward(x, u, t)[:, 0])
        states.append(x)
        actions.append(u)
        previous = u
    period = robot.system.period
    return Flight(torch.stack(states), torch.stack(actions), torch.stack(rewards), period)


def lagging(robot: Robot, count: int, tau: tuple[float, ...]) -> Actuators:
    """Actuators with the given first-order lags in s, otherwise right."""
    return replace(ideal(robot.system, count), tau=torch.tensor(tau).expand(count, len(tau)))


def summarise(flight: Flight, robot: Robot) -> dict[str, float]:
    """RMSE per tracked axis after the first half lap, the return, and the share of violations."""
    steps = len(flight.rewards)
    t = (torch.arange(steps + 1) * flight.period)[:, None, None]
    error = flight.states - robot.task.reference(t.expand(-1, flight.states.shape[1], 1))
    settled = error[round(0.5 * robot.task.lap / flight.period) :]
    names = [c.name for c in robot.system.states]
    rmse = {f"rmse_{n}": settled[..., names.index(n)] for n in robot.task.tracked}
    figures = {name: float((e**2).mean().sqrt()) for name, e in rmse.items()}
    broken = (robot.safe_set(flight.states) < 0.0).any(-1).any(0)
    returns = flight.rewards.sum(0)
    return {
        **figures,
        "position_rmse": float(
            sum(figures.get(f"rmse_{n}", 0.0) ** 2 for n in ("px", "py", "pz")) ** 0.5
        ),
        "return_mean": float(returns.mean()),
        "return_worst": float(returns.min()),
        "share_of_episodes_outside_safe_set": float(broken.float().mean()),
        "episodes": float(flight.states.shape[1]),
        "steps": float(steps),
    }


def evaluate(
    network: PolicyNetwork,
    robot: Robot,
    lags: dict[str, tuple[float, ...]],
    laps: int = 5,
    count: int = 256,
) -> dict[str, dict[str, float]]:
    """`count` of the task's own episodes and of `laps` laps, each without lag and with `lags`."""
    generator = torch.Generator().manual_seed(12345)
    w = 2.0 * torch.rand(count, robot.task.start_dimension, generator=generator) - 1.0
    x = robot.task.initial_state(w)
    episodes = {
        "episode": round(robot.duration / robot.system.period),
        f"{laps} laps": round(laps * robot.task.lap / robot.system.period),
    }
    none = tuple(0.0 for _ in robot.system.inputs)
    return {
        f"{robot.variant}, {episode}, {name}": summarise(
            fly(network, robot, lagging(robot, count, tau), x, steps), robot
        )
        for episode, steps in episodes.items()
        for name, tau in {"no lag": none, **lags}.items()
    }
