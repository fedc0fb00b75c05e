"""`safe-rl report`: judge a recorded run again and rebuild its report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_rl_core.bundle import Bundle

from safe_rl.commands.common import add_parser

if TYPE_CHECKING:
    from safe_rl.report.build import Report

DESCRIPTION = """\
Rebuild summary.json, report.html, overview.png and flight.gif of a run from its recording alone,
and print the verdict.

  safe-rl report runs/20260101-120000-quadrotor
  safe-rl report somewhere/recording.mcap --bundle models/quadrotor_powerloop --no-film

Exit code: 0 only when the run is complete and nothing was violated, else 1.
"""


def add_command(subparsers: Any) -> None:
    """Add `report` to the command line."""
    parser = add_parser(subparsers, "report", "rebuild the report of a recorded run", DESCRIPTION)
    parser.add_argument("run_dir", type=Path, help="a run's folder, or an .mcap file")
    parser.add_argument(
        "--bundle", metavar="B", help="the bundle that flew; default: the one the recording names"
    )
    parser.add_argument("--no-film", action="store_true", help="leave out flight.gif")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build and print; the exit code of the flight."""
    # Here, because the robot has `safe-rl launch` without what a report needs.
    from safe_rl.report.build import build_report
    from safe_rl.report.judgement import judge

    bundle = Bundle.load(args.bundle) if args.bundle else None
    report = build_report(args.run_dir, bundle, film=not args.no_film, say=say)
    print_report(report)
    return 0 if judge(report.summary).passed else 1


def say(text: str) -> None:
    """Tell what is being done, on stderr."""
    print(f"  {text} …", file=sys.stderr, flush=True)


def print_report(report: Report) -> None:
    """The verdict, the table, the certificate, and where the files are."""
    from safe_rl.report.judgement import certificate_lines, judge
    from safe_rl.report.text import emphasise, flight_rows, print_table

    summary = report.summary
    judgement = judge(summary)
    certificate, meaning = certificate_lines(summary["certificate"])
    print(f"\n{emphasise(judgement.word, judgement.passed)}: {judgement.sentence}")
    print_table(flight_rows(summary))
    print(f"  certificate: {certificate}. {meaning}")
    print()
    for name, path in report.files.items():
        print(f"  {name:<9} {path}")
