"""How large an implicit set is: the same states for every policy, and an interval with each share.

    share = hits / states        hit: way_out >= 0, or VALID for a robot with a certificate

Intervals: Clopper-Pearson (exact binomial) for uniform states, Hoeffding for the published pools,
both at 99 %. `gained` and `lost` count states that one policy saves and the other does not.

The published measures (PS2-RL): for the unicycle the grid of 201 x 201 x 121 over (py, theta, v)
in C x [0, 12] with N steps, x_0 .. x_N. For the quadrotor pools about the powerloop's reference,
here without traces of a tracker:

    general        safe, farther from the ceiling than 0.25 m      perturbed by 1.0 x the spread
    near_ceiling   safe, nearer                                    1.5 x
    bridge         41 points between the last safe reference       1.8 x
                   state before the ceiling and the first after
    spread         0.4 m, 1.5 m/s, 30 deg of roll and pitch, 12 deg of yaw, uniform, safe
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_core.kernel.robust import RobustKernel
from safe_rl_systems.build import batch_kernel, robot_program
from safe_rl_systems.quaternion import normalised
from safe_rl_systems.robot import Robot
from safe_rl_systems.systems import LaneUnicycle
from safe_rl_systems.tasks import Powerloop
from scipy import stats
from torch import Tensor

from safe_rl_training.parts.arrival import Array, Profile
from safe_rl_training.parts.starts import rotate_by

Hits = NDArray[np.bool_]
#: States (B, n) and a horizon N -> which of them a policy saves within it (B,).
Saves = Callable[[Array, int], Hits]

CONFIDENCE = 0.99
#: Points of the published unicycle grid along py, theta, v; and the speeds at its ends.
GRID = (201, 201, 121)
GRID_SPEEDS = (0.0, 12.0)
#: Distance from the ceiling and multiples of the spread of each published pool.
NEAR_CEILING = 0.25
POOLS = {"general": 1.0, "near_ceiling": 1.5, "bridge": 1.8}
SPREAD = (0.4, 1.5, math.radians(30.0), math.radians(12.0))
_BRIDGE_POINTS = 41
_PHASES = 720
_CHUNK = 200_000
#: The share of tubes that the margins of a profile are enough for.
_QUANTILE = 0.75


def clopper_pearson(hits: int, count: int) -> tuple[float, float]:
    """The exact interval of a share at CONFIDENCE."""
    tail = 0.5 * (1.0 - CONFIDENCE)
    low = stats.beta.ppf(tail, hits, count - hits + 1) if hits else 0.0
    high = stats.beta.isf(tail, hits + 1, count - hits) if hits < count else 1.0
    return float(low), float(high)


def hoeffding(count: int) -> float:
    """Half-width of the distribution-free interval of a mean in [0, 1] at CONFIDENCE."""
    return math.sqrt(math.log(2.0 / (1.0 - CONFIDENCE)) / (2.0 * count))


def share(found: Hits) -> dict[str, Any]:
    """A share of states with its Clopper-Pearson interval, for JSON."""
    low, high = clopper_pearson(int(found.sum()), len(found))
    return {"share": float(found.mean()), "low": low, "high": high, "states": len(found)}


def compared(before: Hits, after: Hits) -> dict[str, int]:
    """How many states the second policy saves besides, and how many it does not save any more."""
    return {"gained": int((after & ~before).sum()), "lost": int((before & ~after).sum())}


def robust_kernel(robot: Robot, bundle: Bundle) -> RobustKernel:
    """VALID for the robot's present backup policy and horizon, under the bundle's certificate."""
    return RobustKernel.of(replace(bundle, program=robot_program(robot), horizon=robot.horizon))


def saver(robot: Robot, bundle: Bundle | None, threads: int = 1) -> Saves:
    """Which states the robot's backup policy saves: way_out >= 0, or VALID.

    The robot is traced once for all horizons.
    """
    if bundle is not None:
        certified = replace(bundle, program=robot_program(robot))

        def valid(x: Array, horizon: int) -> Hits:
            return judge(RobustKernel.of(replace(certified, horizon=horizon)), x)[0]

        return valid
    own = batch_kernel(robot, threads)

    def has_a_way_out(x: Array, horizon: int) -> Hits:
        kernel = BatchKernel(own.compiled, own.theorem, horizon, threads)
        pieces = [kernel.way_out(x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]
        return np.concatenate(pieces) >= 0.0

    return has_a_way_out


def saved(robot: Robot, x: Array, bundle: Bundle | None, threads: int = 1) -> Hits:
    """Which states (B, n) the robot's backup policy saves with its own horizon. -> (B,)."""
    return saver(robot, bundle, threads)(x, robot.horizon)


def judge(kernel: RobustKernel, x: Array) -> tuple[Hits, Profile | None]:
    """Which plans from x (B, n) are VALID, and the margins that most whole tubes are content with.

    No profile where no plan has a whole tube.
    """
    actions = kernel.compiled.program("backup_policy", x)
    holds, rows, bases = np.zeros(len(x), bool), [], []
    for i, (state, action) in enumerate(zip(x, actions, strict=True)):
        verdict = kernel.valid(state, action)
        holds[i] = verdict.holds
        if np.isfinite(verdict.errors).all():
            row, base = kernel.needed
            rows.append(row)
            bases.append(base)
    if not rows:
        return holds, None
    base = float(np.quantile(bases, _QUANTILE))
    return holds, Profile(np.quantile(rows, _QUANTILE, axis=0), base)


