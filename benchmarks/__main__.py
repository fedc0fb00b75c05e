"""All benchmarks, one after another: `make bench`, or `python benchmarks` in its environment.

python benchmarks                       about ten minutes; tables on stdout, progress on stderr
python benchmarks --only peers          one question
python benchmarks --write               and put the tables into benchmarks/README.md
python benchmarks/peers.py --help       each script also runs alone
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from toolbox.report import say, write_between_markers

HERE = Path(__file__).parent
SCRIPTS = ("shield_step", "peers", "ros_round_trip")


def run(name: str, folder: Path, quick: bool) -> dict[str, Any] | None:
    """The answer of one script; None if it failed (it has said why)."""
    target = folder / f"{name}.json"
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(target)]
    command += ["--quick"] if quick else []
    start = time.monotonic()
    say(f"==== {name}")
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    say(
        f"==== {name}: {time.monotonic() - start:.0f} s"
        + (f", FAILED with code {code}" if code else "")
    )
    return None if code else json.loads(target.read_text())


def main() -> int:
    """0 when every script ran; a missed target is told, not punished: the machine decides too."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="see that everything works")
    parser.add_argument("--json", type=Path, metavar="DIR", help="keep the answers here as JSON")
    parser.add_argument("--write", action="store_true", help="update the tables of README.md")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.json or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.only:
            answer = run(name, folder, args.quick)
            if answer is None:
                failed = True
                continue
            print(f"## {name}\n\n{answer['question']}\n\n{answer['markdown']}\n", flush=True)
            if args.write:
                write_between_markers(HERE / "README.md", name, answer["markdown"])
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
