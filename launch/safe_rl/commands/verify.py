"""`safe-rl verify`: derive and prove a bundle's certificate, then check it independently."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_rl_core.bundle import Bundle, certify
from safe_rl_core.certificate import JSON_FILE, TABLES_FILE
from safe_rl_core.errors import SafeRLError
from safe_rl_core.progress import Progress

from safe_rl.commands.common import add_parser, whole
from safe_rl.environment import machine
from safe_rl.report.text import Row, emphasise, print_table

if TYPE_CHECKING:
    from safe_rl_systems.verification.base_set import BaseProof

DESCRIPTION = """\
Prove what a robust bundle claims, from its program and its stated assumptions alone, and check the
result with a second program that shares nothing with the first but the program file.

  safe-rl verify models/unicycle_robust               derive, prove, check, write the certificate
  safe-rl verify models/unicycle_robust --check-only  only check the certificate that is there
  safe-rl verify quadrotor_powerloop_paper --level 8  is a published base set invariant?

The certificate is written only after the independent check has accepted it. When the base set
cannot be proved, a state that leaves it is printed if one is found, else what stays open and why.
Exit code: 0 proved and accepted, 1 refused or not proved, 2 wrong use.
"""
FILES = (JSON_FILE, TABLES_FILE, "bundle.yaml", "SHA256SUMS")


def add_command(subparsers: Any) -> None:
    """Add `verify` to the command line."""
    parser = add_parser(subparsers, "verify", "prove a bundle's certificate", DESCRIPTION)
    parser.add_argument("bundle", help="name or folder of a bundle, e.g. models/unicycle_robust")
    parser.add_argument(
        "--check-only", action="store_true", help="only check the certificate in the bundle"
    )
    parser.add_argument(
        "--level", type=float, metavar="C", help="a published set e'Pe <= C, instead of its own"
    )
    parser.add_argument("--jobs", type=whole(1), metavar="J", help="processes, default all cores")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="keep the search there, and go on from it"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prove, check, write; the exit code."""
    bundle = Bundle.load(args.bundle)
    if args.check_only:
        if bundle.robust is None:
            raise SafeRLError(f"{bundle.name} carries no certificate that could be checked")
        return 0 if check(bundle.path, args.jobs) else 1
    if importlib.util.find_spec("safe_rl_systems") is None:
        raise SafeRLError(
            "proving needs the package safe_rl_systems (make setup-test installs it); "
            "--check-only works without it"
        )
    if bundle.assumptions is None:
        return _published(bundle, args)
    return _prove(bundle, args)


