"""How large could the unicycle's implicit set be, whatever the backup policy?

The question of the published benchmark: of the grid 201 x 121 x 201 over (py, v, theta) in
C x [0, 12], from which share does *some* policy reach the base set in N steps without leaving C?
Three answers that enclose the truth:

    reached      a policy has been rolled out on the plant itself and got there: a lower bound.
                 Policies: the robot's own backup, then one greedy on the values below
    estimate     {V_N >= 0} of dynamic programming on the grid, multilinear between its points:

                     V_0 = min(h, l)      V_{n+1}(x) = min(h, max(l, max_u V_n(step(x, u))))

                 (finite horizon, sign-exact, no discount). l is rescaled to
                 sqrt(c) - sqrt(c - h_B), the same in sign and less curved, because interpolation
                 takes too little off concave values and adds too much to convex ones
    reachable    py moves by an amount that only (v, theta) decide, and each of v and theta moves
                 by at most a fixed amount per step. Between a start and an end (v_N, theta_N) in
                 the base set both stay in the band that those rates allow; summing the largest
                 and smallest motion of py over the band bounds py_N. Where no cell of end states
                 gives a py_N inside the base set, or py has to leave the lane on the way, nobody
                 arrives: an upper bound, for every py and not only for grid points

The plant is only ever asked through `robot.system.step`; symmetry, bands and monotony of its
motion are tested before they are used. Half of the grid stands for all (py, theta -> -py, -theta).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolbox import machine

if __name__ == "__main__":  # its functions are imported elsewhere
    machine.one_thread()

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_systems.control_affine import Channel
from safe_rl_systems.robot import ROBOTS, Robot
from toolbox.report import Report, Table, run_script, say
from torch import Tensor

Array = NDArray[np.float64]
PACKAGES = ("safe_rl_systems", "numpy", "torch")
ROBOT = "unicycle_lane_paper"
SHAPE, QUICK_SHAPE = (201, 121, 201), (41, 41, 41)
HORIZONS, QUICK_HORIZONS = (10, 20, 30, 40, 50, 60), (10, 20)
#: Levels per input in the dynamic programming; the rollouts add this many rounds of refinement.
LEVELS, REFINEMENTS = 3, 2
#: End states of the upper bound: cells of theta and of v over the base set.
CELLS, QUICK_CELLS = (24, 14), (12, 8)
CHUNK = 200_000


@dataclass(frozen=True)
class Lattice:
    """The published grid: three axes; only py >= 0 is stored. All points (P, 3) in float64."""

    robot: Robot
    axes: tuple[Array, Array, Array]

    @classmethod
    def of(cls, robot: Robot, shape: tuple[int, int, int]) -> Lattice:
        """`shape` odd in py and theta, so that both have 0."""
        states = robot.system.states
        full = [np.linspace(c.low, c.high, k) for c, k in zip(states, shape, strict=True)]
        return cls(robot, (full[0][shape[0] // 2 :], full[1], full[2]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the stored half."""
        return tuple(len(axis) for axis in self.axes)  # type: ignore[return-value]

    def points(self) -> Tensor:
        """(P, 3), py slowest."""
        mesh = np.meshgrid(*self.axes, indexing="ij")
        return torch.from_numpy(np.stack(mesh, -1).reshape(-1, 3))

    def share(self, reached: Tensor) -> float:
        """Of the whole grid, from flags (P,) on the half: py = 0 counts once, others twice."""
        flags = reached.reshape(self.shape).double()
        return float(
            (2.0 * flags.sum() - flags[0].sum()) / (2.0 * flags.numel() - flags[0].numel())
        )

    def places(self, x: Tensor) -> Tensor:
        """Where states lie on the stored half, as `grid_sample` wants it. (P, 3) -> (P, 3)."""
        mirrored = torch.where(x[:, :1] < 0.0, x * x.new_tensor([-1.0, 1.0, -1.0]), x)
        low = x.new_tensor([axis[0] for axis in self.axes])
        high = x.new_tensor([axis[-1] for axis in self.axes])
        return (2.0 * (mirrored - low) / (high - low) - 1.0).flip(-1).float()

    def at(self, values: Tensor, places: Tensor) -> Tensor:
        """Multilinear interpolation. values (shape), (P, 3) -> (P,)."""
        volume, where = values[None, None], places[None, None, None]
        sampled = torch.nn.functional.grid_sample(
            volume, where, padding_mode="border", align_corners=True
        )
        return sampled.reshape(-1)


def room(robot: Robot, x: Tensor) -> Tensor:
    """Least row of the safe set above the margin kept from it: (P, n) -> (P,)."""
    kept = x.new_tensor([robot.margins.get(name, 0.0) for name in robot.safe_set.names])
    return (robot.safe_set(x) - kept).amin(-1)


