"""How much margin does the gap between model and full physics need, and what does it cost?

Flies the quadrotor's powerloop in PyBullet, 20 seeds of five laps, with the tracker, which pushes
against the ceiling: for several ceiling margins and class-K gains, without the modelled delay,
with the analytic backup policy and the published gains of its recovery, and without a shield. The
other parts are those of the shipped bundle; its own policy does not push (full_physics.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safe_rl_core import Bundle, Policy, Shield
from safe_rl_core.bundle import NUMERICAL_MARGIN
from safe_rl_core.loop import Proposer, initial_state, run_episode
from safe_rl_core.metrics import summarise
from safe_rl_systems.backup import CascadeBackup, SwitchedBackup
from safe_rl_systems.build import robot_program
from safe_rl_systems.robot import quadrotor_powerloop
from sim_bridge.plants import make_plant
from toolbox.trackers import tracker_bundle
from torch import Tensor

ROOT = Path(__file__).parents[1]
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


def with_backup(bundle: Bundle, policy: Callable[[Tensor], Tensor]) -> Bundle:
    """The bundle with another backup policy."""
    robot = replace(quadrotor_powerloop(), backup_policy=policy)
    return replace(bundle, program=robot_program(robot))


def published_backup() -> SwitchedBackup:
    """The analytic backup with the published gains of the recovery law, which know no lag."""
    robot = quadrotor_powerloop()
    recovery = CascadeBackup(robot.system, ceiling=3.0, height=2.0, body_error=True)
    return SwitchedBackup(robot.base_controller, 5.0, recovery)


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
    yield Variant("analytic backup", with_backup(bundle, quadrotor_powerloop().backup_policy))
    published = with_backup(bundle, published_backup())
    yield Variant("analytic backup, published gains", published)
    yield Variant("analytic backup, published gains, no delay", replace(published, delay_steps=0))


def fly(
    variant: Variant, propose: Proposer, seeds: int, noise: float
) -> dict[str, float | str | int]:
    """Scores of one row over all seeds."""
    bundle, flights = variant.bundle, []
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
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print("| variant | violating flights | worst margin (m) | return | changed | backup |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        bundle = tracker_bundle(ROOT / "models" / "quadrotor_powerloop", Path(folder))
        propose = Policy(bundle).act
    for variant in variants(bundle):
        row = fly(variant, propose, args.seeds, args.noise)
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
