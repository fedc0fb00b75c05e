"""From a robot's definition to a bundle that flies: both phases of PS2-RL in one go.

    certificate -> phase I -> certificate -> phase II -> export -> evaluation -> bundle

    OUT/run.json                  what was asked for, and the wall time of each part
    OUT/phase1/                   checkpoint, backup.npz, record.json, tb/
    OUT/certificate/              only for a robot that states its bounds: the search of the proof,
                                  the programs that were proved (phase I changes the program)
    OUT/phase2/                   checkpoint.pt, policy.onnx, tb/
    OUT/training.json, CARD.md, learning_curve.png
    OUT/<bundle>/                 what `safe-rl fly --bundle` takes

Every part finds what it had done when the run is resumed. Nothing here is trusted: program,
certificate and shield are those of the core, and the bundle is loaded with all of its checks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safe_rl_core.bundle import Bundle, certify, file_hash
from safe_rl_core.certificate import Certificate
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.build import BACKUP, batch_kernel, robot_program, write_bundle
from safe_rl_systems.robot import ROBOTS, Robot

from safe_rl_training import learners, ps2
from safe_rl_training.card import card
from safe_rl_training.export import export_policy
from safe_rl_training.montecarlo import POLICY, evaluate_in_pieces
from safe_rl_training.parts import checkpoint
from safe_rl_training.parts.learner import Learner
from safe_rl_training.parts.networks import PolicyNetwork
from safe_rl_training.parts.policy_file import policy_function
from safe_rl_training.parts.provenance import provenance
from safe_rl_training.parts.report import write_training_record
from safe_rl_training.parts.training_log import draw_returns
from safe_rl_training.phase_one import backup_of, refuse_impossible
from safe_rl_training.plan import Plan
from safe_rl_training.proof import prove
from safe_rl_training.robot_source import load_robot, shown
from safe_rl_training.shielded_evaluation import evaluate_shielded

#: The same starts for every run, apart from those that training or the final figures see.
VALIDATION_SEED, EVALUATION_SEED = 10**9, 2 * 10**9
#: Name in the record -> what proposes, and whether the shield is on.
PROPOSALS = {
    "ps2": ("policy", True),
    "backup": ("backup", True),
    "stop": ("stop", True),
    "unshielded": ("policy", False),
}
_NOT_BINDING = ("phase1_only",)
Say = Callable[[str], None]


@dataclass
class _Run:
    """A plan at work in its folder."""

    plan: Plan
    out: Path
    say: Say
    cluster: str | None
    identity: dict[str, Any]
    seconds: dict[str, float]
    finished: bool = False

    @contextmanager
    def part(self, name: str, title: str) -> Iterator[None]:
        """Says the title and adds up the wall time, over resumes too."""
        self.say(f"\n{title}")
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)
            self.save()

    def save(self) -> None:
        """Write run.json."""
        names = ("identity", "seconds", "finished")
        text = json.dumps({name: getattr(self, name) for name in names}, indent=2)
        partial = self.out / "run.partial"
        partial.write_text(text + "\n")
        partial.replace(self.out / "run.json")


def train(
    plan: Plan, out: Path, *, resume: bool = False, cluster: str | None = None, say: Say = print
) -> dict[str, Any]:
    """Run the plan in the folder `out`; the record that becomes training.json.

    `cluster`: where the final evaluation flies (`cluster.py`). Ctrl-C leaves what a later call
    with `resume` goes on from, and raises KeyboardInterrupt.
    """
    torch.set_num_threads(plan.threads)
    robot = load_robot(plan.source)
    refuse_impossible(robot, plan.backup)
    settings = plan.learner_settings(robot)
    # Taken before the first step: the sources may change while the training runs.
    made_by = provenance(plan.command(), plan.seed, plan.threads)
    run = _Run(plan, out, say, cluster, **_open(plan, robot, settings, out, resume))
    if run.finished:
        say(f"{out} is finished: {Bundle.load(out / robot.name).path}")
        return json.loads((out / "training.json").read_text())
    run.save()
    _print_plan(run, robot, settings)
    certified = _certified(run, robot, "certificate: bounds, base set, independent check", made_by)
    with run.part("phase1", f"phase I: {plan.backup} backup policy"):
        found = backup_of(
            robot, plan.backup, seed=plan.seed, out=out / "phase1", quick=plan.quick,
            threads=plan.threads, resume=resume, bundle=certified, say=say,
        )  # fmt: skip
        robot = found.robot
    if plan.phase1_only:
        say(f"phase I is done, as asked for; the whole: {plan.command()} --out {out} --resume")
        return {"phase1": found.record, "seconds": dict(run.seconds)}
    if plan.backup != "analytic":
        certified = _certified(run, robot, "certificate, with this backup policy", made_by)
    certificate = None if certified is None else certified.robust
    kernel = batch_kernel(robot, plan.threads)
    with run.part("phase2", f"phase II: {plan.learner}, shielded"):
        learner, standing = _phase_two(run, robot, settings, kernel, resume)
    trained = _export(run, robot, learner, standing, kernel, made_by)
    record = {
        "algorithm": "ps2",
        "provenance": {**made_by, "duration_s": f"{sum(run.seconds.values()):.1f}"},
        **{name: getattr(plan, name) for name in ("backup", "learner", "quick")},
        "warm_start": run.identity["warm_start"],
        "settings": learners.plain(settings),
        "phase1": found.record,
        "certificate": None if certificate is None else dict(certificate.provenance),
        "phase2": _account(learner, standing),
        **trained,
        "seconds": dict(run.seconds),
    }
    _write(run, robot, record, standing, certificate)
    run.finished = True
    run.save()
    return record


def _certified(run: _Run, robot: Robot, title: str, made_by: dict[str, str]) -> Bundle | None:
    """A bundle with the robot's certificate; None if it assumes no bounds."""
    if robot.robust is None:
        return None
    with run.part("certificate", title):
        return prove(robot, run.out / "certificate", run.plan.threads, made_by, say=run.say)


