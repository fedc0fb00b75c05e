"""The report as one HTML file that needs nothing else: text, tables, inline SVG, the film as data.

No script, no network address. Light and dark follow the reader's system.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from safe_rl.report.judgement import certificate_lines, judge
from safe_rl.report.page_style import CSS
from safe_rl.report.style import VERDICT_COLOURS, VERDICT_MEANINGS
from safe_rl.report.text import Row, flight_rows, provenance_rows, quantity

BADGES = {"NO VIOLATION": "good", "VIOLATED": "bad", "INCOMPLETE": "unknown"}

CAPTIONS = {
    "path": (
        "The dashed reference leaves the safe set on purpose. Colour: the shield's verdict in "
        "each control period. Hatched: outside the safe set. A red cross marks a violating state."
    ),
    "timeline": (
        "Upper: smallest row of the safe set, on the true state and over the plan that the shield "
        "verified (after the bundle's margin; below zero no plan was). Lower: verdicts, told by "
        "colour and by height."
    ),
    "actions": (
        "Held for one control period each. Where both lines coincide, the proposal flew as it was."
    ),
    "latency": (
        "Left: computation of one shield step. Right: from the state's arrival at the shield node "
        "to its command being published; in lockstep this includes waiting for the proposal."
    ),
}


def build_page(
    summary: Mapping[str, Any], figures: Mapping[str, str], film: bytes | None = None
) -> str:
    """The whole page.

    `figures`: SVG elements by name ("path", "timeline", "actions", "latency"); `film`: a GIF.
    """
    title = f"{summary['robot']} · {summary['bundle']}"
    path = _figure("path", figures["path"])
    legend, picture = _legend(), _film(film)
    scores = _table("Scores", flight_rows(summary))
    origin = _table("Where it comes from", provenance_rows(summary))
    if summary["robot"] == "quadrotor":  # a square path: the film fits beside it
        first, last = _columns(path, picture + legend), _columns(scores, origin)
    else:
        first, last = path + _columns(picture + legend, scores), origin
    rest = [_figure(name, figures[name]) for name in ("timeline", "actions", "latency")]
    body = [_header(summary), _tiles(summary), first, *rest, last]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · safe_rl flight report</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _header(summary: Mapping[str, Any]) -> str:
    judgement = judge(dict(summary))
    certificate, meaning = certificate_lines(summary["certificate"])
    laps = f"{summary['laps']} laps, " if summary.get("laps") else ""
    length = f"{laps}{summary['duration_s']:.2f} s, {summary['steps']} control periods"
    plant = escape(str(summary.get("plant") or "not recorded"))
    short_hash = escape(summary["bundle_hash"][:12])
    return (
        f'<header><div><p class="kicker">safe_rl flight report</p>'
        f"<h1>{escape(_capital(summary['robot']))}: {escape(_task(summary))}</h1>"
        f'<p class="lead">{length}, plant <b>{plant}</b>, bundle '
        f"<code>{escape(summary['bundle'])}</code> <code>{short_hash}</code>"
        f'</p></div><div class="badge {BADGES[judgement.word]}">{judgement.word}</div></header>'
        f'<p class="sentence">{escape(_capital(judgement.sentence))}.</p>'
        f'<p class="certificate"><b>Certificate: {escape(certificate)}.</b> {escape(meaning)}</p>'
    )


def _task(summary: Mapping[str, Any]) -> str:
    return str(summary.get("task") or summary["bundle"]).replace("_", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tiles(summary: Mapping[str, Any]) -> str:
    times = (
        ("shield step", summary["shield_us"], "µs", 0),
        ("state to command", summary["latency_ms"], "ms", 2),
    )
    tiles = [
        ("violations", f"{summary['violations']}", f"of {summary['steps'] + 1} states"),
        (
            "worst margin",
            f"{summary['worst_margin']:+.3f}",
            summary["worst_row"].replace("_", " "),
        ),
        ("return", quantity(summary["return"]), "sum of rewards"),
        ("interventions", f"{100.0 * summary['intervention_rate']:.1f} %", "of control periods"),
    ]
    for name, values, unit, digits in times:
        if values:
            p50, p99 = (f"{values[key]:.{digits}f} {unit}" for key in ("p50", "p99"))
            tiles.append((name, p50, f"p99 {p99}"))
    cells = "".join(
        f"<div><span>{escape(name)}</span><b>{escape(value)}</b><i>{escape(note)}</i></div>"
        for name, value, note in tiles
    )
    return f'<section class="tiles">{cells}</section>'


def _columns(left: str, right: str) -> str:
    return f'<section class="columns"><div>{left}</div><div>{right}</div></section>'


def _film(film: bytes | None) -> str:
    if film is None:
        return ""
    data = base64.b64encode(film).decode()
    return (
        f'<figure><img src="data:image/gif;base64,{data}" alt="The flight, replayed">'
        "<figcaption>The recorded true states, replayed in the PyBullet world; of a long flight "
        "the part around the smallest margin. The bar at the bottom shows the verdicts of the "
        "whole flight, violations in red.</figcaption></figure>"
    )


def _figure(name: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{CAPTIONS[name]}</figcaption></figure>"


def _table(title: str, rows: Iterable[Row]) -> str:
    lines = "".join(
        f"<tr><th>{escape(row.name)}</th><td>{escape(row.value)}</td></tr>" for row in rows
    )
    return f'<div class="card"><h2>{escape(title)}</h2><table>{lines}</table></div>'


def _legend() -> str:
    items = "".join(
        f'<li><span style="background:var(--{name.lower()})"></span><b>{name}</b> '
        f"{escape(VERDICT_MEANINGS[name])}</li>"
        for name in VERDICT_COLOURS
    )
    return f'<div class="card"><h2>The three verdicts</h2><ul class="legend">{items}</ul></div>'
