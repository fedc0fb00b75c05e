"""`safe-rl <command>`: one module per command in `safe_rl.commands`, loaded only for its own work.

An error that safe_rl raises on purpose is one line on stderr and exit code 2; anything else is a
defect and keeps its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from safe_rl_core.errors import SafeRLError

from safe_rl.commands import audit, fly, identify, inspect, launch, report, simulate, train, verify

COMMANDS = (fly, launch, simulate, inspect, report, verify, audit, identify, train)

EPILOG = """\
examples
  safe-rl fly quadrotor                         five laps in PyBullet, judged, with a report
  safe-rl simulate quadrotor_powerloop --episodes 1000 --policy adversarial
  safe-rl inspect unicycle_lane                 what is in a bundle
  safe-rl verify models/unicycle_robust         prove and check what a bundle claims
  safe-rl audit runs/today                      check a flight from its record, trusting nobody
  safe-rl train ps2 unicycle                    train behind the shield, from the definition
  safe-rl <command> --help                      all options of a command

Units are SI: m, m/s, rad, s. Frames: world ENU (z up), body FLU (x forward, y left, z up).
Exit codes: 0 fine, 1 a safety rule was violated or the run is incomplete, 2 wrong use.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="safe-rl",
        description="Fly a robot behind a backup shield, with or without ROS 2, and judge it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    for module in COMMANDS:
        module.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except SafeRLError as error:
        print(f"safe-rl {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nsafe-rl {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
