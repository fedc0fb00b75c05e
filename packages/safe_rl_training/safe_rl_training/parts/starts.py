"""Start states for a tracker: near the reference, far from it, and where a shield leaves it.

A shield that cut the top of a loop or the outside of a bend hands the robot back slower, inside
the limits and with another attitude than the reference has. A tracker that never saw such states
would need a new start; one that did returns and goes on, lap after lap.
"""

from __future__ import annotations

import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.quaternion import multiply, normalised
from safe_rl_systems.tasks import LaneKeeping, Powerloop, Task
from torch import Tensor

NEAR, CUT = 0.45, 0.3  # shares of the samples; the rest starts far away


def start_states(task: Task, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` starts anywhere in the lap: states (count, n) and task times (count, 1)."""
    t = task.lap * torch.rand(count, 1, generator=generator)
    kind = torch.rand(count, 1, generator=generator)
    if isinstance(task, Powerloop):
        return _powerloop(task, t, kind, generator), t
    if isinstance(task, LaneKeeping):
        return _lane(task, t, kind, generator), t
    raise ModelError(
        f"the tracker knows where to start in Powerloop and LaneKeeping, not in "
        f"{type(task).__name__}: train it by `safe-rl train ps2`, which takes any task, or add "
        "its starts to safe_rl_training/parts/starts.py (docs/your_robot.md)"
    )


def _normal(like: Tensor, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(len(like), width, generator=generator)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(len(like), 1, generator=generator)


def rotate_by(vector: Tensor, q: Tensor) -> Tensor:
    """q turned by the rotation vector (count, 3) in rad, world frame. -> (count, 4)."""
    angle = vector.norm(dim=-1, keepdim=True)
    axis = vector / angle.clamp(min=1e-9)
    turn = torch.cat((torch.cos(0.5 * angle), axis * torch.sin(0.5 * angle)), -1)
    return multiply(turn, q)


def _powerloop(task: Powerloop, t: Tensor, kind: Tensor, generator: torch.Generator) -> Tensor:
    width = torch.where(kind < NEAR, 0.15, 1.0)
    cut = (kind >= NEAR) & (kind < NEAR + CUT)
    # Cut: below the ceiling, slower, and anywhere between the reference attitude and upright.
    ref = task.reference(t)
    p, v, q = ref[:, 0:3], ref[:, 3:6], ref[:, 6:10]
    lower = torch.minimum(p[:, 2:3], _uniform(t, 2.0, 3.0, generator))
    p = torch.cat((p[:, 0:2], torch.where(cut, lower, p[:, 2:3])), -1)
    v = torch.where(cut, _uniform(t, 0.0, 1.0, generator), 1.0) * v
    upright = torch.zeros_like(q) + q.new_tensor([1.0, 0.0, 0.0, 0.0])
    side = torch.where(q[:, 0:1] < 0.0, -1.0, 1.0)
    blend = torch.where(cut, _uniform(t, 0.0, 1.0, generator), 0.0)
    q = normalised((1.0 - blend) * q + blend * side * upright + 1e-6)
    p = p + 0.5 * width * _normal(t, 3, generator)
    v = v + width * _normal(t, 3, generator)
    q = rotate_by(0.35 * width * _normal(t, 3, generator), q)
    return torch.cat((p, v, q), -1)


def _lane(task: LaneKeeping, t: Tensor, kind: Tensor, generator: torch.Generator) -> Tensor:
    ref = task.reference(t)
    names = [c.name for c in task.system.states]
    py, theta, v = (ref[:, names.index(name)].unsqueeze(-1) for name in ("py", "theta", "v"))
    width = torch.where(kind < NEAR, 0.2, 1.0)
    cut = (kind >= NEAR) & (kind < NEAR + CUT)
    # Cut: inside the lane, heading anywhere between the reference's and the lane's.
    limit = _uniform(t, 0.8, 1.8, generator)
    py = torch.where(cut, torch.minimum(torch.maximum(py, -limit), limit), py)
    theta = torch.where(cut, _uniform(t, -0.5, 1.0, generator), 1.0) * theta
    py = py + 0.5 * width * _normal(t, 1, generator)
    theta = theta + 0.3 * width * _normal(t, 1, generator)
    v = (v + width * _normal(t, 1, generator)).clamp(0.0, 12.0)
    parts = {"px": torch.zeros_like(py), "py": py, "theta": theta, "v": v}
    return torch.cat([parts[name] for name in names], -1)
