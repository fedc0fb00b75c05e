"""Gain, shape and level of a base set together. Untrusted: what it finds has to be proved.

    python -m safe_rl_systems.verification.synthesis quadrotor

solves a linear matrix inequality on sampled slopes (`lmi`), improves its solution by evolution on
the loop itself (`polish`), proves the result (`base_set`), and prints `designs/quadrotor.json`
with it. Where linear algebra rounds otherwise, the search may end in another design of that kind.

What to ask for is `OPTIONS`, and it decides whether the proof closes and with how many cells:

- small input ranges, so low gains: an input that is driven far is known to the proof only as a
  wide interval, and the measurement error enters through the gain;
- not too small extents: omega and nu weigh the more, the smaller the set;
- some gap. The evolution knows omega and nu from points, the proof from intervals; about a third
  of the gap goes there, and the number of cells grows steeply as the rest shrinks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.base_set import BaseProof, Settings, prove
from safe_rl_systems.verification.certify import CELL_SPLITS
from safe_rl_systems.verification.interval import Interval
from safe_rl_systems.verification.lmi import Design, Targets, closure, solve
from safe_rl_systems.verification.polish import Wish, polish, with_design
from safe_rl_systems.verification.slopes import Box, slopes

Array = NDArray[np.float64]
Tell = Callable[[str], None]

_SAMPLES = 12


@dataclass(frozen=True)
class Start:
    """What the inequality asks of the design that the evolution starts from.

    At slopes sampled in `share` of extents and input ranges it asks for `contraction` - `slack`:
    they do not reach as far as the set does. Of 1 - `contraction` the disturbance may take the
    share `disturbance`, the measurement error the rest.
    """

    contraction: float = 0.98
    slack: float = 0.01
    share: float = 0.35
    disturbance: float = 0.6


def first_design(problem: BaseProblem, wish: Wish, start: Start, period: float) -> Design | None:
    """The largest solution of the inequality, or None."""
    room = np.minimum(problem.input_high - problem.input, problem.input - problem.input_low)
    drive = np.minimum(room, wish.drive)
    rest = 1.0 - start.contraction
    targets = Targets(
        samples=sampled_slopes(problem, start.share * wish.extent, start.share * drive),
        contraction=start.contraction - start.slack,
        omega=start.disturbance * rest,
        nu=(1.0 - start.disturbance) * rest,
        extent=wish.extent,
        drive=drive,
        disturbance=problem.disturbance,
        tracking_error=problem.tracking_error,
        period=period,
        group=wish.group,
    )
    found = solve(targets, None)
    return None if found is None else solve(targets, found) or found


def sampled_slopes(problem: BaseProblem, extent: Array, drive: Array) -> list[tuple[Array, Array]]:
    """Slopes (S_e, S_v) at 0 and at corners, edges and faces of the box of (e, v)."""
    k, m = len(extent), len(drive)
    rng = np.random.default_rng(0)
    x = rng.choice((-1.0, 0.0, 1.0), p=(0.4, 0.2, 0.4), size=(_SAMPLES, k + m))
    x *= np.concatenate((extent, drive))
    x[0] = 0.0
    _, s = slopes(
        problem.program,
        "error_map",
        {"s": problem.schedule, "w": np.zeros(k)},
        [Box("e", Interval(x[:, :k])), Box("v", Interval(x[:, k:]))],
    )
    return [(mid[:, :k], mid[:, k:]) for mid in s.mid if np.isfinite(mid).all()]


def synthesise(
    problem: BaseProblem,
    wish: Wish,
    start: Start,
    settings: Settings,
    period: float,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> BaseProof:
    """The proof, or what became of it, of a design for the wish; `problem` supplies the rest.

    Starts processes unless settings.workers is 1: call it from under `if __name__ == "__main__"`.
    """
    design = first_design(problem, wish, start, period)
    if design is None:
        raise CertificateError(
            f"the linear matrix inequality has no solution for extents {wish.extent.tolist()}: "
            f"ask for less contraction or slack than in {start}, or let inputs go further"
        )
    tell(f"inequality solved, log det {np.linalg.slogdet(design.spread)[1]:.3f}")
    design = polish(problem, wish, design, seed, tell)
    return prove(with_design(problem, design, wish.lead_row), settings)


def summary(proof: BaseProof) -> str:
    """One line for people."""
    problem = proof.problem
    return (
        f"{proof.status}, rho {proof.contraction:.4f} omega {proof.disturbance_norm:.4f} "
        f"nu {proof.estimate_norm:.4f}, found {proof.nominal.value:.4f}, "
        f"extent {np.round(problem.extent, 3).tolist()}, volume {problem.volume:.4g}, "
        f"{proof.state.cells} cells, {len(proof.state.leaves_low)} leaves, {proof.seconds:.1f} s"
        + (f"; {proof.advice}" if proof.advice else "")
    )


@dataclass(frozen=True)
class Options:
    """What to ask for a robot: extents (k), input ranges (m) and gap of the wish, and the start.

    `swaps` are symmetries of the loop besides its sign vectors, as signed permutations of (e, v):
    entry i is the place that i takes its value from, counted from 1, with its sign.
    """

    robot: str
    extent: tuple[float, ...]
    drive: tuple[float, ...]
    gap: float
    swaps: tuple[tuple[int, ...], ...] = ()
    lead_row: int | None = None
    start: Start = Start()


OPTIONS = {
    "quadrotor": Options(
        "quadrotor_robust",
        extent=(1.02, 1.02, 0.968, 2.4, 2.4, 2.4, 0.55, 0.55, 0.4),
        drive=(5.0, 2.5, 2.5, 1.5),
        gap=0.010,
        # x and y exchanged; tilt and rates are axial
        swaps=((2, 1, 3, 5, 4, 6, -8, -7, -9, 10, -12, -11, -13),),
        lead_row=0,
    ),
    "unicycle": Options(
        "unicycle_robust",
        extent=(1.7, 0.7, 4.0),
        drive=(4.0, 0.85),
        gap=0.006,
    ),
    "quadrotor_paper": Options(
        "quadrotor_powerloop_paper",
        extent=(0.98, 2.5, 2.5, 2.8, 0.9, 0.9, 1.2),
        drive=(9.0, 6.0, 6.0, 3.0),
        gap=0.010,
        swaps=((1, 3, 2, 4, -6, -5, -7, 8, -10, -9, -11),),
        lead_row=0,
    ),
    "unicycle_paper": Options(
        "unicycle_lane_paper",
        extent=(1.78, 4.5, 1.04),
        drive=(4.9, 0.98),
        gap=0.008,
    ),
}


def symmetry_group(
    problem: BaseProblem, swaps: Sequence[Sequence[int]] = ()
) -> list[tuple[Array, Array]]:
    """The matrices (S_e, S_v) of the problem's sign vectors and of further signed permutations."""
    k, m = len(problem.factor), len(problem.input)
    generators = []
    for signs in problem.symmetries:
        s = np.array(signs, np.float64)
        generators.append((np.diag(s[:k]), np.diag(s[k : k + m])))
    for swap in swaps:
        source = np.array(swap)
        matrix = np.zeros((k + m, k + m))
        matrix[np.arange(k + m), np.abs(source) - 1] = np.sign(source)
        generators.append((matrix[:k, :k], matrix[k:, k:]))
    return closure(generators)