def over_horizons(saves: Saves, horizons: tuple[int, ...], x: Array) -> dict[str, Any]:
    """The share of x (B, n) that is saved with other horizons N than the robot's own."""
    return {str(n): share(saves(x, n)) for n in horizons}


def published_grid(robot: Robot, saves: Saves, steps: int) -> dict[str, Any]:
    """The share of the published grid from which `steps` steps stay in C and end in the base set.

    The kernel of horizon N looks at x_1 .. x_{N+1}; here x_0 .. x_N count, without margins.
    """
    if not isinstance(robot.system, LaneUnicycle):
        raise ModelError(f"the published grid is that of LaneUnicycle, not of {robot.name}")
    box = {c.name: c for c in robot.system.states}
    sides = [
        np.linspace(box["py"].low, box["py"].high, GRID[0]),
        np.linspace(*GRID_SPEEDS, GRID[2]),
        np.linspace(box["theta"].low, box["theta"].high, GRID[1]),
    ]
    x = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)
    hits = saves(x, steps - 1)
    return {"share": float(hits.mean()), "states": len(x), "steps": steps}


def pools(robot: Robot, count: int, seed: int = 0) -> dict[str, Array]:
    """`count` states (count, 10) of each published pool about the powerloop's reference."""
    task = robot.task
    if not isinstance(task, Powerloop) or "ceiling" not in robot.safe_set.names:
        raise ModelError(f"the published pools are about a powerloop under a ceiling, not {task}")
    generator = torch.Generator().manual_seed(seed)
    ceiling = robot.safe_set.names.index("ceiling")
    reference = task.reference(torch.linspace(0.0, task.lap, _PHASES + 1)[:-1, None])
    room = robot.safe_set(reference)[:, ceiling]
    safe = room >= 0.0
    centres = {
        "general": reference[room >= NEAR_CEILING],
        "near_ceiling": reference[safe & (room < NEAR_CEILING)],
        "bridge": _bridge(reference, safe),
    }
    return {
        name: _perturbed(robot, centres[name], factor, count, generator).double().numpy()
        for name, factor in POOLS.items()
        if len(centres[name])
    }


def _bridge(reference: Tensor, safe: Tensor) -> Tensor:
    """Straight from the last safe state before the excursion to the first one after it."""
    outside = safe.logical_not().nonzero().flatten().tolist()
    if not outside:
        return reference[:0]
    before = reference[outside[0] - 1]
    after = reference[(outside[-1] + 1) % len(reference)]
    after = torch.cat((after[:6], after[6:] * torch.sign((after[6:] * before[6:]).sum())))
    blend = torch.linspace(0.0, 1.0, _BRIDGE_POINTS)[:, None]
    x = (1.0 - blend) * before + blend * after
    return torch.cat((x[:, :6], normalised(x[:, 6:])), -1)


def _perturbed(
    robot: Robot, centres: Tensor, factor: float, count: int, generator: torch.Generator
) -> Tensor:
    place, speed, tilt, yaw = (factor * spread for spread in SPREAD)
    width = torch.tensor([*[place] * 3, *[speed] * 3, tilt, tilt, yaw])
    found: list[Tensor] = []
    while sum(len(x) for x in found) < count:
        chosen = torch.randint(len(centres), (count,), generator=generator)
        move = width * (2.0 * torch.rand(count, 9, generator=generator) - 1.0)
        x = centres[chosen]
        x = torch.cat((x[:, :6] + move[:, :6], rotate_by(move[:, 6:], x[:, 6:])), -1)
        found.append(x[(robot.safe_set(x) >= 0.0).all(-1)])
    return torch.cat(found)[:count]


def over_pools(robot: Robot, policies: dict[str, Saves], count: int) -> dict[str, Any]:
    """For each pool the share that each policy saves, with Hoeffding's half-width."""
    return {
        pool: {
            **{name: float(saves(x, robot.horizon).mean()) for name, saves in policies.items()},
            "half_width": hoeffding(count),
            "states": count,
        }
        for pool, x in pools(robot, count).items()
    }


def measure(
    policies: dict[str, Robot],
    x: Array,
    *,
    horizons: tuple[int, ...],
    grid: tuple[int, ...],
    pooled: int,
    bundle: Bundle | None,
    threads: int = 1,
) -> dict[str, Any]:
    """Every measure of "analytic", "learned" and, where there is one, "tuned", for JSON.

    On the same uniform states x (B, n), a quarter of them for each of `horizons`; `grid`: the N of
    the published grid; `pooled` states of each published pool.
    """
    robot = policies["analytic"]
    savers = {name: saver(policy, bundle, threads) for name, policy in policies.items()}
    hits = {name: saves(x, robot.horizon) for name, saves in savers.items()}
    found: dict[str, Any] = {
        "volume": {name: share(some) for name, some in hits.items()},
        **{
            f"learned_against_{name}": compared(some, hits["learned"])
            for name, some in hits.items()
            if name != "learned"
        },
        "horizons": {
            name: over_horizons(saves, horizons, x[: len(x) // 4])
            for name, saves in savers.items()
        },
    }
    if isinstance(robot.system, LaneUnicycle):
        found["published_grid"] = {
            name: [published_grid(robot, saves, steps) for steps in grid]
            for name, saves in savers.items()
        }
    if isinstance(robot.task, Powerloop) and "ceiling" in robot.safe_set.names:
        found["pools"] = over_pools(robot, savers, pooled)
    return found
