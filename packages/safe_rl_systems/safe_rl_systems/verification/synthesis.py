"""Gain, shape and level of a base set together. Untrusted: what it finds has to be proved.

    python -m safe_rl_systems.verification.synthesis quadrotor

tries a list of wishes, for each one a linear matrix inequality on sampled slopes (`lmi`), then
evolution on the loop itself (`polish`), then the proof (`base_set`), and keeps the design of the
largest log det that is proved. It prints the constants as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.base_set import BaseProof, Settings, prove
from safe_rl_systems.verification.interval import Interval
from safe_rl_systems.verification.lmi import Design, Targets, closure, solve
from safe_rl_systems.verification.polish import Wish, polish, with_design
from safe_rl_systems.verification.slopes import Box, slopes

Array = NDArray[np.float64]
Tell = Callable[[str], None]

_SAMPLES = 12
#: (rho, slack, share of the limits at which slopes are sampled) of the inequality.
_ATTEMPTS = ((0.98, 0.0, 0.4), (0.985, 0.0, 0.4), (0.97, 0.0, 0.4), (0.99, 0.0, 0.3))


def first_design(problem: BaseProblem, wish: Wish, period: float) -> Design | None:
    """The largest solution of the inequality over a few targets, or None."""
    room = np.minimum(problem.input_high - problem.input, problem.input - problem.input_low)
    drive = np.minimum(room, wish.drive)
    best: Design | None = None
    for contraction, slack, share in _ATTEMPTS:
        targets = Targets(
            samples=sampled_slopes(problem, share * wish.extent, share * drive),
            contraction=contraction - slack,
            omega=1.0 - contraction,
            nu=1.0 - contraction,
            extent=wish.extent,
            drive=drive,
            disturbance=problem.disturbance,
            tracking_error=problem.tracking_error,
            period=period,
            group=wish.group,
        )
        found = solve(targets, None)
        if found is not None:
            found = solve(targets, found) or found
            if best is None or np.linalg.det(found.spread) > np.linalg.det(best.spread):
                best = found
    return best


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
    settings: Settings,
    period: float,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> BaseProof | None:
    """The proof of a design for the wish, None if none was proved; `problem` supplies the rest.

    Starts processes unless settings.workers is 1: call it from under `if __name__ == "__main__"`.
    """
    design = first_design(problem, wish, period)
    if design is None:
        tell(f"extent {wish.extent}, gap {wish.gap}: the inequality has no solution")
        return None
    design = polish(problem, wish, design, seed, tell)
    proof = prove(with_design(problem, design, wish.lead_row), settings)
    tell(f"extent {wish.extent}, gap {wish.gap}: {summary(proof)}")
    return proof if proof.proved else None


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
    """What to ask for a robot: wishes (extents (k), input ranges (m), gap), cells to start from.

    `swaps` are symmetries of the loop besides its sign vectors, as signed permutations of (e, v):
    entry i is the place that i takes its value from, counted from 1, with its sign.
    """

    robot: str
    wishes: tuple[tuple[tuple[float, ...], tuple[float, ...], float], ...]
    splits: int
    swaps: tuple[tuple[int, ...], ...] = ()
    lead_row: int | None = None


OPTIONS = {
    "quadrotor": Options(
        "quadrotor_robust",
        (
            ((1.15, 1.15, 1.05, 3.0, 3.0, 3.0, 0.6, 0.6, 0.4), (15.0, 3.5, 3.5, 2.0), 0.012),
            ((1.00, 1.00, 1.00, 3.0, 3.0, 3.0, 0.5, 0.5, 0.3), (15.0, 3.0, 3.0, 2.0), 0.010),
        ),
        splits=2,
        # x and y exchanged; tilt and rates are axial
        swaps=((2, 1, 3, 5, 4, 6, -8, -7, -9, 10, -12, -11, -13),),
        lead_row=0,
    ),
    "unicycle": Options("unicycle_robust", (((1.78, 1.03, 4.95), (4.95, 0.99), 0.006),), splits=4),
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


def constants(proof: BaseProof, command: str, seed: int) -> str:
    """The design as the text of a constants file: numbers that parse back to the same bits."""
    problem = proof.problem
    tables = {"base_gain": problem.gain, "base_factor": problem.factor}
    lines = [
        f' "{name}": [\n'
        + ",\n".join("  " + json.dumps([float(x) for x in row]) for row in table)
        + "\n ]"
        for name, table in tables.items()
    ]
    lines.append(f' "base_result": {json.dumps(summary(proof))}')
    lines.append(f' "command": {json.dumps(command)},\n "seed": {seed}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Command line: synthesise a robot's base set; its constants go to standard output."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("robot", choices=sorted(OPTIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: all cores)")
    parser.add_argument("--max-cells", type=int, default=60_000)
    args = parser.parse_args()
    started = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    best: BaseProof | None = None
    options = OPTIONS[args.robot]
    for extent, drive, gap in options.wishes:
        problem, period = _robot(options.robot, np.array(extent))
        group = symmetry_group(problem, options.swaps)
        wish = Wish(np.array(extent), np.array(drive), gap, group, options.lead_row)
        splits = (options.splits,) * len(problem.cell_directions)
        settings = Settings(splits, workers=args.workers, max_cells=args.max_cells)
        proof = synthesise(problem, wish, settings, period, args.seed, tell)
        if proof is not None and (best is None or proof.problem.volume > best.problem.volume):
            best = proof
    if best is None:
        raise CertificateError(
            f"no design of {args.robot} could be proved: ask for smaller extents or a larger gap, "
            "or assume smaller disturbance and estimate error"
        )
    command = f"python -m safe_rl_systems.verification.synthesis {args.robot}"
    print(constants(best, command, args.seed), end="")


def _robot(name: str, extent: Array) -> tuple[BaseProblem, float]:
    from safe_rl_systems.robot import ROBOTS  # torch is needed for tracing only
    from safe_rl_systems.verification.robot_problem import robot_problem

    robot = ROBOTS[name]()
    return robot_problem(robot, extent), robot.system.period


if __name__ == "__main__":
    main()