def constants(proof: BaseProof, file: Mapping[str, Any], command: str) -> str:
    """A constants file with the design in the place of its own: numbers parse back to the bits."""
    problem = proof.problem
    design = {
        "base_made": command,
        "base_gain": problem.gain.tolist(),
        "base_factor": problem.factor.tolist(),
    }
    return json.dumps({**file, **design}, indent=1) + "\n"


def main() -> None:
    """Synthesise a robot's base set; prints its file of `safe_rl_systems.designs` anew."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("robot", choices=sorted(OPTIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: all cores)")
    parser.add_argument("--max-cells", type=int, default=60_000)
    args = parser.parse_args()
    started = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    options = OPTIONS[args.robot]
    extent, drive = np.array(options.extent), np.array(options.drive)
    problem, period = problem_of(options)
    group = symmetry_group(problem, options.swaps)
    wish = Wish(extent, drive, options.gap, group, options.lead_row)
    splits = (CELL_SPLITS,) * len(problem.cell_directions)
    settings = Settings(splits, workers=args.workers, max_cells=args.max_cells)
    proof = synthesise(problem, wish, options.start, settings, period, args.seed, tell)
    tell(summary(proof))
    if not proof.proved:
        raise CertificateError(
            f"the design of {args.robot} is not proved ({proof.status}): try another seed, ask "
            "for a larger gap or smaller input ranges, or assume smaller bounds"
        )
    file = resources.files("safe_rl_systems.designs").joinpath(f"{args.robot}.json")
    command = f"python -m safe_rl_systems.verification.synthesis {args.robot} --seed {args.seed}"
    before = json.loads(file.read_text()) if file.is_file() else {}
    print(constants(proof, before, command), end="")


def problem_of(options: Options) -> tuple[BaseProblem, float]:
    """The robot's problem, with the published regulator where it is the robot's; its period."""
    from safe_rl_systems.robot import ROBOTS  # torch is needed for tracing only
    from safe_rl_systems.verification.published import published_problem
    from safe_rl_systems.verification.robot_problem import robot_problem

    robot = ROBOTS[options.robot]()
    if robot.robust is None:
        return published_problem(robot, 1.0), robot.system.period
    return robot_problem(robot, np.array(options.extent)), robot.system.period


if __name__ == "__main__":
    main()
