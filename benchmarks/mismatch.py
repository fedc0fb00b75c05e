"""How much margin does the gap between model and full physics need, and what does it cost?

Flies the quadrotor's powerloop in PyBullet, 20 seeds of five laps, with the shipped policy, for
several ceiling margins and class-K gains, without the modelled delay, with the published recovery
gains, and without a shield. The bundle's other parts stay as shipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safe_rl_core import Bundle, Policy, Shield
from safe_rl_core.bundle import NUMERICAL_MARGIN
from safe_rl_core.loop import initial_state, run_episode
from safe_rl_core.metrics import summarise
from safe_rl_systems.backup import CascadeBackup, SwitchedBackup
from safe_rl_systems.build import robot_program
from safe_rl_systems.robot import quadrotor_powerloop
from sim_bridge.plants import make_plant

LAPS = 5


@dataclass(frozen=True)
class Variant:
    """One row of the table: what is changed, and the bundle to fly with."""

    name: str
    bundle: Bundle
    shielded: bool = True


def with_margin(bundle: Bundle, margin: float) -> Bundle:
    """The bundle with another ceiling margin in m."""
    margins = dict(bundle.margins) | {"ceiling": max(margin, NUMERICAL_MARGIN)}
    return replace(bundle, margins=margins)


def published_recovery(bundle: Bundle) -> Bundle:
    """The bundle with the published gains of the recovery law, which know no lag."""
    robot = quadrotor_powerloop()
    recovery = CascadeBackup(robot.system, ceiling=3.0, height=2.0, body_error=True)
    backup = SwitchedBackup(robot.base_controller, 5.0, recovery)
    return replace(bundle, program=robot_program(replace(robot, backup_policy=backup)))


def variants(bundle: Bundle) -> Iterator[Variant]:
    """The rows of the table."""
    yield Variant("no shield", bundle, shielded=False)
    yield Variant("as shipped", bundle)
    for margin in (0.0, 0.05, 0.1, 0.15):
        yield Variant(f"ceiling margin {margin:g} m", with_margin(bundle, margin))
    for gain in (5.0, 6.0, 8.0, 10.0):
        yield Variant(f"class-K {gain:g} 1/s", replace(bundle, class_k=gain, base_class_k=gain))
    undelayed = replace(bundle, delay_steps=0)
    yield Variant("no delay in the model", undelayed)
    yield Variant("published recovery gains", published_recovery(bundle))
    yield Variant("published recovery gains, no delay", published_recovery(undelayed))


def fly(variant: Variant, seeds: int, noise: float) -> dict[str, float | str | int]:
    """Scores of one row over all seeds."""
    bundle, flights = variant.bundle, []
    propose = Policy(bundle).act
    shield = Shield(bundle) if variant.shielded else None
    steps = round(LAPS * (bundle.task.lap_s or bundle.task.duration_s) / bundle.period)
    for seed in range(seeds):
        with make_plant(bundle.robot, seed=seed, noise=noise) as plant:
            start = initial_state(bundle, np.random.default_rng(seed))
            log = run_episode(bundle, plant, propose, shield, steps=steps, seed=seed, x0=start)
        flights.append(summarise(bundle, log))
    return {
        "variant": variant.name,
        "flights": seeds,
        "violating": sum(f["violations"] > 0 for f in flights),
        "worst_margin_m": min(f["worst_margin"] for f in flights),
        "return": float(np.mean([f["return"] for f in flights])),
        "intervention_rate": float(np.mean([f["intervention_rate"] for f in flights])),
        "backup_rate": float(
            np.mean([f["interventions"]["BACKUP"] / f["steps"] for f in flights])
        ),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--noise", type=float, default=1.0, help="sensor noise, 1 = nominal")
    parser.add_argument("--bundle", default="quadrotor_powerloop")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print("| variant | violating flights | worst margin (m) | return | changed | backup |")
    print("|---|---|---|---|---|---|")
    for variant in variants(Bundle.load(args.bundle)):
        row = fly(variant, args.seeds, args.noise)
        rows.append(row)
        print(
            f"| {row['variant']} | {row['violating']} of {row['flights']} "
            f"| {row['worst_margin_m']:+.3f} | {row['return']:.0f} "
            f"| {row['intervention_rate']:.0%} | {row['backup_rate']:.0%} |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
