"""What do the implicit sets look like: base set, backup policies, and the best that is possible?

    python benchmarks/arrival_pictures.py --out DIR
    python benchmarks/arrival_pictures.py --out DIR --run unicycle_lane_paper=OUT/phase1

Slices through the state space. From every point of a slice the backup policy is rolled out on the
robot's own equations for N steps; its set is where the plan stays in the safe set, with the
margins of the shield, and ends in the base set. For the published unicycle the optimum is drawn
too: what some policy was seen to recover, and the bound beyond which none can
(`arrival_optimum.py`). The tuned and the learned backup are those of a run of phase I.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from arrival_optimum import (
    CELLS,
    LEVELS,
    QUICK_CELLS,
    Lattice,
    arrives,
    end_cells,
    greedy,
    reachable,
    values,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from safe_rl.report import style
from safe_rl_systems.backup.learned import load_backup, with_backup
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_training.arrival_tuning import with_tuning
from torch import Tensor

LANE = "unicycle_lane_paper"
QUADROTORS = ("quadrotor_powerloop_paper", "quadrotor_robust")
POINTS, QUICK_POINTS = 181, 31
#: Grid of the dynamic programming behind the slices of the optimum.
SHAPE, QUICK_SHAPE = (101, 61, 101), (21, 21, 21)
BASE, ANALYTIC = style.VERDICT_COLOURS["PASSED"], style.INK
TUNED, LEARNED = style.VERDICT_COLOURS["BACKUP"], style.MARGIN
OPTIMUM = style.VERDICT_COLOURS["PROJECTED"]
Grid = NDArray[np.bool_]
SYMBOLS = {"theta": "θ", "tilt": "tilt about y"}


@dataclass(frozen=True)
class Slice:
    """Two axes (name, unit, lowest, highest) and the states over them: (Q,), (Q,) -> (Q, n)."""

    title: str
    across: tuple[str, str, float, float]
    up: tuple[str, str, float, float]
    states: Callable[[Tensor, Tensor], Tensor]

    def grid(self, points: int) -> tuple[Tensor, Tensor]:
        """Both axes, (points,) each."""
        spans = (torch.linspace(a[2], a[3], points).double() for a in (self.across, self.up))
        return tuple(spans)  # type: ignore[return-value]

    def mesh(self, points: int) -> Tensor:
        """All states, `across` slowest: (points², n)."""
        a, b = torch.meshgrid(*self.grid(points), indexing="ij")
        return self.states(a.reshape(-1), b.reshape(-1))


def lane_slices(robot: Robot) -> tuple[Slice, Slice]:
    """(py, theta) at cruise speed and (py, v) with a heading away from the lane's."""
    py, v, theta = ((c.name, c.unit, c.low, c.high) for c in robot.system.states)
    zero = torch.zeros_like
    return (
        Slice("v = 5 m/s", py, theta, lambda a, b: torch.stack((a, zero(a) + 5.0, b), -1)),
        Slice("θ = 0.3 rad", py, v, lambda a, b: torch.stack((a, b, zero(a) + 0.3), -1)),
    )


def hover_slices(robot: Robot) -> tuple[Slice, Slice]:
    """(pz, vz) level, and (pz, tilt about y) on the way up."""
    box = {c.name: c for c in robot.system.states}
    pz, vz = ((c.name, c.unit, c.low, c.high) for c in (box["pz"], box["vz"]))
    tilt = ("tilt", "rad", -np.pi, np.pi)

    def state(z: Tensor, climb: Tensor, angle: Tensor) -> Tensor:
        o, half = torch.zeros_like(z), 0.5 * angle
        parts = (o, o, z, o, o, climb, torch.cos(half), o, torch.sin(half), o)
        return torch.stack(parts, -1)

    return (
        Slice("level", vz, pz, lambda a, b: state(b, a, torch.zeros_like(a))),
        Slice("vz = 3 m/s", tilt, pz, lambda a, b: state(b, torch.zeros_like(a) + 3.0, a)),
    )


def recovered(robot: Robot, cut: Slice, points: int) -> Grid:
    """Where the robot's backup policy is a way out."""
    with torch.no_grad():
        found = arrives(
            robot, cut.mesh(points), lambda x, _: robot.backup_policy(x), robot.horizon
        )
    return found.reshape(points, points).numpy()


def held(robot: Robot, cut: Slice, points: int) -> Grid:
    """The base set."""
    return (robot.base_set(cut.mesh(points)).amin(-1) >= 0.0).reshape(points, points).numpy()


def optimum(robot: Robot, cut: Slice, quick: bool) -> tuple[Grid, Grid]:
    """What some policy recovers, and what the bound does not rule out."""
    points = QUICK_POINTS if quick else POINTS
    coarse = Lattice.of(robot, QUICK_SHAPE if quick else SHAPE)
    stored = list(values(coarse, robot.horizon, LEVELS))
    x = cut.mesh(points)
    seen = arrives(robot, x, greedy(coarse, stored, LEVELS), robot.horizon)
    bound = possible(robot, x, QUICK_CELLS if quick else CELLS)
    return tuple(f.reshape(points, points).numpy() for f in (seen, bound))  # type: ignore


