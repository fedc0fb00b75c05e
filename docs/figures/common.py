"""What the pictures share: robots, colours, names of axes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from safe_rl.report import style

Array = NDArray[np.float64]

ROBOTS = ("unicycle_robust", "quadrotor_robust")
BASE, TUBE = style.VERDICT_COLOURS["PASSED"], style.VERDICT_COLOURS["PROJECTED"]
_SYMBOLS = {"theta": "θ", "p_x": "px", "v_x": "vx", "tilt_y": "tilt y"}


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Both labels, close to the axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y, labelpad=1.0)


def label(channel: str, unit: str, what: str = "") -> str:
    """A channel as an axis names it."""
    return f"{_SYMBOLS.get(channel, channel)}{what} ({unit})"
