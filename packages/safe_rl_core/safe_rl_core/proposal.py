"""What identification proposes, as the text of a file: values, origin, and what they are not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from safe_rl_core.bundle import Bundle

if TYPE_CHECKING:
    from safe_rl_core.identify import Identification, Settings

DIGITS = 3


def meaning(settings: Settings) -> list[str]:
    """What the proposal is and what it is not."""
    return [
        f"proposed: the largest value of {settings.exposure:g} s stays below it with probability "
        f"{settings.probability:g},",
        f"per channel; upper limits with {100 * settings.confidence:g} % confidence, tails by a "
        "generalised Pareto law.",
        "This is a statistical estimate, not a bound. It holds for conditions like those",
        "recorded; it does not see a lasting error of the estimate, events rarer than the",
        "recordings are long, or what hides below the noise.",
    ]


def proposal_text(
    bundle: Bundle, found: Identification, settings: Settings, recordings: Iterable[Path]
) -> str:
    """The `assumptions` fragment of a bundle.yaml, with its origin."""
    assumed = bundle.assumptions or {}
    errors = [
        {
            "name": name,
            "unit": unit,
            "disturbance": rounded_up(found.disturbance.proposed[i]),
            "estimate_error": rounded_up(found.estimate_error.proposed[i]),
        }
        for i, (name, unit) in enumerate(zip(found.names, found.units, strict=True))
    ]
    data = {
        "delay_steps": found.delay.used,
        "assumptions": {"errors": errors, "jitter_s": assumed.get("jitter_s", 0.0)},
    }
    files = ", ".join(path.name for path in recordings)
    comments = [
        f"Proposed by safe-rl identify for {bundle.name} ({bundle.hash[:12]}) from {files}.",
        *meaning(settings),
        "jitter_s is copied: what it does to the state is part of the disturbance seen here.",
        "To use it: enter the values in the robot's definition, build the bundle again, and run",
        "safe-rl verify. A certificate holds only for the values that it was derived from.",
    ]
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(data, sort_keys=False, width=99)


def rounded_up(value: float) -> float:
    """The next number with DIGITS significant digits, never below `value`."""
    if not value > 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    return float(f"{math.ceil(value / unit) * unit:.{DIGITS - 1}e}")