def check(folder: Path, jobs: int | None) -> bool:
    """Print what the independent checker says of the certificate in a folder."""
    if importlib.util.find_spec("flint") is None:
        raise SafeRLError("the independent check needs python-flint: pip install python-flint")
    from safe_rl_core.checker import check as independent_check

    print("\nindependent check (ball arithmetic)")
    started, bar = time.perf_counter(), None

    def tell(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or Progress("checked", total)
        bar.advance()

    report = independent_check(folder, tell, jobs)
    if bar is not None:
        bar.close()
    print_table([Row(f.item, f"{f.verdict}: {f.detail}") for f in report.findings])
    word = "ACCEPTED" if report.accepted else "REFUSED"
    print(emphasise(f"{word} after {time.perf_counter() - started:.0f} s", good=report.accepted))
    return report.accepted


def _prove(bundle: Bundle, args: argparse.Namespace) -> int:
    import safe_rl_systems
    from safe_rl_systems import sources
    from safe_rl_systems.verification.certify import certify as derive

    print(f"{bundle.name} ({bundle.hash[:12]}), program {bundle.program.hash[:12]}")
    _print_assumptions(bundle)
    started, line = time.perf_counter(), _Line()
    provenance = {
        "command": shlex.join(["safe-rl", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": machine(),
        **sources.state([Path(str(safe_rl_systems.__file__)).parent]),
    }
    outcome = derive(
        bundle,
        provenance=provenance,
        workers=args.jobs,
        state_file=args.resume,
        on_bounds=lambda what, done, parts: line.say(f"bounds: {what} {done}/{parts}"),
        on_cells=lambda p: line.say(
            f"base set: {p.cells} cells, {p.leaves} proved, {p.open} open, {p.seconds:.0f} s"
        ),
    )
    line.end()
    seconds = time.perf_counter() - started
    names = [channel["name"] for channel in bundle.assumptions["errors"]]
    _print_proof(outcome.proof, names, seconds)
    if outcome.certificate is None:
        return 1
    outcome.certificate.provenance["duration_s"] = round(seconds, 1)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / bundle.name
        shutil.copytree(bundle.path, copy)
        certify(copy, outcome.certificate)
        if not check(copy, args.jobs):
            print(f"{bundle.path} is unchanged")
            return 1
        for name in FILES:
            shutil.copyfile(copy / name, bundle.path / name)
    print(f"{bundle.path / JSON_FILE} written, bundle hash {Bundle.load(bundle.path).hash[:12]}")
    return 0


def _published(bundle: Bundle, args: argparse.Namespace) -> int:
    """The base set of a bundle from the literature: no disturbance, no estimate error."""
    from safe_rl_systems.robot import ROBOTS
    from safe_rl_systems.verification import base_set
    from safe_rl_systems.verification.published import published_problem

    if bundle.name not in ROBOTS:
        raise SafeRLError(
            f"{bundle.name} states no assumptions and is none of {', '.join(ROBOTS)}; give its "
            "robot a RobustDesign (docs/bounds.md)"
        )
    robot = ROBOTS[bundle.name]()
    level = args.level if args.level is not None else getattr(robot.base_set, "level", None)
    problem = published_problem(robot, level)
    print(f"{bundle.name}: is e'Pe <= {level:g} invariant, without disturbance and error?")
    line = _Line()
    splits = (6,) * len(problem.cell_directions)
    proof = base_set.prove(
        problem,
        base_set.Settings(cell_splits=splits, workers=args.jobs),
        lambda p: line.say(f"{p.cells} cells, {p.leaves} proved, {p.open} open"),
        args.resume,
    )
    line.end()
    _print_proof(proof, [f"e{i}" for i in range(len(problem.factor))], proof.seconds)
    return 0 if proof.proved else 1


def _print_assumptions(bundle: Bundle) -> None:
    rows = [
        Row(
            channel["name"],
            f"disturbance {channel['disturbance']:.3g}, estimate error "
            f"{channel['estimate_error']:.3g} {channel['unit']}",
        )
        for channel in bundle.assumptions["errors"]
    ]
    delay = Row(
        "delay, jitter", f"{bundle.delay_steps} periods, {bundle.assumptions['jitter_s']} s"
    )
    print("assumed, per period")
    print_table([*rows, delay])


def _print_proof(proof: BaseProof, names: Iterable[str], seconds: float) -> None:
    print(emphasise(f"base set: {proof.status} after {seconds:.0f} s", good=proof.proved))
    total = proof.contraction + proof.disturbance_norm + proof.estimate_norm
    extents = ", ".join(
        f"{name} {value:.3g}" for name, value in zip(names, proof.problem.extent, strict=True)
    )
    shares = (proof.contraction, proof.disturbance_norm, proof.estimate_norm)
    parts = zip(("contraction", "disturbance", "estimate error"), shares, strict=True)
    worst = f"{proof.worst.value:.4f} of 1, undisturbed {proof.nominal.value:.4f}"
    rows = [
        Row("shares of 1", " + ".join(f"{n} {v:.4f}" for n, v in parts) + f" = {total:.4f}"),
        Row("worst step found", worst),
        Row("half-widths", extents),
        Row("volume", f"{proof.problem.volume:.4g}"),
        Row("cells proved", f"{len(proof.state.leaves_low)}"),
    ]
    print_table(rows)
    if proof.status == "refuted":
        step = proof.worst
        print("counterexample: from")
        named = {
            "e": step.e,
            "measured off by": step.eta,
            "disturbance": step.w,
            "input": step.input,
            "next e": step.after,
        }
        for label, values in named.items():
            print(f"  {label:<16} {', '.join(f'{v:.9g}' for v in values)}")
        print(f"  |e|_P = {step.before:.6f} <= 1, after one period {step.value:.6f} > 1")
    if not proof.proved:
        print(proof.advice)


class _Line:
    """What is going on, on one line of stderr that is drawn over itself on a terminal."""

    def __init__(self) -> None:
        self._live, self._next, self._any = sys.stderr.isatty(), 0.0, False

    def say(self, text: str) -> None:
        """Show this, unless something was shown just now."""
        now = time.monotonic()
        if now >= self._next:
            self._next, self._any = now + (0.1 if self._live else 5.0), True
            sys.stderr.write(f"\r{text}\033[K" if self._live else f"{text}\n")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._live and self._any:
            print(file=sys.stderr)
