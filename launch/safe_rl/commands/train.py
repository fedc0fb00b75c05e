"""`safe-rl train`: from a robot's definition to a bundle with a trained policy."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Any

from safe_rl_core.errors import SafeRLError

from safe_rl.commands.common import add_parser, whole
from safe_rl.environment import cores
from safe_rl.stack import BUNDLES

DESCRIPTION = """\
Train a robot's backup policy and its task policy behind the shield, prove its certificate where it
states bounds, evaluate, and write a bundle that flies: docs/train.md has the rest.

  safe-rl train ps2 quadrotor                        the robot of `safe-rl fly quadrotor`
  safe-rl train ps2 unicycle --quick                 all parts once, in about a minute
  safe-rl train ps2 my_robot.py --learner sac        your own robot, from its definition alone
  safe-rl train ps2 unicycle --seeds 5               mean and spread over five seeds
  safe-rl train ps2 unicycle --sweep grid.yaml --ray 10.0.0.1:6379

Ctrl-C writes a checkpoint; --resume goes on from it, bit for bit.
Exit code: 0 trained (and proved, where there is something to prove), 2 refused or failed,
130 interrupted.
"""
ALGORITHMS = ("ps2",)
BACKUPS = ("learned", "tuned", "analytic")
LEARNERS = ("staged", "ppo", "gradient", "sac", "published")
#: module -> what pip calls it
NEEDED = {
    "torch": "torch",
    "safe_rl_systems": "safe_rl_systems",
    "safe_rl_training": "safe_rl_training",
    "tensorboard": "tensorboard",
    "onnx": "onnx",
}


def add_command(subparsers: Any) -> None:
    """Add `train` to the command line."""
    parser = add_parser(subparsers, "train", "train a robot behind the shield", DESCRIPTION)
    parser.add_argument("algorithm", choices=ALGORITHMS)
    parser.add_argument(
        "robot", help="unicycle, quadrotor, a bundle's name, or my_robot.py[:function]"
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="default 0")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default runs/ps2-<robot>[-study]-<seed>"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER")
    parser.add_argument(
        "--quick", action="store_true", help="all parts once, too short to be good"
    )
    parser.add_argument("--backup", choices=BACKUPS, default="learned", help="default learned")
    parser.add_argument("--learner", choices=LEARNERS, default="staged", help="default staged")
    parser.add_argument(
        "--warm-start", metavar="FILE",
        help="policy.onnx that phase II begins with, or none; default: for a shipped robot and "
        "--learner staged its tracker in models/trackers, else none",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=whole(1), default=2, metavar="N", help="of one run, default 2"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    parser.add_argument("--phase1-only", action="store_true", help="stop after the backup policy")
    parser.add_argument(
        "--seeds", type=whole(1), metavar="N", help="N runs, seeds S to S+N-1, and their summary"
    )
    parser.add_argument(
        "--sweep", type=Path, metavar="FILE.yaml", help="a run for every combination of its lists"
    )
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS",
        help="runs of --seeds and --sweep, and the final evaluation, on a Ray cluster; without "
        "an address on one that is started on this machine",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; the exit code."""
    check_installed(args.ray is not None)
    from safe_rl_training.pipeline import train
    from safe_rl_training.plan import Plan
    from safe_rl_training.robot_source import load_robot
    from safe_rl_training.study import read_sweep, run_study

    source = BUNDLES.get(args.robot, args.robot)
    study = args.seeds is not None or args.sweep is not None
    name = load_robot(source).name
    out = args.out or Path("runs") / f"ps2-{name}{'-study' if study else ''}-{args.seed}"
    plan = Plan(
        source=source,
        seed=args.seed,
        warm_start=beginning(args.warm_start, source, args.learner),
        backup=args.backup,
        learner=args.learner,
        quick=args.quick,
        threads=args.threads,
        device=args.device,
        phase1_only=args.phase1_only,
    )
    try:
        if study:
            grid = {} if args.sweep is None else read_sweep(args.sweep)
            run_study(
                plan,
                out,
                seeds=args.seeds or 1,
                grid=grid,
                cluster=args.ray,
                processes=max(1, cores() // args.threads),
                resume=args.resume,
            )
        else:
            train(plan, out, cluster=args.ray, resume=args.resume)
    except KeyboardInterrupt:
        print(f"\ninterrupted; go on with: {resuming(out)}", file=sys.stderr)
        return 130
    return 0


def beginning(asked: str | None, source: str, learner: str) -> str | None:
    """The file that phase II begins with, from what --warm-start says."""
    from safe_rl_training.robot_source import tracker_of

    if asked is None:
        tracker = tracker_of(source) if learner == "staged" else None
        return None if tracker is None else str(tracker)
    return None if asked == "none" else str(Path(asked).resolve())


def check_installed(ray: bool) -> None:
    """Training is no part of `make run`; SafeRLError says how to get it."""
    needed = {**NEEDED, **({"ray": "ray"} if ray else {})}
    missing = [pip for module, pip in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SafeRLError(
            f"training needs {', '.join(missing)}, which is not installed here; `make train` sets "
            "everything up, or install packages/safe_rl_systems and packages/safe_rl_training"
            f"{'[ray]' if ray else ''} into this environment"
        )


def resuming(out: Path) -> str:
    """The command that goes on with this run."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    named = any(word.split("=")[0] == "--out" for word in words)
    more = ["--resume"] if named else ["--out", str(out), "--resume"]
    return shlex.join(["safe-rl", *words, *more])