def _open(
    plan: Plan, robot: Robot, settings: learners.Settings, out: Path, resume: bool
) -> dict[str, Any]:
    """Make the run's folder, or see that it fits; what run.json is to hold."""
    asked = {k: v for k, v in asdict(plan).items() if k not in (*_NOT_BINDING, "changes")}
    asked["source"] = shown(plan.source)
    asked["warm_start"] = _warm_start(plan)
    identity = {**asked, **_plain(settings), "program": robot_program(robot).hash}
    identity = json.loads(json.dumps(identity))
    stored = out / "run.json"
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists; go on with it by --resume, or name another --out")
    if resume:
        if not stored.is_file():
            raise ModelError(f"--resume: no run in {out}; start it without --resume")
        before = json.loads(stored.read_text())
        checkpoint.refuse_other_settings(stored, before["identity"], identity)
        return before
    out.mkdir(parents=True, exist_ok=True)
    return {"identity": identity, "seconds": {}}


def _warm_start(plan: Plan) -> dict[str, str] | None:
    """The policy that phase II begins with, wherever its file is."""
    if plan.warm_start is None:
        return None
    file = Path(plan.warm_start)
    made_by = policy_function(file)[1].get("command", "unknown")
    return {"file": file.name, "sha256": file_hash(file), "command": made_by}


def _plain(settings: learners.Settings) -> dict[str, Any]:
    return {f"learner.{name}": value for name, value in learners.plain(settings).items()}


def _print_plan(run: _Run, robot: Robot, settings: learners.Settings) -> None:
    plan, episodes = run.plan, run.plan.episodes
    proof = "certificate  derived, proved, and checked by the second program"
    steps = [] if robot.robust is None else [proof]
    steps.append(f"phase I      {plan.backup} backup policy, {robot.horizon} periods ahead")
    if not plan.phase1_only:
        if robot.robust is not None and plan.backup != "analytic":
            steps.append("certificate  again, for the program with that backup policy")
        steps += [
            f"phase II     {plan.learner}, {settings.iterations} iterations, shielded, from "
            + ("nothing" if plan.warm_start is None else Path(plan.warm_start).name),
            f"evaluation   {episodes[1]} episodes each: ps2, backup, stop, unshielded",
            f"bundle       {run.out / robot.name}",
        ]
    run.say(f"{robot.name}, seed {plan.seed}, {plan.threads} threads, {plan.device}: {run.out}")
    for i, step in enumerate(steps, 1):
        run.say(f"  {i}  {step}")


