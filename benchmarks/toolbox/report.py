"""What a benchmark answers with: Markdown tables for people, JSON for programs."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolbox import machine

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """A table with a title; the first column is text, the others numbers or text."""

    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def markdown(self) -> str:
        """GitHub's form of a table."""
        line = "|" + "|".join(["---"] + ["---:"] * (len(self.columns) - 1)) + "|"
        rows = ["| " + " | ".join(map(text, row)) + " |" for row in self.rows]
        return "\n".join([f"**{self.title}**", "", _row(self.columns), line, *rows])


@dataclass(frozen=True)
class Target:
    """A number that was asked for: `measured` must be `relation` ("<=" or ">=") `limit`."""

    what: str
    measured: float
    relation: str
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """NaN meets nothing."""
        if self.relation == "<=":
            return self.measured <= self.limit
        return self.measured >= self.limit


@dataclass
class Report:
    """The answer of one script."""

    name: str
    question: str
    machine: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def finish(self) -> Report:
        """Note the load at the end."""
        self.machine = machine.after(self.machine)
        return self

    def markdown(self) -> str:
        """Everything, for README.md."""
        parts = [table.markdown() for table in self.tables]
        if self.targets:
            rows: list[list[Cell]] = [
                [t.what, f"{t.relation} {text(t.limit)} {t.unit}".strip(),
                 f"{text(t.measured)} {t.unit}".strip(), "yes" if t.met else "**no**"]
                for t in self.targets
            ]  # fmt: skip
            parts.append(Table("Targets", ("what", "target", "measured", "met"), rows).markdown())
        parts += self.notes
        parts.append(machine.sentence(self.machine) + ".")
        return "\n\n".join(parts)

    def json(self) -> str:
        """Everything as JSON; not-a-number becomes null."""
        data = asdict(self) | {"markdown": self.markdown()}
        data["targets"] = [asdict(t) | {"met": t.met} for t in self.targets]
        return json.dumps(_plain(data), indent=1, allow_nan=False)


def text(cell: Cell) -> str:
    """A number with three significant digits, a text as it is."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}".replace(",", " ")
    if not math.isfinite(cell):
        return "–"
    if cell == 0.0:
        return "0"
    if abs(cell) >= 1e5 or abs(cell) < 1e-3:
        return f"{cell:.1e}"
    digits = 0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 2 if abs(cell) >= 1 else 3
    return f"{cell:.{digits}f}"


def say(line: str) -> None:
    """Progress, beside the answer and not in it."""
    print(line, file=sys.stderr, flush=True)


def run_script(
    name: str, description: str, measure: Callable[[argparse.Namespace], Report],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> int:  # fmt: skip
    """The command line that every script has."""
    parser = argparse.ArgumentParser(
        prog=f"python benchmarks/{name}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answer there as JSON")
    parser.add_argument(
        "--quick", action="store_true", help="a minute at most: only to see that it works"
    )
    add_arguments(parser)
    args = parser.parse_args()
    report = measure(args).finish()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(report.json())
    print(report.markdown(), flush=True)
    return 0


def write_between_markers(path: Path, name: str, content: str) -> None:
    """Replace what stands between <!-- begin NAME --> and <!-- end NAME --> of a file."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path} needs a line '{begin}' and after it a line '{end}'")
    path.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
