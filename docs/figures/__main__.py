"""Draws the pictures of README.md, docs/theory.md, docs/proof.md and docs/bounds.md.

    python docs/figures                 all, into docs/img
    python docs/figures tubes --out d   some, into a folder

Every number comes from the shipped bundles, by the same functions that fly or audit: run it again
when a bundle has changed.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

from adversary import adversary
from base_sets import base_sets
from common import ROBOTS
from matplotlib.figure import Figure
from PIL import Image
from powerloop import powerloop
from safe_rl.report import style
from tubes import tubes

IMAGES = Path(__file__).parents[1] / "img"
WHAT = ("base_sets", "tubes", "adversary", "powerloop")
DPI, COLOURS = 150, 96


def drawn(what: str) -> Iterator[tuple[str, Figure]]:
    """Names of files and what goes into them."""
    single = {"base_sets": base_sets, "adversary": adversary, "powerloop": powerloop}
    if what in single:
        yield what, single[what]()
    else:
        for name in ROBOTS:
            yield f"tube_{name.split('_')[0]}", tubes(name)


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python docs/figures", description=__doc__.split("\n")[0]
    )
    parser.add_argument("what", nargs="*", help=f"{', '.join(WHAT)}; all if none is named")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder (docs/img)")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(WHAT):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}, only {', '.join(WHAT)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for what in arguments.what or WHAT:
        for name, figure in drawn(what):
            path = arguments.out / f"{name}.png"
            picture = Image.open(io.BytesIO(style.to_png(figure, dpi=DPI)))
            picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
