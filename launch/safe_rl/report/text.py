"""Summaries as rows of words and numbers: the same rows on the terminal and in the page."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from safe_rl.report.judgement import safety_statement


@dataclass(frozen=True)
class Row:
    """One line of a table: a name and a value, both as text."""

    name: str
    value: str


def quantity(value: float | None) -> str:
    """A number with the digits that a reader needs; 'not recorded' for none, nan or infinity."""
    if value is None or not math.isfinite(value):
        return "not recorded"
    return f"{value:.1f}" if abs(value) >= 100.0 else f"{value:.4g}"


def percentiles(values: Mapping[str, float] | None, unit: str) -> str:
    """'p50 12.3 · p99 45.6 · max 78.9 µs' for a summary's block of percentiles."""
    if not values:
        return "not recorded"
    parts = [f"{key} {quantity(values[key])}" for key in ("p50", "p99", "max")]
    return f"{' · '.join(parts)} {unit}"


def counts(values: Mapping[str, int], total: int) -> str:
    """'PASSED 430 (82.1 %) · …' in the order given."""
    share = 100.0 / max(total, 1)
    return " · ".join(f"{name} {count} ({share * count:.1f} %)" for name, count in values.items())


def rmse(values: Mapping[str, float]) -> str:
    """Root mean square errors against the reference, axis by axis with units where known."""
    return " · ".join(
        f"{axis} {quantity(value)}{' ' + axis_unit(axis) if axis_unit(axis) else ''}"
        for axis, value in values.items()
    )


def axis_unit(axis: str) -> str:
    """Unit of a state channel by its name: px, vx, v, theta, psi, Y …; '' where it has none."""
    if axis in ("theta", "psi"):
        return "rad"
    return {"p": "m", "Y": "m", "v": "m/s"}.get(axis[:1], "")


def flight_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The scores of one flight."""
    steps = summary["steps"]
    unsafe = int(summary["violations"] > 0)
    rows = [
        Row("safety", f"{summary['violations']} violating states of {steps + 1}"),
        Row("safety probability", safety_statement(unsafe, 1)),
        Row("worst margin", f"{summary['worst_margin']:+.4f} ({summary['worst_row']})"),
        Row("return", quantity(summary["return"])),
        Row("RMSE to the reference", rmse(summary["rmse"])),
        Row("verdicts", counts(summary["interventions"], steps)),
        Row("reasons", counts(summary["reasons"], steps)),
        Row("changes of verdict", f"{summary['chatter_per_s']:.2f} per s"),
        Row("shield step", percentiles(summary["shield_us"], "µs")),
        Row("state to command", percentiles(summary["latency_ms"], "ms")),
    ]
    gaps = {name: count for name, count in summary.get("gaps", {}).items() if count}
    if gaps:
        text = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in gaps.items())
        rows.append(Row("not in the recording", text))
    return rows


def provenance_rows(summary: Mapping[str, Any]) -> list[Row]:
    """What flew, where, with which seed and which versions."""
    names = (
        ("bundle", "bundle"), ("bundle hash", "bundle_hash"), ("policy hash", "policy_hash"),
        ("certificate", "certificate"), ("plant", "plant"), ("seed", "seed"), ("laps", "laps"),
        ("pace", "pace"), ("flown", "started"), ("recording", "recording"), ("command", "command"),
        ("machine", "machine"),
    )  # fmt: skip
    rows = [Row(name, str(summary[key])) for name, key in names if summary.get(key) is not None]
    rows = [Row(r.name, f"{r.value[:16]}…") if r.name.endswith("hash") else r for r in rows]
    if summary.get("versions"):
        text = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
        rows.append(Row("versions", text))
    return rows


def print_table(rows: Iterable[Row], stream: TextIO | None = None) -> None:
    """Two aligned columns."""
    rows = list(rows)
    stream = stream or sys.stdout
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"  {row.name:<{width}}  {row.value}", file=stream)


def emphasise(text: str, good: bool, stream: TextIO | None = None) -> str:
    """The text in bold green or red where the stream is a terminal that shows colours."""
    stream = stream or sys.stdout
    if not stream.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\033[1;{32 if good else 31}m{text}\033[0m"
