"""Colours, type and file formats of the report's figures, in one place.

A figure is drawn once with matplotlib. As SVG it goes into the page with its colours turned into
CSS variables, so that one drawing is legible on light and on dark ground; as PNG it stays light.

Verdicts differ in lightness and in height on the strip, not in hue alone: they can be told apart
with any colour vision and in a black-and-white print.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

import matplotlib
from matplotlib.figure import Figure

INK = "#1b2430"  # text, axes
MUTED = "#6b7785"  # reference, proposals, secondary text
GRID = "#dfe4ea"
CARD = "#fefefe"  # the ground that a figure stands on
DANGER = "#c1121f"  # boundary of the safe set, violations
MARGIN = "#117a65"
SAFE_ACTION = "#1f4e9c"
VERDICT_COLOURS = {"PASSED": "#2b95c9", "PROJECTED": "#e39a06", "BACKUP": "#7b1e7a"}
#: a step that no shield judged: flown without one, or its status is not in the recording
NOT_JUDGED = "NOT JUDGED"
VERDICT_HEIGHTS = {"PASSED": 0.34, "PROJECTED": 0.67, "BACKUP": 1.0}
VERDICT_MEANINGS = {
    "PASSED": "the proposal flew, bit for bit",
    "PROJECTED": "the nearest action that keeps a verified way out",
    "BACKUP": "the backup policy flew",
}

#: colour in the drawing -> CSS variable in the page
CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    CARD: "--card",
    DANGER: "--danger",
    MARGIN: "--margin",
    SAFE_ACTION: "--safe-action",
    **{colour: f"--{name.lower()}" for name, colour in VERDICT_COLOURS.items()},
}

_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 10.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "hatch.linewidth": 0.6,
}


def verdict_colour(name: str) -> str:
    """Colour of a verdict, or of a step that got none."""
    return VERDICT_COLOURS.get(name, MUTED)


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Within it, new figures and axes look like the report's."""
    with matplotlib.rc_context(_RC):
        yield


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure on white, as PNG bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def to_inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for the page: transparent, themable, ids made unique.

    `name` prefixes every id, because several figures share one page; `description` is what a
    screen reader says. Namespaces and metadata go: HTML needs none, and they are addresses.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    # text keeps its size and weight but takes the page's typeface
    svg = svg.replace("'DejaVu Sans'", "var(--font)")
    for colour, variable in CSS_VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
