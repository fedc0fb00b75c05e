"""What the base controllers hold for ever, beside the limits and the published set."""

from __future__ import annotations

import numpy as np
from common import BASE, ROBOTS, Array, label, name_axes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch, Rectangle
from safe_rl.report import style
from safe_rl.report.geometry import boundaries, channel_index
from safe_rl_core.bundle import Bundle

PUBLISHED = "unicycle_lane_paper"


def base_sets() -> Figure:
    """Projections of the certified ellipsoids."""
    unicycle, quadrotor, paper = (Bundle.load(name) for name in (*ROBOTS, PUBLISHED))
    published = _published(paper)
    level = paper.program("base_set", published[1])[0]
    with style.figure_style():
        figure = Figure(figsize=(7.6, 5.6), layout="constrained")
        above, below = figure.subplots(2, 3)
        for axes, pair in zip(above, (("py", "theta"), ("py", "v"), ("theta", "v")), strict=True):
            _lane_projection(axes, unicycle, pair)
            at = [channel_index(paper, name) for name in pair]
            _projection(axes, published[0], at, published[1][at], style.INK, alpha=1.0)
        _hover_places(below[0], quadrotor)
        for axes, pair in zip(below[1:], (("p_x", "v_x"), ("v_x", "tilt_y")), strict=True):
            names = quadrotor.robust.error_names
            _projection(axes, _shape(quadrotor), [names.index(c) for c in pair], np.zeros(2), BASE)
            units = [quadrotor.robust.error_units[names.index(c)] for c in pair]
            name_axes(axes, *(label(*c, " error") for c in zip(pair, units, strict=True)))
            axes.autoscale_view()
        above[0].set_title(unicycle.name)
        below[0].set_title(quadrotor.name)
        handles = [
            Patch(facecolor=BASE, alpha=0.4, edgecolor=BASE, label="certified base set"),
            Line2D([], [], color=style.DANGER, label="end of the safe set"),
            Patch(facecolor=style.INK, label=f"published set, level {level:.3g} ({paper.name})"),
            Line2D([], [], color=style.INK, linestyle="--", label="where x* may be"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _shape(bundle: Bundle) -> Array:
    """Q (k, k) with the base set {e : e' Q⁻¹ e <= 1}."""
    factor = bundle.robust.base.factor
    return np.linalg.inv(factor @ factor.T)


def _projection(
    axes: Axes, shape: Array, at: list[int], centre: Array, colour: str, alpha: float = 0.4
) -> None:
    """The shadow of an ellipsoid on two of its coordinates: the ellipse of that block of Q."""
    size, turn = np.linalg.eigh(shape[np.ix_(at, at)])
    angle = np.degrees(np.arctan2(turn[1, 1], turn[0, 1]))
    width, height = 2.0 * np.sqrt(size[::-1])
    for fill in (True, False):
        ellipse = Ellipse(centre, width, height, angle=angle, fill=fill, color=colour)
        ellipse.set_alpha(alpha if fill else 1.0)
        axes.add_patch(ellipse)


def _lane_projection(axes: Axes, bundle: Bundle, pair: tuple[str, str]) -> None:
    rest = bundle.program("base_point", np.zeros(len(bundle.states)))
    centre = rest[[channel_index(bundle, name) for name in pair]]
    at = [bundle.robust.error_names.index(name) for name in pair]
    _projection(axes, _shape(bundle), at, centre, BASE)
    _walls(axes, bundle, rest, pair)
    units = [bundle.states[channel_index(bundle, name)].unit for name in pair]
    name_axes(axes, *(label(*channel) for channel in zip(pair, units, strict=True)))


def _published(paper: Bundle) -> tuple[Array, Array]:
    """Q and centre of {base_set >= 0}, read off the program, which is quadratic there."""
    n = len(paper.states)
    unit = np.eye(n)

    def h(x: Array) -> Array:
        return paper.program("base_set", x)[..., 0]

    zero = h(np.zeros(n))
    slope = 0.5 * (h(unit) - h(-unit))
    double = h(unit[:, None] + unit) - h(unit)[:, None] - h(unit) + zero
    centre = -np.linalg.solve(double, slope)
    probe = np.linspace(0.1, 0.4, n)
    guess = h(centre) + 0.5 * probe @ double @ probe
    if not np.isclose(h(centre + probe), guess):
        raise SystemExit(f"the base set of {paper.name} is no ellipsoid; draw it another way")
    return -2.0 * h(centre) * np.linalg.inv(double), centre


def _walls(axes: Axes, bundle: Bundle, at: Array, pair: tuple[str, str]) -> None:
    """The limits of the safe set along both axes, with a little room beyond them."""
    for name, line, limit in (
        (pair[0], axes.axvline, axes.set_xlim),
        (pair[1], axes.axhline, axes.set_ylim),
    ):
        ends = [wall.value for wall in boundaries(bundle, name, -15.0, 15.0, at)]
        room = 0.06 * (max(ends) - min(ends))
        limit(min(ends) - room, max(ends) + room)
        for end in ends:
            line(end, color=style.DANGER, linewidth=1.4)


def _hover_places(axes: Axes, bundle: Bundle) -> None:
    """The box of hover points in the safe set, and the set about three of them."""
    far = np.zeros((2, len(bundle.states)))
    columns = [channel_index(bundle, name) for name in ("px", "pz")]
    far[:, channel_index(bundle, "qw")] = 1.0
    far[:, columns] = [[-1e3, -1e3], [1e3, 1e3]]
    low, high = bundle.program("base_point", far)[:, columns]
    at = [bundle.robust.error_names.index(name) for name in ("p_x", "p_z")]
    for place in (low, high):
        _projection(axes, _shape(bundle), at, place, BASE)
    _walls(axes, bundle, bundle.program("base_point", far[0]), ("px", "pz"))
    axes.add_patch(Rectangle(low, *(high - low), fill=False, linestyle="--", edgecolor=style.INK))
    name_axes(axes, "px (m)", "pz (m)")