def margins(robot: Robot, x: Tensor) -> tuple[Tensor, Tensor]:
    """h and the rescaled l: (P, 3) -> (P,), (P,)."""
    level = robot.base_set.level  # type: ignore[attr-defined]
    inside = robot.base_set(x).amin(-1)
    distance = torch.sqrt((level - inside).clamp(min=0.0))
    return room(robot, x), level**0.5 - distance


def ends(channels: tuple[Channel, ...]) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds in float64."""
    return tuple(  # type: ignore[return-value]
        torch.tensor([getattr(c, end) for c in channels]).double() for end in ("low", "high")
    )


def inputs(robot: Robot, levels: int) -> Tensor:
    """A grid over the input box with its corners and its centre. -> (levels², 2)."""
    low, high = ends(robot.system.inputs)
    steps = torch.linspace(0.0, 1.0, levels).double()
    return low + (high - low) * torch.cartesian_prod(steps, steps)


def values(lattice: Lattice, horizon: int, levels: int) -> Iterator[Tensor]:
    """V_0, V_1, ... V_horizon on the stored half, float32."""
    robot, x = lattice.robot, lattice.points()
    safe, arrived = (margin.float() for margin in margins(robot, x))
    kept = []
    for u in inputs(robot, levels):
        y = robot.system.step(x, u.expand(len(x), 2))
        kept.append((lattice.places(y), room(robot, y).float()))
    value = torch.minimum(safe, arrived)
    yield value.reshape(lattice.shape)
    for _ in range(horizon):
        best = torch.full_like(value, -torch.inf)
        for places, still_safe in kept:
            there = lattice.at(value.reshape(lattice.shape), places)
            best = torch.maximum(best, torch.minimum(still_safe, there))
        value = torch.minimum(safe, torch.maximum(arrived, best))
        yield value.reshape(lattice.shape)


def arrives(
    robot: Robot, x: Tensor, policy: Callable[[Tensor, int], Tensor], steps: int
) -> Tensor:
    """Does the plant under `policy`(x, steps to go), base controller inside B, arrive safely?"""
    safe = room(robot, x) >= 0.0
    for k in range(steps, 0, -1):
        inside = robot.base_set(x).amin(-1) >= 0.0
        u = torch.where(inside[:, None], robot.base_controller(x), policy(x, k))
        x = robot.system.step(x, u)
        safe &= room(robot, x) >= 0.0
    return safe & (robot.base_set(x).amin(-1) >= 0.0)


def greedy(lattice: Lattice, stored: list[Tensor], levels: int) -> Callable[[Tensor, int], Tensor]:
    """max_u V_{k-1}(step(x, u)) over a grid, then over finer ones around the best."""
    robot = lattice.robot
    low, high = ends(robot.system.inputs)
    offsets = inputs(robot, 3) - 0.5 * (low + high)

    def policy(x: Tensor, k: int) -> Tensor:
        best = torch.full((len(x),), -torch.inf)
        u = x.new_zeros(len(x), 2)
        for candidate in inputs(robot, levels):
            best, u = better(x, k, candidate.expand_as(u), best, u)
        for refinement in range(1, REFINEMENTS + 1):
            centre, width = u, 2.0 ** (1 - refinement) / (levels - 1)
            for offset in offsets:
                moved = (centre + width * offset).clamp(low, high)
                best, u = better(x, k, moved, best, u)
        return u

    def better(x: Tensor, k: int, v: Tensor, best: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        y = robot.system.step(x, v)
        there = lattice.at(stored[k - 1], lattice.places(y))
        there = torch.minimum(there, room(robot, y).float())
        gain = there > best
        return torch.where(gain, there, best), torch.where(gain[:, None], v, u)

    return policy


def reached_by(
    lattice: Lattice, policy: Callable[[Tensor, int], Tensor], steps: int, candidates: Tensor
) -> Tensor:
    """`arrives` at the flagged grid points, in chunks. (P,) bool -> (P,) bool."""
    x, found = lattice.points(), torch.zeros_like(candidates)
    for chunk in candidates.nonzero()[:, 0].split(CHUNK):
        found[chunk] = arrives(lattice.robot, x[chunk], policy, steps)
    return found


@dataclass(frozen=True)
class EndCell:
    """End states: bounds of theta and v, and of py in the base set anywhere on them."""

    theta: tuple[float, float]
    v: tuple[float, float]
    py: tuple[float, float]


def end_cells(robot: Robot, cells: tuple[int, int]) -> list[EndCell]:
    """Boxes of (theta, v) that cover the base set, each with the py that it can have there."""
    base = robot.base_controller
    p, level, cruise = base.value, robot.base_set.level, base.error.cruise_speed  # type: ignore
    extent = np.sqrt(level * np.diag(np.linalg.inv(p)))
    found = []
    thetas = np.linspace(-extent[2], extent[2], cells[0] + 1)
    speeds = np.linspace(-extent[1], extent[1], cells[1] + 1)
    shape = p[np.ix_([0, 2], [0, 2])]
    spread = np.linalg.inv(shape)
    for a, b in zip(thetas, thetas[1:], strict=False):
        for c, d in zip(speeds, speeds[1:], strict=False):
            left = level - p[1, 1] * (0.0 if c < 0.0 < d else min(c * c, d * d))
            if left <= 0.0:
                continue
            ends = []
            for side in (-1.0, 1.0):  # the widest py over [a, b]: at its own theta, or nearest it
                widest = side * spread[0, 1] * np.sqrt(left / spread[0, 0])
                theta = np.clip(widest, a, b)
                rest = left - theta**2 * (shape[1, 1] - shape[0, 1] ** 2 / shape[0, 0])
                ends.append(
                    -shape[0, 1] / shape[0, 0] * theta
                    + side * np.sqrt(max(rest, 0.0) / shape[0, 0])
                    if rest >= 0.0
                    else np.nan
                )
            if not np.isnan(ends).any():
                found.append(EndCell((a, b), (cruise + c, cruise + d), (ends[0], ends[1])))
    return found


def reachable(lattice: Lattice, steps: int, cells: list[EndCell]) -> Tensor:
    """Grid points that the bands do not rule out. -> (P,) bool."""
    robot, (py, speeds, headings) = lattice.robot, lattice.axes
    dv, dtheta = rates(robot)
    limits = [(c.low, c.high) for c in robot.system.states]
    found = np.zeros(lattice.shape, bool)
    for cell in cells:
        v, some_v = _band(speeds, cell.v, steps, dv, limits[1])
        theta, some_theta = _band(headings, cell.theta, steps, dtheta, limits[2])
        slow, fast = v[0][:, :, None], v[1][:, :, None]
        left, right = (motion(robot, 1.0, bound)[:, None] for bound in theta)
        least = np.cumsum(np.where(left < 0.0, fast, slow) * left, 0)
        most = np.cumsum(np.where(right > 0.0, fast, slow) * right, 0)
        low = np.maximum(cell.py[0] - most[-1], limits[0][0] - most.min(0).clip(max=0.0))
        high = np.minimum(cell.py[1] - least[-1], limits[0][1] - least.max(0).clip(min=0.0))
        arrives = (py[:, None, None] >= low) & (py[:, None, None] <= high)
        found[np.ix_(np.arange(len(py)), some_v, some_theta)] |= arrives
    return torch.from_numpy(found.reshape(-1))


def rates(robot: Robot) -> tuple[float, float]:
    """How far v and theta move at most in a step, away from the ends of v."""
    middle = torch.tensor([0.5 * (c.low + c.high) for c in robot.system.states]).double()
    moved = (robot.system.step(middle.expand(4, 3), inputs(robot, 2)) - middle).abs().amax(0)
    return float(moved[1]), float(moved[2])


def motion(robot: Robot, speed: Array | float, heading: Array) -> Array:
    """How far py moves in one step from py = 0."""
    v, theta = (torch.as_tensor(a) for a in np.broadcast_arrays(speed, heading))
    x = torch.stack((torch.zeros_like(theta), v, theta), -1)
    return robot.system.step(x, x.new_zeros(2))[..., 0].numpy()


def _band(
    start: Array, end: tuple[float, float], steps: int, rate: float, limits: tuple[float, float]
) -> tuple[tuple[Array, Array], NDArray[np.intp]]:
    """Lowest and highest value at steps 0 .. N-1 on the way from a start into `end`, for the Q
    starts from which there is one. -> 2 x (steps, Q), their places.
    """
    near = (start >= end[0] - steps * rate) & (start <= end[1] + steps * rate)
    start, k = start[near], np.arange(steps)[:, None]
    low = np.maximum(np.maximum(start - k * rate, end[0] - (steps - k) * rate), limits[0])
    high = np.minimum(np.minimum(start + k * rate, end[1] + (steps - k) * rate), limits[1])
    return (low, high), near.nonzero()[0]


def require_structure(robot: Robot) -> None:
    """What the half grid and the upper bound rest on, at random states; SystemExit otherwise."""
    generator = torch.Generator().manual_seed(0)
    low, high = ends(robot.system.states)
    x = low + (high - low) * torch.rand(512, 3, generator=generator).double()
    least, most = ends(robot.system.inputs)
    u = least + (most - least) * torch.rand(512, 2, generator=generator).double()
    y = robot.system.step(x, u)
    flip, turn = x.new_tensor([-1.0, 1.0, -1.0]), x.new_tensor([1.0, -1.0])
    slope = torch.from_numpy(motion(robot, 1.0, x[:, 2].numpy()))
    claims = {
        "symmetric": robot.system.step(x * flip, u * turn) - y * flip,
        "safe set symmetric": robot.safe_set(x * flip).amin(-1) - robot.safe_set(x).amin(-1),
        "base set symmetric": robot.base_set(x * flip) - robot.base_set(x),
        "py moved by v s(theta)": y[:, 0] - x[:, 0] - x[:, 1] * slope,
        "s rising": np.minimum(np.diff(motion(robot, 1.0, np.sort(x[:, 2]))), 0.0),
        "rates bounded": ((y - x).abs()[:, 1:] - y.new_tensor(rates(robot))).clamp(min=0.0),
    }
    for claim, error in claims.items():
        if float(torch.as_tensor(error).abs().max()) > 1e-12:
            raise SystemExit(f"{robot.name} is not as this script needs it: {claim}")


@dataclass(frozen=True)
class Enclosure:
    """The answer for one horizon: shares of the grid, and the flags (P,) that they count."""

    horizon: int
    backup: float
    reached: float
    estimate: float
    reachable: float
    flags: Tensor


def enclose(
    lattice: Lattice, horizons: tuple[int, ...], levels: int, cells: tuple[int, int]
) -> Iterator[Enclosure]:
    """One answer per horizon, in rising order; `flags` are those of `reached`."""
    robot = lattice.robot
    require_structure(robot)
    goals = end_cells(robot, cells)
    say(f"dynamic programming to N = {max(horizons)} on half of {SHAPE}: {lattice.shape}")
    stored = list(values(lattice, max(horizons), levels))
    best = greedy(lattice, stored, levels)
    reached = torch.zeros(len(lattice.points()), dtype=torch.bool)
    for n in sorted(horizons):
        upper = reachable(lattice, n, goals)
        backup = reached_by(lattice, lambda x, _: robot.backup_policy(x), n, upper)
        # What arrives in fewer steps stays in the base set: no second look is needed.
        reached = reached | backup
        reached |= reached_by(lattice, best, n, upper & ~reached)
        estimate = lattice.share(stored[n].reshape(-1) >= 0.0)
        shares = (lattice.share(backup), lattice.share(reached), estimate, lattice.share(upper))
        yield Enclosure(n, *shares, reached)


def measure(args: argparse.Namespace) -> Report:
    """The table over horizons."""
    report = Report("arrival_optimum", (__doc__ or "").splitlines()[0], machine.describe(PACKAGES))
    shape, horizons, cells = (
        (QUICK_SHAPE, QUICK_HORIZONS, QUICK_CELLS) if args.quick else (SHAPE, HORIZONS, CELLS)
    )
    lattice = Lattice.of(ROBOTS[ROBOT](), shape)
    grid = " x ".join(map(str, shape))
    table = Table(
        f"Share of C x [0, 12] (grid {grid} over py, v, theta) that can be recovered in N steps",
        ("N", "analytic backup", "some policy, rolled out", "dynamic programming", "upper bound"),
    )
    started, masks = time.monotonic(), {}
    for answer in enclose(lattice, horizons, LEVELS, cells):
        row = (answer.backup, answer.reached, answer.estimate, answer.reachable)
        table.rows.append([str(answer.horizon), *(f"{share:.4f}" for share in row)])
        report.numbers[f"N_{answer.horizon}"] = dict(
            zip(("backup", "reached", "estimate", "reachable"), row, strict=True)
        )
        masks[f"reached_{answer.horizon}"] = np.packbits(answer.flags.numpy())
        say(f"{time.monotonic() - started:5.0f} s  {' '.join(map(str, table.rows[-1]))}")
    if args.masks:
        np.savez_compressed(args.masks, shape=np.array(shape), **masks)
    report.tables.append(table)
    report.notes.append(
        "The optimum lies between the third and the last column. The estimate of the dynamic "
        "programming has no side: interpolation errs both ways. The upper bound knows neither "
        "that one and the same v has to serve a turn that changes sign on the way, nor the points "
        f"between {len(end_cells(lattice.robot, cells))} cells of end states."
    )
    return report


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--masks", type=Path, metavar="FILE.npz", help="write which grid points were reached"
    )


if __name__ == "__main__":
    raise SystemExit(run_script("arrival_optimum", __doc__ or "", measure, _arguments))
