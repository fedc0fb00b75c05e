"""All benchmarks, one after another: `make bench`, or `python benchmarks` in its environment.

    python benchmarks                       all, ten minutes; progress goes to stderr
    python benchmarks peers                 one question
    python benchmarks --write               and put the answers into benchmarks/README.md
    python benchmarks mismatch --seeds 5    one question with options of its own script

Without names only the first three run. `robust` and `many_episodes` take an hour or two,
`training` hours, and it needs the runs of `safe-rl train ps2` that it compares.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from toolbox import machine
from toolbox.report import say, write_between_markers

HERE = Path(__file__).parent
SCRIPTS = ("shield_step", "peers", "ros_round_trip")
#: Scripts that take longer than those together, or need what proves certificates, or trainings.
LONG = (
    "certification", "evidence", "robust", "training", "trainer", "many_episodes", "full_physics",
    "best_safe", "arrival_optimum", "arrival_learners",
)  # fmt: skip
#: Scripts that print a table and nothing else, and the packages that decide what is in it.
PRINTING = {"mismatch": ("safe_rl_core", "numpy", "pybullet")}


def run(name: str, folder: Path, options: Sequence[str]) -> str | None:
    """The answer of one script as Markdown; None if it failed (it has said why)."""
    target = folder / f"{name}.json"
    about = machine.describe(PRINTING.get(name, ()))
    start = time.monotonic()
    say(f"==== {name}")
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(target), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    failed = f", FAILED with code {done.returncode}" if done.returncode else ""
    say(f"==== {name}: {time.monotonic() - start:.0f} s{failed}")
    if failed:
        return None
    if name in PRINTING:
        return f"{done.stdout.strip()}\n\n{machine.sentence(machine.after(about))}."
    return json.loads(target.read_text())["markdown"]


def main() -> int:
    """0 when every script ran; a missed target is told, not punished: the machine decides too."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    known = (*SCRIPTS, *LONG, *PRINTING)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--json", type=Path, metavar="DIR", help="keep the answers here as JSON")
    parser.add_argument("--write", action="store_true", help="update the tables of README.md")
    args, options = parser.parse_known_args()
    names = args.names or SCRIPTS
    unknown = [name for name in names if name not in known]
    if unknown or (options and len(names) > 1):
        what = f"unknown: {', '.join(unknown)}" if unknown else f"{options} need one NAME"
        parser.error(f"{what}; names are {', '.join(known)}")
    options += ["--quick"] if args.quick else []
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.json or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            answer = run(name, folder, options)
            if answer is None:
                failed = True
                continue
            print(f"## {name}\n\n{answer}\n", flush=True)
            if args.write:
                write_between_markers(HERE / "README.md", name, answer)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