def possible(robot: Robot, x: Tensor, cells: tuple[int, int]) -> Tensor:
    """`reachable` at states (Q, 3) that lie on a plane across an axis: (Q,) bool."""
    axes = tuple(np.unique(x[:, i].numpy()) for i in range(3))
    found = reachable(Lattice(robot, axes), robot.horizon, end_cells(robot, cells))
    place = [np.searchsorted(axis, x[:, i].numpy()) for i, axis in enumerate(axes)]
    return found.reshape([len(axis) for axis in axes])[tuple(place)]


def draw(
    axes: Axes, cut: Slice, flags: Grid, colour: str, *, fill: float = 0.0, line: str = "-"
) -> None:
    """The edge of a set, and its inside where `fill` says how dense."""
    a, b = (axis.numpy() for axis in cut.grid(len(flags)))
    level = np.pad(flags.astype(float), 1)  # a set that ends with the slice has an edge there too
    a, b = (np.concatenate(([x[0]], x, [x[-1]])) for x in (a, b))
    if fill:
        axes.contourf(a, b, level.T, levels=(0.5, 1.5), colors=[colour], alpha=fill)
    axes.contour(a, b, level.T, levels=(0.5,), colors=[colour], linestyles=[line], linewidths=1.4)


def backups(robot: Robot, run: Path | None) -> dict[str, Robot]:
    """The robot with each of its backup policies: `run` is the folder of a phase I, if any."""
    if run is None:
        return {ANALYTIC: robot}
    tuning = json.loads((run / "record.json").read_text())["tuning"]
    tuned = {} if tuning is None else {TUNED: with_tuning(robot, tuning)}
    learned = with_backup(robot, load_backup(run / "backup.npz", robot))
    return {LEARNED: learned, **tuned, ANALYTIC: robot}


def panel(axes: Axes, robot: Robot, cut: Slice, policies: dict[str, Robot], quick: bool) -> None:
    """One slice of one robot; `policies` by colour, largest set first."""
    points = QUICK_POINTS if quick else POINTS
    for colour, policy in policies.items():
        fill = 0.0 if colour == TUNED else 0.15
        draw(axes, cut, recovered(policy, cut, points), colour, fill=fill)
    if robot.name == LANE:
        seen, bound = optimum(robot, cut, quick)
        draw(axes, cut, seen, OPTIMUM)
        draw(axes, cut, bound, OPTIMUM, line=":")
    draw(axes, cut, held(robot, cut, points), BASE, fill=0.8)
    for (name, unit, low, high), label, limits in (
        (cut.across, axes.set_xlabel, axes.set_xlim),
        (cut.up, axes.set_ylabel, axes.set_ylim),
    ):
        label(f"{SYMBOLS.get(name, name)} ({unit})")
        room = 0.03 * (high - low)
        limits(low - room, high + room)
    axes.set_title(f"{robot.name}: {cut.title}", fontsize=9)


def legend(colours: set[str], optimal: bool) -> list[Line2D | Patch]:
    """What the colours mean."""
    handles: list[Line2D | Patch] = [Patch(color=BASE, alpha=0.8, label="base set")]
    for colour, label in (
        (ANALYTIC, "analytic backup"),
        (TUNED, "its gains tuned"),
        (LEARNED, "learned backup"),
    ):
        if colour in colours:
            handles.append(Line2D([], [], color=colour, label=label))
    if optimal:
        handles += [
            Line2D([], [], color=OPTIMUM, label="some policy recovers"),
            Line2D([], [], color=OPTIMUM, linestyle=":", label="no policy beyond"),
        ]
    return handles


def picture(names: tuple[str, ...], runs: dict[str, Path], quick: bool) -> Figure:
    """A row of slices per robot."""
    colours: set[str] = set()
    with style.figure_style():
        figure = Figure(figsize=(7.6, 3.4 * len(names) + 0.5), layout="constrained")
        rows = figure.subplots(len(names), 2, squeeze=False)
        for panels, name in zip(rows, names, strict=True):
            robot = ROBOTS[name]()
            policies = backups(robot, runs.get(name))
            colours |= set(policies)
            cuts = (lane_slices if name == LANE else hover_slices)(robot)
            for axes, cut in zip(panels, cuts, strict=True):
                panel(axes, robot, cut, policies, quick)
        handles = legend(colours, LANE in names)
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def main() -> int:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/arrival_pictures.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    parser.add_argument("--quick", action="store_true", help="coarse: only to see that it works")
    parser.add_argument(
        "--run", action="append", default=[], metavar="ROBOT=DIR", help="may be repeated"
    )
    args = parser.parse_args()
    runs = {}
    for pair in args.run:
        name, _, folder = pair.partition("=")
        if name not in (LANE, *QUADROTORS) or not folder:
            parser.error(f"--run wants ROBOT=DIR with one of {(LANE, *QUADROTORS)}, got {pair}")
        runs[name] = Path(folder)
    args.out.mkdir(parents=True, exist_ok=True)
    for title, names in {
        "implicit_set_unicycle": (LANE,),
        "implicit_set_quadrotor": QUADROTORS,
    }.items():
        path = args.out / f"{title}.png"
        path.write_bytes(style.to_png(picture(names, runs, args.quick), dpi=150))
        print(f"{path}: {path.stat().st_size / 1024:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
