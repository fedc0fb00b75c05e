"""What a finished flight amounts to, in one word and one sentence, and as an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safe_rl_core.metrics import wilson

#: what stands behind "none (nominal)"; repeated wherever the certificate is printed
NOMINAL_ASSUMPTION = (
    "Nothing is certified for this bundle: the shield's guarantee is nominal. It assumes that "
    "the robot moves as the bundle's model says, that the measured state is the true one, that "
    "commands arrive within their period, and that the base set is invariant, which has not "
    "been proved."
)


@dataclass(frozen=True)
class Judgement:
    """`word` for a badge, `sentence` for a reader; `passed` decides the exit code."""

    word: str
    sentence: str
    passed: bool


def judge(summary: dict[str, Any]) -> Judgement:
    """Judge a flight's summary. A flight passes only when it is complete and nothing was violated.

    An incomplete recording is not a safe one: what was not seen was not judged.
    """
    steps, violations = summary["steps"], summary["violations"]
    worst = f"worst margin {summary['worst_margin']:+.4f} ({summary['worst_row']})"
    if violations:
        return Judgement(
            "VIOLATED",
            f"{violations} of {steps + 1} states lie outside the safe set; {worst}",
            False,
        )
    missing = summary.get("gaps", {}).get("true_states", 0)
    expected = summary.get("expected_steps")
    if missing or (expected is not None and steps < expected):
        reason = (
            f"{missing} true states are missing from the recording"
            if missing
            else f"the flight ended after {steps} of {expected} steps"
        )
        return Judgement("INCOMPLETE", f"{reason}; no violation in what was seen, {worst}", False)
    return Judgement(
        "NO VIOLATION", f"none of {steps + 1} states left the safe set; {worst}", True
    )


def safety_statement(unsafe: int, episodes: int) -> str:
    """Safety probability with its Wilson 95 % interval; without unsafe ones also the 3/N bound."""
    low, high = wilson(episodes - unsafe, episodes)
    share = (episodes - unsafe) / episodes
    text = f"{share:.4g} (95 % interval {low:.4g} to {high:.4g}, {episodes} episode"
    text += ")" if episodes == 1 else "s)"
    if unsafe == 0 and episodes > 3:
        text += f"; 0 unsafe bounds the rate by about 3/N = {3.0 / episodes:.2g}"
    return text


def certificate_lines(certificate: str) -> tuple[str, str]:
    """The certificate as the bundle states it, and what that means for a reader."""
    if certificate.startswith("none"):
        return certificate, NOMINAL_ASSUMPTION
    return (
        certificate,
        "The certificate file in the bundle says what was proved, and for which model.",
    )
