"""How does the shipped quadrotor fly the powerloop in full physics, under the ceiling?

Every flight has its own vehicle (mass and thrust curve differ), sensor noise, rotor lag and a
body-rate loop; the rows with a delay hold every command back for that many periods more. Who
flies: the shipped policy, and the tracker that its training began with, behind the same nominal
shield. The distance is that of positions at the same time to the best safe trajectory that
best_safe.py found:

    python benchmarks/best_safe.py --robots quadrotor_powerloop --margins bundle --laps 5 \
        --out runs/best_safe
    python benchmarks/full_physics.py

Flights are kept in pieces in --resume, so it can be stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safe_rl.episodes import Runner, Scenario
from safe_rl_core import Bundle
from safe_rl_core.bundle import file_hash
from safe_rl_core.errors import ModelError
from safe_rl_core.metrics import summarise, wilson
from toolbox import machine
from toolbox.kept import kept
from toolbox.report import Report, Table, Target, run_script, say
from toolbox.trackers import tracker_bundle

Array = NDArray[np.float64]
ROOT = Path(__file__).parents[1]
NAME = "quadrotor_powerloop"
#: Largest distance to the best safe trajectory that was asked for, root mean square, m.
LIMIT = 0.35
COLUMNS = (
    "who flies", "more delay, periods", "flights", "unsafe", "safety, 95 %", "least margin",
    "RMS to the best safe trajectory, m", "worst flight, m", "return", "intervention rate",
    "fallback rate",
)  # fmt: skip


@dataclass(frozen=True)
class Flights:
    """Flights of one row: bundle, delay beyond the model's, and which seeds."""

    folder: Path
    delay: int
    first: int
    count: int
    noise: float
    trajectory: Path


def fly(asked: Flights) -> dict[str, Any]:
    """The scores of these flights, one list per score."""
    bundle = Bundle.load(asked.folder)
    best = positions(asked.trajectory, bundle)
    runner = Runner(
        Scenario(
            str(asked.folder),
            "bullet",
            "onnx",
            True,
            len(best) - 1,
            "task",
            asked.noise,
            asked.delay,
            nominal=True,
        )  # fmt: skip
    )
    found: dict[str, list[Any]] = {}
    for seed in range(asked.first, asked.first + asked.count):
        log = runner.fly(seed)
        scores = summarise(bundle, log)
        gap = log.x_true[:, : best.shape[1]] - best
        for name, value in {
            "unsafe": int(scores["violations"] > 0),
            "margin": scores["worst_margin"],
            "row": scores["worst_row"],
            "square": float((gap**2).sum(1).mean()),
            "return": scores["return"],
            "corrected": scores["intervention_rate"],
            "backup": scores["interventions"]["BACKUP"] / scores["steps"],
        }.items():
            found.setdefault(name, []).append(value)
    return found


def positions(path: Path, bundle: Bundle) -> Array:
    """The positions (K+1, 3) of a trajectory that best_safe.py has saved for this robot."""
    if not path.is_file():
        raise ModelError(f"no trajectory {path}; the commands above make it")
    with np.load(path, allow_pickle=False) as stored:
        states, t = stored["states"], stored["t"]
    if states.shape[1] != len(bundle.states) or abs(t[1] - t[0] - bundle.period) > 1e-9:
        raise ModelError(f"{path} is no trajectory of {bundle.name}; make it again")
    return states[:, :3]


def row(args: argparse.Namespace, folder: Path, delay: int) -> dict[str, Any]:
    """All flights of one row, in pieces that several processes fly."""
    pieces = []
    for first in range(args.seed, args.seed + args.flights, args.piece):
        count = min(args.piece, args.seed + args.flights - first)
        pieces.append(Flights(folder, delay, first, count, args.noise, args.trajectory))
    found: dict[str, list[Any]] = {}
    jobs = [(args.resume, piece) for piece in pieces]
    for piece in map(_kept, jobs) if args.jobs == 1 else _in_processes(jobs, args.jobs):
        for name, values in piece.items():
            found.setdefault(name, []).extend(values)
        say(f"{folder.parent.name}, delay {delay}: {len(found['unsafe'])} flights")
    return found


