"""The audit as one HTML page that needs nothing else: for a safety assessor to file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safe_rl_core.audit import Report
from safe_rl_core.chain import Kind

from safe_rl.report import audit_text, style
from safe_rl.report.audit_text import MEANINGS, place
from safe_rl.report.page_style import CSS
from safe_rl.report.text import Row

#: Colour and height of an answer on the strip: the stern ones are dark and high.
LOOKS = {
    Kind.ACCEPT: ("PASSED", 0.25),
    Kind.PROJECTED: ("PROJECTED", 0.45),
    Kind.BLENDED: ("PROJECTED", 0.55),
    Kind.BACKUP: ("BACKUP", 0.7),
    Kind.CONTINUE: ("BACKUP", 0.8),
    Kind.BASE: ("BACKUP", 0.9),
    Kind.STOP: ("BACKUP", 1.0),
}
#: Names are short here and values long.
MORE = "th { width: 20%; } .certificate { margin-top: 16px; }"
CAPTIONS = {
    "margins": (
        "Upper: least slack of each committed plan over all its inequalities, derived by the "
        "audit; below zero a plan would not be valid. Middle: sigma, as many times worse than "
        "assumed reality may be while the plan in hand still holds to its end (spot-checked). "
        "Lower: whose input was sent; the higher the bar, the further from the proposal."
    ),
    "residuals": (
        "How far each estimate is from a replay of the last 1, 5 and 20 periods, as a share of "
        "what A1 to A3 allow. Above 1 an assumption was broken; below 1 nothing is contradicted."
    ),
}


def build_audit_page(report: Report) -> str:
    """The whole page."""
    name = str(report.header.get("bundle", "no bundle"))
    state = "good" if report.accepted else "bad"
    side = "--good" if report.accepted else "--danger"
    body = [
        f'<header><div><p class="kicker">safe_rl audit of a flight</p><h1>{escape(name)}</h1>'
        f'<p class="lead">{_lead(report)}</p></div>'
        f'<div class="badge {state}">{audit_text.word(report)}</div></header>',
        f'<p class="certificate" style="border-color:var({side})">'
        f"<b>{audit_text.word(report)}.</b> {escape(audit_text.conclusion(report))}</p>",
        _table("Findings, in the order of records", _finding_rows(report)),
        _table("Assumptions, with the bundle's numbers", audit_text.assumptions(report)),
        *(_figure(key, drawn) for key, drawn in _drawings(report)),
        _table("Derived again", audit_text.checked(report)),
        _table("Interventions and their causes", audit_text.interventions(report)),
        _table("Where it comes from", _origin(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · safe_rl audit</title><style>{CSS}{MORE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _lead(report: Report) -> str:
    flown = escape(str(report.header.get("created", "at an unknown time")))
    short = escape(str(report.header.get("bundle_hash", ""))[:12])
    return f"flown {flown}, bundle hash <code>{short}</code>"


def _finding_rows(report: Report) -> list[Row]:
    if not report.findings:
        return [Row("none", "everything was derived again and agrees")]
    return [Row(f"{place(f.record)} ({MEANINGS[f.kind]})", f.text) for f in report.findings]


def _origin(report: Report) -> list[Row]:
    hidden = {"files", "states", "inputs", "plan_inputs", "sign_every"}
    rows = [Row(key, str(v)) for key, v in sorted(report.header.items()) if key not in hidden]
    files = report.header.get("files", {})
    return rows + [Row(f"sha256 of {name}", str(value)) for name, value in sorted(files.items())]


def _table(title: str, rows: Iterable[Row]) -> str:
    lines = "".join(
        f"<tr><th>{escape(row.name)}</th><td>{escape(row.value)}</td></tr>" for row in rows
    )
    if not lines:
        return ""
    return f'<div class="card"><h2>{escape(title)}</h2><table>{lines}</table></div>'


def _figure(name: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{CAPTIONS[name]}</figcaption></figure>"


def _drawings(report: Report) -> list[tuple[str, str]]:
    if report.flight is None or report.theorem is None or not len(report.slack):
        return []
    return [
        ("margins", style.to_inline_svg(_margins(report), "margins", "Slack and sigma over time")),
        ("residuals", style.to_inline_svg(_residuals(report), "residuals", "Residual ratios")),
    ]


def _margins(report: Report) -> Figure:
    f, period = report.flight, report.theorem.period
    time = np.arange(len(f.kind)) * period
    with style.figure_style():
        figure = Figure(figsize=(10.4, 5.4), layout="constrained")
        top, middle, low = figure.subplots(3, 1, sharex=True, height_ratios=[2.2, 1.5, 1.0])
        slack = np.where(np.isfinite(report.slack), report.slack, np.nan)
        top.axhline(0.0, color=style.DANGER, linewidth=1.4)
        top.plot(time[f.committed], slack, ".", color=style.MARGIN, markersize=3)
        top.set_title(f"Slack of each committed plan: least {np.min(report.slack):.3g}")
        top.set_ylabel("slack")
        middle.axhline(1.0, color=style.DANGER, linewidth=1.4)
        middle.plot(time, f.sigma, ".", color=style.SAFE_ACTION, markersize=3)
        middle.set_title("Sigma" if np.isfinite(f.sigma).any() else "Sigma: not recorded")
        middle.set_ylabel("× assumed")
        _strip(low, f.kind, period)
        low.set_xlim(0.0, max(len(time), 1) * period)
    return figure


def _strip(axes: Axes, kind: np.ndarray, period: float) -> None:
    """One bar per stretch of equal answers."""
    edges = np.flatnonzero(np.diff(kind)) + 1
    starts = np.concatenate(([0], edges))
    for start, stop in zip(starts, np.concatenate((edges, [len(kind)])), strict=True):
        colour, height = LOOKS[Kind(int(kind[start]))]
        axes.broken_barh(
            [(start * period, (stop - start) * period)],
            (0.0, height),
            facecolors=style.VERDICT_COLOURS[colour],
            linewidth=0,
        )
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks([0.12, 0.5, 0.85], ["accept", "projected", "fallback"], fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.set_title("Answers")
    axes.set_xlabel("time since the first record (s)")


def _residuals(report: Report) -> Figure:
    period = report.theorem.period
    colours = (style.SAFE_ACTION, style.MARGIN, style.VERDICT_COLOURS["PROJECTED"])
    with style.figure_style():
        figure = Figure(figsize=(10.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(1.0, color=style.DANGER, linewidth=1.4)
        for (window, ratio), colour in zip(report.ratios.items(), colours, strict=True):
            time = np.arange(len(ratio)) * period
            axes.plot(time, ratio, color=colour, linewidth=0.9, label=f"{window}")
        axes.set_xlim(0.0, len(report.flight.kind) * period)
        axes.set_ylim(bottom=0.0)
        axes.set_title("Residuals against what the assumptions allow")
        axes.set_ylabel("residual / bound")
        axes.set_xlabel("time since the first record (s)")
        axes.legend(
            title="periods", loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.4
        )
    return figure
