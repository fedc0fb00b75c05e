"""CARD.md of a bundle, from its robot's definition and the record of its training run.

python -m safe_rl_training.card quadrotor_powerloop --record training.json --out CARD.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_rl_core.bundle import NOMINAL, ROBUST
from safe_rl_systems.robot import ROBOTS, Robot

from safe_rl_training.ps2_card import provenance_table, ps2_section

_COLUMNS = (
    ("episodes", "episodes"),
    ("return", "return_mean"),
    ("worst return", "return_worst"),
    ("outside the safe set", "share_of_episodes_outside_safe_set"),
)


def card(robot: Robot, record: Mapping[str, Any]) -> str:
    """The text of CARD.md; `record` is the training.json that the trainer wrote."""
    policy = ps2_section if record.get("algorithm") == "ps2" else _tracker
    return f"# {robot.name}\n\n{_summary(robot)}\n\n{_certificate(robot)}\n\n" + policy(
        robot, record
    )


def _tracker(robot: Robot, record: Mapping[str, Any]) -> str:
    """What is said of a policy that was trained without a shield."""
    rows = "\n".join(
        "| " + " | ".join((setting, *(_number(scores[key]) for _, key in _COLUMNS))) + " |"
        for setting, scores in record["evaluation"].items()
    )
    header = " | ".join(("setting", *(name for name, _ in _COLUMNS)))
    dashes = "|---" * (len(_COLUMNS) + 1) + "|"
    return f"""## The policy

A tracker trained by back-propagation through the robot's equations, **without** a shield: it flies
its reference out of the safe set on purpose, and must not be run without the shield on a robot. It
was trained on the equations of the flying variant; the other bundles of this robot carry the same
network.

{provenance_table(record)}

Unshielded, on the model's equations, as measured by the trainer (`training.json` has all of it):

| {header} |
{dashes}
{rows}

## Limits

- Trained and measured in simulation only.
- The policy sees the state and the task's phase, nothing else; it has no memory.
- Behind the shield it does not know that it is being corrected: it pushes against the limit
  until the reference comes back.
"""


def _certificate(robot: Robot) -> str:
    if robot.robust is None:
        return (
            f"**Certificate: {NOMINAL}.** The base set is checked on samples, not proved; the "
            "margins are\nempirical. The guarantee of the shield is nominal: see docs/theory.md "
            "for what it assumes."
        )
    design = robot.robust
    channels = zip(design.chart.errors, design.disturbance, design.estimate_error, strict=True)
    rows = "\n".join(
        f"| {name} | {w:.3g} {unit} | {eta:.3g} {unit} |" for (name, unit), w, eta in channels
    )
    return (
        f"**Certificate: {ROBUST}**, if `safe-rl verify` has written one beside this card "
        "(bundle.yaml\nsays so). It holds for a vehicle that keeps these bounds, per period, and "
        f"answers {robot.delay_steps} period(s)\nafter its estimate; docs/proof.md says what "
        "follows and what does not.\n\n"
        f"| error channel | disturbance | estimate error |\n|---|---|---|\n{rows}"
    )


def _summary(robot: Robot) -> str:
    rows = ", ".join(robot.safe_set.names)
    equations = {
        "model": "Runge-Kutta, as it flies",
        "paper": "explicit Euler, as published",
        "robust": "with the bounds that a certificate is derived from",
    }
    return (
        f"A {robot.robot} with the task `{robot.task.name}` ({equations[robot.variant]}). "
        f"Control period {robot.system.period:g} s, backup horizon {robot.horizon} periods, "
        f"delay {robot.delay_steps} periods. Safe set: {rows}."
    )


def _number(value: float) -> str:
    return f"{value:.4g}"


def main() -> None:
    """Command line: write one CARD.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("robot", choices=sorted(ROBOTS), help="name of the bundle")
    parser.add_argument("--record", type=Path, required=True, help="training.json of the run")
    parser.add_argument("--out", type=Path, default=Path("CARD.md"))
    args = parser.parse_args()
    args.out.write_text(card(ROBOTS[args.robot](), json.loads(args.record.read_text())))


if __name__ == "__main__":
    main()
