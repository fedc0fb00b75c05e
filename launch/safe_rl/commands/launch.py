"""`safe-rl launch`: start the nodes of a robot's stack, without `ros2 launch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from safe_rl.commands.common import add_parser, whole
from safe_rl.stack import BUNDLES, PLANTS

DESCRIPTION = """\
Start the stack of a robot over ROS 2 topics: policy, shield and bridge, one process each. It ends
with the flight, or with Ctrl-C. The shield cannot be left out.

  safe-rl launch quadrotor                                  PyBullet, lockstep, the task's laps
  safe-rl launch unicycle --realtime --gui                  at the pace of the clock, with a window
  safe-rl launch quadrotor --plant hardware --config my.yaml
"""


def add_command(subparsers: Any) -> None:
    """Add `launch` to the command line."""
    parser = add_parser(subparsers, "launch", "start the nodes of a robot", DESCRIPTION)
    add_stack_arguments(parser, PLANTS)
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="record every topic (MCAP) into this folder"
    )
    parser.set_defaults(run=run)


def add_stack_arguments(parser: argparse.ArgumentParser, plants: tuple[str, ...]) -> None:
    """The arguments that `launch` and `fly` share."""
    parser.add_argument("robot", choices=tuple(BUNDLES), help="which robot")
    parser.add_argument("--plant", choices=plants, default="sim", help="sim = bullet (default)")
    parser.add_argument("--bundle", metavar="B", help="name or folder; default: the robot's own")
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="S", help="start, vehicle, noise"
    )
    parser.add_argument(
        "--laps", type=whole(0), default=0, metavar="L", help="0 = as the task says"
    )
    parser.add_argument(
        "--realtime", action="store_true", help="keep pace with the clock instead of full speed"
    )
    parser.add_argument(
        "--no-lockstep", action="store_true",
        help="the clock drives every node and the plant waits for nobody, as on a vehicle",
    )  # fmt: skip
    parser.add_argument("--gui", action="store_true", help="open PyBullet's window")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="node parameters instead of the robot's own file",
    )


def stack_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `safe_rl.runner.launch` takes, from the shared arguments."""
    return {
        "plant": args.plant,
        "bundle": args.bundle,
        "seed": args.seed,
        "laps": args.laps,
        "realtime": args.realtime,
        "lockstep": not args.no_lockstep,
        "gui": args.gui,
        "config": args.config,
    }


def run(args: argparse.Namespace) -> int:
    """Start the stack and stay until it ends; its exit code."""
    from safe_rl.runner import launch

    return launch(args.robot, record=args.record, **stack_options(args))
