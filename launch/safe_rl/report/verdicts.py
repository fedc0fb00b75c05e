"""The verdicts of a flight as words, as stretches of time, and as a legend."""

from __future__ import annotations

from matplotlib.patches import Patch
from safe_rl_core.record import UNSHIELDED, VERDICTS, FlightLog

from safe_rl.report import style


def verdict_names(log: FlightLog) -> list[str]:
    """The verdict of each step as text (K,); `style.NOT_JUDGED` where no shield gave one."""
    return [style.NOT_JUDGED if code == UNSHIELDED else VERDICTS[code] for code in log.verdict]


def runs(names: list[str]) -> list[tuple[int, int, str]]:
    """Stretches of equal verdicts: (first step, one past the last step, verdict)."""
    found, start = [], 0
    for step in range(1, len(names) + 1):
        if step == len(names) or names[step] != names[start]:
            found.append((start, step, names[start]))
            start = step
    return found


def verdict_legend(counts: dict[str, int] | None = None) -> list[Patch]:
    """Legend handles for the verdicts, with how often each was given."""
    return [
        Patch(color=colour, label=name if counts is None else f"{name} {counts.get(name, 0)}")
        for name, colour in style.VERDICT_COLOURS.items()
    ]
