"""The report's figures, composed from `draw_path` and `draw_time`; each fits a 1 100 px page."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from safe_rl_core.bundle import Bundle
from safe_rl_core.record import FlightLog

from safe_rl.report import draw_path, draw_time, style
from safe_rl.report.verdicts import verdict_legend

FigureMaker = Callable[[Bundle, FlightLog, dict], Figure]


def path_figure(bundle: Bundle, log: FlightLog, summary: dict) -> Figure:
    """The path flown against the end of the safe set: side view or lane view."""
    size = (5.3, 4.9) if bundle.robot == "quadrotor" else (10.4, 3.9)
    with style.figure_style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw_path.path(axes, bundle, log)
        _path_legend(figure, summary)
    return figure


def timeline_figure(bundle: Bundle, log: FlightLog, summary: dict) -> Figure:
    """Margin over time above the strip of verdicts, on one time axis."""
    with style.figure_style():
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
        draw_time.margins(above, bundle, log)
        draw_time.strip(below, bundle, log, summary["interventions"])
        below.set_xlim(log.t[0], log.t[-1] + bundle.period)
    return figure


def actions_figure(bundle: Bundle, log: FlightLog, summary: dict) -> Figure:
    """Proposed and safe action, one panel per input."""
    del summary
    count = len(bundle.inputs)
    with style.figure_style():
        figure = Figure(figsize=(10.4, 1.0 + 1.45 * count), layout="constrained")
        panels = np.atleast_1d(figure.subplots(count, 1, sharex=True))
        for index, axes in enumerate(panels):
            draw_time.action(axes, bundle, log, index)
        figure.align_ylabels(panels)
        panels[0].set_title("Actions: what the policy proposed and what flew")
        panels[0].legend(
            handles=_action_legend(),
            loc="lower right",
            ncols=3,
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
        )
        panels[-1].set_xlabel("task time (s)")
        panels[-1].set_xlim(log.t[0], log.t[-1] + bundle.period)
    return figure


def latency_figure(bundle: Bundle, log: FlightLog, summary: dict) -> Figure:
    """Time of one shield step, and time from state received to command published."""
    del bundle, summary
    with style.figure_style():
        figure = Figure(figsize=(10.4, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_time.latency(left, log.shield_us, "Time of one shield step", "µs", style.SAFE_ACTION)
        draw_time.latency(
            right, log.latency_us / 1e3, "State received to command published", "ms", style.MARGIN
        )
    return figure


def overview_figure(bundle: Bundle, log: FlightLog, summary: dict, headline: str) -> Figure:
    """One picture of the whole run, for a README: path, margin, verdicts, the busiest input."""
    with style.figure_style():
        figure = Figure(figsize=(14.0, 7.2), layout="constrained")
        figure.suptitle(headline, x=0.008, ha="left", fontsize=14, fontweight="bold")
        if bundle.robot == "quadrotor":
            left, right = figure.subfigures(1, 2, width_ratios=[1.0, 1.25])
        else:
            left, right = figure.subfigures(2, 1, height_ratios=[0.75, 1.25])
        draw_path.path(left.add_subplot(), bundle, log)
        _path_legend(left, summary)
        above, below, lowest = right.subplots(3, 1, sharex=True, height_ratios=[2.2, 0.75, 1.5])
        draw_time.margins(above, bundle, log)
        draw_time.strip(below, bundle, log, summary["interventions"])
        below.set_xlabel("")
        draw_time.action(lowest, bundle, log, _busiest_input(bundle, log))
        lowest.set_title("Action: proposed and flown")
        lowest.legend(
            handles=_action_legend(),
            loc="lower right",
            ncols=3,
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
        )
        lowest.set_xlabel("task time (s)")
        lowest.set_xlim(log.t[0], log.t[-1] + bundle.period)
    return figure


def _busiest_input(bundle: Bundle, log: FlightLog) -> int:
    """The input that the shield moved most, in units of its own range."""
    moved = np.nan_to_num(np.abs(log.u_safe - log.u_proposed)) / bundle.input_scale
    return int(np.argmax(moved.mean(axis=0)))


def _path_legend(figure: Figure, summary: dict) -> None:
    reference = Line2D([], [], color=style.MUTED, linestyle=(0, (4, 3)), label="reference")
    start = Line2D([], [], color=style.INK, marker="o", linestyle="none", label="start")
    handles = [reference, start, *verdict_legend(summary["interventions"])]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=5, handlelength=1.6, columnspacing=1.0,
        handletextpad=0.5,
    )  # fmt: skip


def _action_legend() -> list[Line2D]:
    return [
        Line2D([], [], color=style.MUTED, linewidth=1.2, label="proposed"),
        Line2D([], [], color=style.SAFE_ACTION, linewidth=1.6, label="flown"),
        Line2D([], [], color=style.DANGER, linestyle=(0, (2, 2)), label="bounds"),
    ]


#: order on the page: name, maker, what a screen reader says
FIGURES: tuple[tuple[str, FigureMaker, str], ...] = (
    ("path", path_figure, "Path flown against the boundary of the safe set, coloured by verdict"),
    ("timeline", timeline_figure, "Margin over time, and the verdict in each control period"),
    ("actions", actions_figure, "Proposed and safe action over time, one panel per input"),
    ("latency", latency_figure, "Histograms of the shield's time and of the command latency"),
)
