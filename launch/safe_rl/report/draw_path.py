"""Draws the path flown against the end of the safe set: side view or lane view."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from safe_rl_core.bundle import Bundle
from safe_rl_core.record import FlightLog

from safe_rl.report import style
from safe_rl.report.geometry import (
    Boundary,
    boundaries,
    channel_index,
    reference_path,
    true_margins,
)
from safe_rl.report.verdicts import runs, verdict_names

#: robot -> (horizontal channel, vertical channel, equal scales, title)
VIEWS = {
    "quadrotor": ("px", "pz", True, "Side view: the flight against the ceiling"),
    "unicycle": ("px", "py", False, "Lane view from above (axes not to one scale)"),
}


def path(axes: Axes, bundle: Bundle, log: FlightLog) -> None:
    """The path flown, coloured by verdict, with the reference and the end of the safe set."""
    across, up, equal, title = VIEWS[bundle.robot]
    columns = [channel_index(bundle, across), channel_index(bundle, up)]
    flown = log.x_true[:, columns]
    duration = log.t[-1] + bundle.period
    reference = reference_path(bundle, duration)[:, columns]
    both = np.vstack([flown, reference])
    low, high = both.min(axis=0), both.max(axis=0)
    pad = np.maximum(0.08 * (high - low), [0.1, 0.18])
    pad[0] = pad[0] if equal else 0.02 * (high[0] - low[0])
    low, high = low - pad, high + pad
    at = np.median(log.x_true, axis=0)
    walls = boundaries(bundle, up, low[1] - 1.0, high[1] + 1.0, at)
    visible = [wall for wall in walls if low[1] <= wall.value <= high[1]]
    if (
        not visible and walls
    ):  # keep the nearest wall in the picture: it is what the flight is about
        visible = [min(walls, key=lambda wall: np.abs(flown[:, 1] - wall.value).min())]
        low[1] = min(low[1], visible[0].value - 0.15)
        high[1] = max(high[1], visible[0].value + 0.15)
    for wall in visible:
        _forbidden(axes, wall, low[1], high[1])
    axes.plot(*reference.T, color=style.MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
    for start, stop, name in runs(verdict_names(log)):
        axes.plot(
            *flown[start : stop + 1].T, color=style.verdict_colour(name), linewidth=1.7, zorder=3
        )
    axes.plot(*flown[0], marker="o", markersize=6, color=style.INK, zorder=5)
    travelled = np.linalg.norm((flown - flown[0]) / (high - low), axis=1)
    ahead = int(np.argmax(travelled > 0.06)) or len(flown) - 1
    axes.annotate(
        "",
        flown[ahead],
        xytext=flown[0],
        zorder=5,
        arrowprops={"arrowstyle": "-|>", "color": style.INK, "mutation_scale": 14},
    )
    broken = true_margins(bundle, log.x_true)[0] < 0.0
    if broken.any():
        axes.plot(
            *flown[broken].T,
            linestyle="none",
            marker="x",
            color=style.DANGER,
            markersize=5,
            zorder=6,
        )
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    if equal:
        axes.set_aspect("equal")
    axes.set_title(title)
    axes.set_xlabel(f"{across} (m)")
    axes.set_ylabel(f"{up} (m)")


def _forbidden(axes: Axes, wall: Boundary, low: float, high: float) -> None:
    """Shade the side of a wall where the safe set has ended, and name the row."""
    far = high + 1.0 if wall.forbidden_above else low - 1.0
    near, end = sorted((wall.value, far))
    axes.axhspan(near, end, facecolor=style.DANGER, alpha=0.07, zorder=0, linewidth=0)
    axes.axhspan(
        near, end, facecolor="none", edgecolor=style.DANGER, alpha=0.45, hatch="////", zorder=0,
        linewidth=0,
    )  # fmt: skip
    axes.axhline(wall.value, color=style.DANGER, linewidth=1.6, zorder=1)
    axes.annotate(
        f"{wall.row.replace('_', ' ')} {wall.value:.4g} m",
        (0.0, wall.value),
        xycoords=("axes fraction", "data"),
        xytext=(6, 4 if wall.forbidden_above else -4),
        textcoords="offset points",
        ha="left",
        va="bottom" if wall.forbidden_above else "top",
        color=style.DANGER,
        fontsize=9,
        fontweight="bold",
        bbox={"facecolor": style.CARD, "edgecolor": "none", "alpha": 0.75, "pad": 1.5},
    )
