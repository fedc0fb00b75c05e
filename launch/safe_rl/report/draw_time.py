"""Draws what happens over time: margin, verdicts, actions; and how long the shield took."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.record import FlightLog

from safe_rl.report import style
from safe_rl.report.geometry import true_margins
from safe_rl.report.text import quantity
from safe_rl.report.verdicts import runs, verdict_legend, verdict_names


def margins(axes: Axes, bundle: Bundle, log: FlightLog) -> None:
    """True distance to the end of the safe set, and the margin of the plan the shield verified."""
    times = np.append(log.t, log.t[-1] + bundle.period)
    truth, worst = true_margins(bundle, log.x_true)
    lowest = int(np.argmin(truth))
    axes.axhline(0.0, color=style.DANGER, linewidth=1.4, zorder=1)
    axes.plot(
        log.t, log.margin, color=style.MUTED, linewidth=1.0, label="plan the shield verified"
    )
    axes.plot(times, truth, color=style.MARGIN, linewidth=1.5, label="true state")
    axes.fill_between(times, truth, 0.0, where=truth < 0.0, color=style.DANGER, alpha=0.5)
    finite = np.concatenate([truth, log.margin[np.isfinite(log.margin)], [0.0]])
    span = max(np.percentile(finite, 99.0) - finite.min(), 1e-3)
    axes.set_ylim(finite.min() - 0.1 * span, np.percentile(finite, 99.0) + 0.3 * span)
    axes.plot(times[lowest], truth[lowest], marker="v", color=style.INK, markersize=6, zorder=5)
    row = bundle.safe_set_names[worst[lowest]].replace("_", " ")
    axes.set_title(f"Margin: smallest {truth[lowest]:+.4f} ({row}) at {times[lowest]:.2f} s")
    axes.set_ylabel(f"margin ({margin_unit(bundle)})")
    axes.legend(loc="upper right", ncols=2, handlelength=1.4, borderaxespad=0.1)


def margin_unit(bundle: Bundle) -> str:
    """Unit of the margin's axis: rows of a safe set may carry different units."""
    return "m" if bundle.robot == "quadrotor" else "m, rad, m/s"


def strip(axes: Axes, bundle: Bundle, log: FlightLog, counts: dict[str, int]) -> None:
    """One bar per stretch of equal verdicts: colour and height both say which."""
    for name, colour in style.VERDICT_COLOURS.items():
        spans = [
            (log.t[start], (stop - start) * bundle.period)
            for start, stop, verdict in runs(verdict_names(log))
            if verdict == name
        ]
        axes.broken_barh(spans, (0.0, style.VERDICT_HEIGHTS[name]), facecolors=colour, linewidth=0)
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks(
        [height - 0.165 for height in style.VERDICT_HEIGHTS.values()],
        list(style.VERDICT_HEIGHTS),
        fontsize=7.5,
    )
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.set_title("Verdicts")
    axes.set_xlabel("task time (s)")
    axes.legend(
        handles=verdict_legend(counts), loc="lower right", ncols=3, bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2, handlelength=0.9, handleheight=0.9, columnspacing=1.2,
    )  # fmt: skip


def action(axes: Axes, bundle: Bundle, log: FlightLog, index: int) -> None:
    """One input: what the policy proposed, what the shield let through, and the bounds."""
    channel = bundle.inputs[index]
    for bound in (channel.low, channel.high):
        if np.isfinite(bound):
            axes.axhline(bound, color=style.DANGER, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    axes.step(
        log.t, log.u_proposed[:, index], where="post", color=style.MUTED, linewidth=1.0,
        label="proposed", zorder=2,
    )  # fmt: skip
    axes.step(
        log.t, log.u_safe[:, index], where="post", color=style.SAFE_ACTION, linewidth=1.3,
        label="safe (flown)", zorder=3,
    )  # fmt: skip
    span = channel.high - channel.low
    if np.isfinite(span):
        axes.set_ylim(channel.low - 0.08 * span, channel.high + 0.08 * span)
    unit = channel.unit.replace("^2", "²")
    axes.set_ylabel(f"{channel.name.replace('_', ' ')}\n({unit})")


def latency(axes: Axes, values: NDArray[np.float64], title: str, unit: str, colour: str) -> None:
    """Histogram over a logarithmic axis with the median, the 99th percentile and the maximum."""
    values = values[np.isfinite(values) & (values > 0.0)]
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.set_ylabel("control periods")
    if values.size == 0:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    low, high = values.min() / 1.3, values.max() * 1.9
    axes.hist(
        values,
        bins=np.geomspace(values.min() / 1.02, values.max() * 1.02, 40),
        color=colour,
        alpha=0.75,
        linewidth=0,
    )
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(0.0, axes.get_ylim()[1] * 1.28)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if _sparse(value, low, high) else ""
    )
    marks = (("p50", np.percentile(values, 50.0)), ("p99", np.percentile(values, 99.0)))
    for name, value in (*marks, ("max", values.max())):
        axes.axvline(value, color=style.INK, linewidth=1.0, linestyle=(0, (3, 2)))
        beyond = name == "max"  # to the right of its line: p99 may be close on the left
        axes.annotate(
            f"{name} {quantity(value)}", (value, 0.86 if beyond else 0.98),
            xycoords=("data", "axes fraction"), xytext=(4 if beyond else -4, 0),
            textcoords="offset points", ha="left" if beyond else "right", va="top", fontsize=9,
        )  # fmt: skip


def _sparse(value: float, low: float, high: float) -> bool:
    """Whether a minor tick of a logarithmic axis gets a label: 2 and 5 only, on short axes."""
    digit = round(value / 10.0 ** np.floor(np.log10(value)))
    return digit in (2, 5) and high / low < 300.0