def _phase_two(
    run: _Run, robot: Robot, settings: learners.Settings, kernel: BatchKernel, resume: bool
) -> tuple[Learner, ps2.Standing]:
    plan = run.plan

    def validate(policy: ps2.PolicyFunction) -> dict[str, Any]:
        return evaluate_shielded(
            robot, policy, plan.episodes[0], VALIDATION_SEED, plan.threads, kernel=kernel
        )

    learner = learners.make(
        robot, settings, plan.seed, plan.threads, plan.device, kernel,
        None if plan.warm_start is None else Path(plan.warm_start),
    )  # fmt: skip
    often = max(1, settings.iterations // (4 if plan.quick else 40))
    standing = ps2.run(
        learner,
        validate,
        ps2.RunSettings(settings.iterations, often),
        run.out / "phase2",
        identity={**run.identity, "trained_with": kernel.compiled.program.hash},
        resume=resume,
    )
    return learner, standing


def _export(
    run: _Run,
    robot: Robot,
    learner: Learner,
    standing: ps2.Standing,
    kernel: BatchKernel,
    made_by: dict[str, str],
) -> dict[str, Any]:
    """The best network as policy.onnx, and its scores."""
    network = ps2.best_network(learner, standing)
    so_far = {**made_by, "duration_s": f"{sum(run.seconds.values()):.1f}"}
    exported = export_policy(network, robot, so_far, run.out / POLICY)
    with run.part("evaluation", "evaluation, on the model's equations"):
        return {"export": exported, "evaluation": _evaluate(run, robot, network, kernel)}


def _write(
    run: _Run,
    robot: Robot,
    record: dict[str, Any],
    standing: ps2.Standing,
    certificate: Certificate | None,
) -> None:
    """The record, the picture, the card and the bundle."""
    out = run.out
    write_training_record(record, out / "training.json")
    points = [(steps, value) for steps, value, _ in standing.validated]
    draw_returns(standing.collected, points, f"{robot.name}: phase II", out / "learning_curve.png")
    text = card(robot, record)
    (out / "CARD.md").write_text(text)
    backup = out / "phase1" / BACKUP if run.plan.backup == "learned" else None
    bundle = write_bundle(robot, out / POLICY, text, out, out / "training.json", backup)
    if certificate is not None:
        bundle = certify(bundle.path, certificate)
    run.say(f"\n{bundle.path}  {bundle.hash[:12]}  certificate: {bundle.certificate}")
    flown = f"fly {robot.robot} --bundle" if run.plan.source in ROBOTS else "simulate"
    run.say(f"fly it: safe-rl {flown} {bundle.path}")


def _account(learner: Learner, standing: ps2.Standing) -> dict[str, Any]:
    """Phase II in figures; violations are 0, or there would be no account."""
    return {
        "iterations": learner.iteration,
        "env_steps": learner.env_steps,
        "violations": learner.violations,
        "validations": [list(point) for point in standing.validated],
        "best_return": standing.best_return,
        "best_at_iteration": standing.best_at,
        "env_steps_per_s": round(learner.env_steps / max(standing.elapsed, 1e-9), 1),
    }


def _evaluate(
    run: _Run, robot: Robot, network: PolicyNetwork, kernel: BatchKernel
) -> dict[str, Any]:
    """Scores by policy; a line for each."""
    plan, scores = run.plan, {}
    if run.cluster is not None:
        scores = evaluate_in_pieces(
            run.out, plan.source, plan.backup, PROPOSALS, episodes=plan.episodes[1],
            seed=EVALUATION_SEED, threads=plan.threads, cluster=run.cluster, say=run.say,
        )  # fmt: skip
    own = ps2.as_function(network)
    for name, (proposal, shielded) in PROPOSALS.items():
        if name not in scores:
            scores[name] = evaluate_shielded(
                robot, own if proposal == "policy" else proposal, plan.episodes[1],
                EVALUATION_SEED, plan.threads, shielded=shielded, kernel=kernel,
            )  # fmt: skip
        found = scores[name]
        run.say(
            f"  {name:<11} return {found['return_mean']:10.2f} ± {found['return_std']:.2f}   "
            f"unsafe {found['unsafe_episodes']} of {found['episodes']}"
        )
    return scores