def _in_processes(jobs: list[tuple[Path, Flights]], count: int) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")  # onnxruntime's threads do not survive a fork
    with context.Pool(min(count, len(jobs))) as pool:
        yield from pool.imap(_kept, jobs)


def _kept(job: tuple[Path, Flights]) -> dict[str, Any]:
    folder, flights = job
    bundle, best = Bundle.load(flights.folder).hash, file_hash(flights.trajectory)
    asked = {
        "bundle": bundle, "trajectory": best, "delay": flights.delay, "first": flights.first,
        "count": flights.count, "noise": flights.noise,
    }  # fmt: skip
    file = f"{bundle[:12]}_{best[:12]}_{flights.delay}_{flights.first}.json"
    return kept(folder / file, asked, lambda: fly(flights))


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Who flies, and in which bundle: the tracker behind the shipped bundle's own shield."""
    shipped = args.models / NAME
    yield "shipped policy", shipped
    yield "tracker", tracker_bundle(shipped, args.resume / "tracker").path


def measure(args: argparse.Namespace) -> Report:
    """The report."""
    if args.quick:
        args.flights = min(args.flights, 2)
    about = machine.describe(("safe_rl_core", "sim_bridge", "numpy", "pybullet"))
    report = Report("full_physics", (__doc__ or "").splitlines()[0], about)
    table = Table(f"{NAME} in PyBullet, sensor noise {args.noise:g}", COLUMNS)
    for who, folder in cases(args):
        for delay in args.delays:
            found = row(args, folder, delay)
            flights, unsafe = len(found["unsafe"]), sum(found["unsafe"])
            low, high = wilson(flights - unsafe, flights)
            worst = int(np.argmin(found["margin"]))
            rms = float(np.sqrt(np.mean(found["square"])))
            table.rows.append(
                [
                    who, delay, flights, unsafe, f"{low:.4f} to {high:.4f}",
                    f"{found['margin'][worst]:+.3f} ({found['row'][worst]})", rms,
                    float(np.sqrt(max(found["square"]))), float(np.mean(found["return"])),
                    f"{100 * np.mean(found['corrected']):.1f} %",
                    f"{100 * np.mean(found['backup']):.2f} %",
                ]
            )  # fmt: skip
            report.numbers[f"{who}/{delay}"] = {**found, "rms": rms, "unsafe_flights": unsafe}
            if who == "shipped policy":
                label = f"shipped policy, {delay} more period(s) of delay"
                report.targets += [
                    Target(f"unsafe flights, {label}", unsafe, "<=", 0),
                    Target(f"RMS, {label}", rms, "<=", LIMIT, "m"),
                ]
    report.tables.append(table)
    report.notes.append(
        f"Flights of seeds from {args.seed} on, all laps of the trajectory from a drawn start of "
        "the task. Unsafe: some true state at a sample outside of the safe set (ceiling, floor, "
        "sides). RMS: over all samples of all flights. The trajectory begins at the centre of the "
        "drawn starts, and its time is the flight's."
    )
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to fly, how often, and where it is kept."""
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="shipped bundles")
    trajectory = ROOT / "runs" / "best_safe" / f"{NAME}_bundle_5_laps.npz"
    parser.add_argument("--trajectory", type=Path, default=trajectory, metavar="FILE.npz")
    parser.add_argument("--flights", type=int, default=200, help="per row")
    parser.add_argument("--piece", type=int, default=10, help="flights kept at once")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 1], help="periods")
    parser.add_argument("--noise", type=float, default=1.0, help="of the sensors")
    parser.add_argument("--seed", type=int, default=0, help="of the first flight")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    folder = ROOT / "runs" / "full_physics"
    parser.add_argument("--resume", type=Path, default=folder, metavar="DIR", help="its pieces")


if __name__ == "__main__":
    raise SystemExit(run_script("full_physics", __doc__ or "", measure, arguments))
