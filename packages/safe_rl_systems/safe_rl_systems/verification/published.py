"""The published base sets e'Pe <= c as problems for the generator: what is true of them.

Their error coordinates are those of `backup/lqr.py` (world frame, heading along x), read off the
state at the equilibrium; free positions do not enter. Disturbance and measurement error are 0,
as in the publication. `redesigned_problem` is the same plant with a gain and a shape of our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from safe_rl_core.errors import ModelError
from torch import Tensor

from safe_rl_systems.backup.lqr import HoverError, LinearFeedback
from safe_rl_systems.quaternion import from_vector, multiply, sign
from safe_rl_systems.robot import Robot
from safe_rl_systems.robust import gains
from safe_rl_systems.trace import trace_program
from safe_rl_systems.verification.base_problem import BaseProblem

#: Reflections x -> -x and y -> -y of (pz, v, tilt), (thrust, rates); tilt and rates are axial.
_HOVER_SIGNS = (
    (1, -1, 1, 1, 1, -1, -1, 1, 1, -1, -1),
    (1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1),
)
#: Reflection of the lane: (py, v, theta), (accel, turn_rate).
_LANE_SIGNS = ((-1, 1, -1, 1, -1),)


def published_problem(robot: Robot, level: float) -> BaseProblem:
    """{e'Pe <= level} under the published regulator of a robot from `robot.py`."""
    base = robot.base_controller
    if not isinstance(base, LinearFeedback):
        raise ModelError(f"{robot.name} has no published regulator, but a {type(base).__name__}")
    hover = isinstance(base.error, HoverError)
    k, m = len(base.value), len(robot.system.inputs)
    program = trace_program(
        {
            "error_map": (
                _hover_map(robot, base) if hover else _lane_map(robot, base),
                (("s", m), ("e", k), ("v", m), ("w", k)),
            )
        }
    )
    directions = np.vstack((np.eye(7)[4:], -base.gain[:1])) if hover else np.eye(3)[1:]
    rest = base.equilibrium_input
    return BaseProblem(
        program=program,
        schedule=rest,
        input=rest,
        input_low=np.array([c.low for c in robot.system.inputs]),
        input_high=np.array([c.high for c in robot.system.inputs]),
        gain=-base.gain,
        factor=np.linalg.cholesky(0.5 * (base.value + base.value.T) / level),
        disturbance=np.zeros(k),
        tracking_error=np.zeros(k),
        cell_directions=directions,
        symmetries=tuple((*row, *row[k:]) for row in (_HOVER_SIGNS if hover else _LANE_SIGNS)),
    )


def redesigned_problem(robot: Robot, design: str) -> BaseProblem:
    """The published plant of a robot with gain and shape from `safe_rl_systems.designs`."""
    found = gains(design)
    gain, factor = found["base_gain"], found["base_factor"]
    problem = published_problem(robot, 1.0)
    directions = problem.cell_directions
    if len(directions) > 2:  # the thrust is the last of them
        directions = np.vstack((directions[:-1], gain[:1]))
    return replace(problem, gain=gain, factor=factor, cell_directions=directions)


def _hover_map(robot: Robot, base: LinearFeedback) -> Callable[..., Tensor]:
    """The step of the error. The attitude is that of the Euler step, written so that it is
    plainly a unit quaternion: q + ½ Δt q ∘ ω, normalised, is q ∘ (1, ½ Δt ω) / |(1, ½ Δt ω)|.
    """
    if getattr(robot.system, "integrator", "") != "euler":
        raise ModelError(f"{robot.name}: the published plant is the one with integrator 'euler'")
    height, dt = base.error(torch.zeros(10)), robot.system.period

    def error_map(s: Tensor, e: Tensor, v: Tensor, w: Tensor) -> Tensor:
        q = from_vector(-0.5 * e[..., 4:7])
        level = e[..., 0:1] - height[0]
        x = torch.cat((torch.zeros_like(e[..., 0:2]), level, e[..., 1:4], q), -1)
        moved = base.error(robot.system.step(x, s + v))
        turn = 0.5 * dt * (s + v)[..., 1:4]
        length = torch.sqrt(1.0 + (turn * turn).sum(-1, keepdim=True))
        after = multiply(q, torch.cat((1.0 / length, turn / length), -1))
        tilt = -2.0 * sign(after[..., 0:1]) * after[..., 1:4]
        return torch.cat((moved[..., 0:4], tilt), -1) + w

    return error_map


def _lane_map(robot: Robot, base: LinearFeedback) -> Callable[..., Tensor]:
    if len(robot.system.states) != 3:
        raise ModelError(f"{robot.name}: the published plant has the states (py, v, theta)")
    rest = -base.error(torch.zeros(3))

    def error_map(s: Tensor, e: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return base.error(robot.system.step(rest + e, s + v)) + w

    return error_map
