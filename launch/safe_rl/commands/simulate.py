"""`safe-rl simulate`: many episodes without ROS, scored."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from safe_rl_core.adversary import KINDS
from safe_rl_core.assumed import ADVERSARIES
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import BundleError, SafeRLError
from safe_rl_core.progress import Progress

from safe_rl.commands.common import add_parser, not_negative, whole
from safe_rl.environment import cores, machine, versions
from safe_rl.episodes import STARTS, Runner, Scenario, fly_all
from safe_rl.json_file import write_json
from safe_rl.report.judgement import certificate_lines
from safe_rl.report.text import emphasise, print_table
from safe_rl.scores import aggregate, score_rows

DESCRIPTION = """\
Fly many episodes without ROS and score them: safety with its interval, return, tracking error,
interventions, time of the shield.

  safe-rl simulate quadrotor_powerloop --episodes 1000
  safe-rl simulate unicycle_lane --plant paper --policy adversarial --episodes 10000
  safe-rl simulate quadrotor_powerloop --plant bullet --laps 5 --episodes 20 --no-shield

Plants: 'model' is the bundle's own equations, 'bullet' full physics in PyBullet that the shield
never reads, 'paper' the published equations (flies the bundle's paper variant), 'assumed' the
model with disturbance, estimate error and delay on the edge of what a certificate assumes.
Episode i of seed S is the flight with seed S + i, whatever the number of jobs.
Exit code: 0 when shielded and nothing was violated, 1 after a violation behind the shield; without
the shield 0.
"""


def add_command(subparsers: Any) -> None:
    """Add `simulate` to the command line."""
    parser = add_parser(subparsers, "simulate", "fly many episodes without ROS", DESCRIPTION)
    parser.add_argument("bundle", help="name or folder of a bundle, e.g. quadrotor_powerloop")
    parser.add_argument("--episodes", type=whole(1), default=20, metavar="N", help="default 20")
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="S", help="first seed, default 0"
    )
    plants = ("paper", "model", "bullet", "assumed")
    parser.add_argument("--plant", choices=plants, default="model")
    parser.add_argument(
        "--policy",
        choices=KINDS,
        default="onnx",
        help="who proposes: the bundle's network, uniform noise, or one that tries to break out",
    )
    parser.add_argument(
        "--start",
        choices=STARTS,
        help="the task's own starts (default for onnx), or anywhere in the operating box with a "
        "verified backup plan (default for random and adversarial)",
    )
    parser.add_argument("--laps", type=whole(1), metavar="L", help="laps instead of one episode")
    parser.add_argument("--no-shield", action="store_true", help="fly the proposals as they are")
    parser.add_argument(
        "--nominal", action="store_true",
        help="the nominal shield on a bundle with a certificate, for comparison",
    )  # fmt: skip
    parser.add_argument("--jobs", type=whole(1), metavar="J", help="processes, default all cores")
    parser.add_argument(
        "--noise", type=not_negative, default=0.0, metavar="X",
        help="bullet only: sensor noise, 1 = the vehicle's own, default 0",
    )  # fmt: skip
    parser.add_argument(
        "--delay-steps", type=whole(0), default=0, metavar="K",
        help="bullet only: command delay in control periods, default 0",
    )  # fmt: skip
    parser.add_argument(
        "--adversary", choices=ADVERSARIES, default="corner",
        help="assumed only: how disturbance and estimate error are chosen, default corner",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=not_negative, default=1.0, metavar="X",
        help="assumed only: multiple of the assumed bounds, default 1; above 1 nothing is proved",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every score there")
    parser.add_argument(
        "--log",
        type=Path,
        metavar="FILE.npz",
        help="write the episode with the smallest margin there",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fly, print the table, write the files."""
    for path in (args.json, args.log):
        if path is not None and not path.parent.is_dir():
            raise SafeRLError(f"cannot write {path}: the folder {path.parent} does not exist")
    bundle, note = plant_bundle(args.bundle, args.plant)
    scenario = make_scenario(args, bundle)
    certificate, meaning = certificate_lines(bundle.certificate)
    print(
        f"{bundle.name} ({bundle.hash[:12]}), plant {args.plant}{note}, policy {args.policy}, "
        f"{args.episodes} episodes of {scenario.steps} steps, seeds {args.seed} to "
        f"{args.seed + args.episodes - 1}"
    )
    print(f"certificate: {certificate}. {meaning}")
    if args.nominal and bundle.robust is not None:
        print(
            emphasise("NOMINAL SHIELD: the certificate does not cover these flights", good=False)
        )
    if args.no_shield:
        print(emphasise("UNSHIELDED: the proposals fly as they are", good=False))
    start = time.perf_counter()
    progress = Progress("episodes", args.episodes)
    unsafe = 0

    def done(episode: Any) -> None:
        nonlocal unsafe
        unsafe += episode.summary["violations"] > 0
        progress.advance(f"unsafe {unsafe}")

    episodes = fly_all(scenario, args.seed, args.episodes, args.jobs or cores(), done)
    progress.close()
    scores = aggregate(episodes)
    seconds = time.perf_counter() - start
    _finish(args, bundle, scenario, scores, seconds)
    return 1 if scores["unsafe_episodes"] and scenario.shielded else 0


def plant_bundle(source: str, plant: str) -> tuple[Bundle, str]:
    """The bundle to fly, and a note for the reader: 'paper' flies the bundle's paper variant."""
    bundle = Bundle.load(source)
    if plant != "paper" or bundle.variant == "paper":
        return bundle, ""
    if "paper" not in bundle.variants:
        raise BundleError(f"{bundle.name} names no paper variant; use --plant model or bullet")
    sibling = bundle.path.parent / bundle.variants["paper"]
    paper = Bundle.load(sibling if sibling.is_dir() else bundle.variants["paper"])
    return paper, f" (the paper variant of {bundle.name})"


def make_scenario(args: argparse.Namespace, bundle: Bundle) -> Scenario:
    """The scenario that the arguments describe."""
    from sim_bridge.flight import Flight

    if bundle.variant == "paper" and args.plant != "paper":
        raise BundleError(
            f"{bundle.name} has the published equations only: use --plant paper, or its model "
            f"variant with --plant {args.plant}"
        )
    if args.laps and not bundle.task.lap_s:
        raise BundleError(f"the task {bundle.task.name} has no laps; leave --laps out")
    return Scenario(
        bundle=str(bundle.path),
        plant="model" if args.plant == "paper" else args.plant,
        policy=args.policy,
        shielded=not args.no_shield,
        steps=Flight(bundle, args.laps).steps
        if args.laps
        else round(bundle.task.duration_s / bundle.period),
        start=args.start or ("task" if args.policy == "onnx" else "recoverable"),
        noise=args.noise,
        delay_steps=args.delay_steps,
        adversary=args.adversary,
        scale=args.scale,
        nominal=args.nominal,
    )


def _finish(
    args: argparse.Namespace,
    bundle: Bundle,
    scenario: Scenario,
    scores: dict[str, Any],
    seconds: float,
) -> None:
    """The verdict, the table, the files."""
    unsafe, total = scores["unsafe_episodes"], scores["episodes"]
    word = f"{unsafe} of {total} episodes unsafe"
    if not scenario.shielded:
        word = f"UNSHIELDED: {word}"
    print(f"\n{emphasise(word, good=unsafe == 0)}")
    print_table(score_rows(scores))
    print(f"  {scores['steps'] / seconds:.0f} steps per s, {seconds:.1f} s, {machine()}")
    if args.json:
        known = {
            "command": shlex.join(["safe-rl", *sys.argv[1:]]),
            "robot": bundle.robot,
            "bundle": bundle.name,
            "bundle_hash": bundle.hash,
            "policy_hash": bundle.hashes["policy.onnx"],
            "certificate": bundle.certificate,
            "plant": args.plant,
            "policy": args.policy,
            "shielded": scenario.shielded,
            "start": scenario.start,
            "seed": args.seed,
            "steps_per_episode": scenario.steps,
            "noise": args.noise,
            "delay_steps": args.delay_steps,
            "adversary": args.adversary,
            "scale": args.scale,
            "nominal_shield": args.nominal or bundle.robust is None,
            "slack_variables": 0,
        }
        machinery = {"wall_s": seconds, "machine": machine(), "versions": versions()}
        write_json(args.json, {**known, **scores, **machinery})
        print(f"  scores in {args.json}")
    if args.log:
        Runner(scenario).fly(scores["worst_seed"]).save(args.log)
        print(f"  flight log of seed {scores['worst_seed']} (smallest margin) in {args.log}")
