"""`safe-rl fly`: start a robot's stack, record it, judge it, and leave a report."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import SafeRLError

from safe_rl.commands.common import add_parser
from safe_rl.commands.launch import add_stack_arguments, stack_options
from safe_rl.environment import machine, versions
from safe_rl.json_file import write_json
from safe_rl.stack import BUNDLES

DESCRIPTION = """\
Fly a robot in simulation over real ROS 2 topics, behind its shield, and judge the flight.
Everything goes into runs/<UTC time>-<robot>/: the recording (MCAP), summary.json, report.html,
overview.png and flight.gif.

  safe-rl fly quadrotor                     five laps of the powerloop in PyBullet
  safe-rl fly unicycle --seed 7 --realtime  the lane at the pace of the clock

Exit code: 0 only when the flight is complete, every node lived, and nothing was violated.
"""


def add_command(subparsers: Any) -> None:
    """Add `fly` to the command line."""
    parser = add_parser(subparsers, "fly", "fly, record and judge one flight", DESCRIPTION)
    add_stack_arguments(parser, ("sim", "bullet", "model", "assumed"))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where runs go, default runs/",
    )
    parser.add_argument("--no-film", action="store_true", help="leave out flight.gif")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fly, then report."""
    # Here, because the robot has `safe-rl launch` without what a report needs.
    from safe_rl.commands.report import print_report, say
    from safe_rl.report.build import SETTINGS, build_report
    from safe_rl.report.judgement import judge
    from safe_rl.report.recording import RecordingError
    from safe_rl.runner import launch

    bundle = Bundle.load(args.bundle or BUNDLES[args.robot])
    if bundle.robot != args.robot:
        raise SafeRLError(
            f"bundle {bundle.name} is for a {bundle.robot}, not for a {args.robot}; "
            f"try `safe-rl fly {bundle.robot} --bundle {args.bundle}`"
        )
    folder = new_folder(args.out, args.robot)
    settings = flight_settings(args, bundle)
    write_json(folder / SETTINGS, settings)
    print(
        f"{bundle.name} ({bundle.hash[:12]}), plant {settings['plant']}, seed {args.seed}, "
        f"{settings['laps']} {'laps' if bundle.task.lap_s else 'run'}, {settings['pace']}"
    )
    start = time.perf_counter()
    options = {**stack_options(args), "bundle": str(bundle.path), "record": folder}
    try:
        code = launch(args.robot, echo=lambda line: print(line, flush=True), **options)
    except SafeRLError:
        shutil.rmtree(folder)  # nothing flew
        raise
    landed = time.perf_counter()
    if code:
        text = f"the stack ended with code {code}, see its lines above"
        print(f"safe-rl fly: {text}", file=sys.stderr)
    try:
        report = build_report(folder, bundle, film=not args.no_film, say=say)
    except RecordingError as error:
        print(f"safe-rl fly: no report: {error}", file=sys.stderr)
        return code or 1
    print_report(report)
    seconds = time.perf_counter() - landed
    print(f"\n  {landed - start:.1f} s for the flight, {seconds:.1f} s for the report")
    return code or (0 if judge(report.summary).passed else 1)


def flight_settings(args: argparse.Namespace, bundle: Bundle) -> dict[str, Any]:
    """What was asked for: kept beside the recording, because the recording cannot tell it all."""
    pace = "lockstep" if not args.no_lockstep else "driven by the clock"
    return {
        "robot": args.robot,
        "bundle": bundle.name,
        "plant": "bullet" if args.plant == "sim" else args.plant,
        "seed": args.seed,
        "laps": args.laps or bundle.task.laps_default,
        "pace": f"{pace}, paced to the clock" if args.realtime and not args.no_lockstep else pace,
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": shlex.join(["safe-rl", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
    }


def new_folder(parent: Path, robot: str) -> Path:
    """A new folder <UTC time>-<robot>; numbered when two flights start in the same second."""
    name = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{robot}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        folder = parent / f"{name}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{parent / name} exists 99 times")
