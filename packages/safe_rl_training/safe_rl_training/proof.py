"""The certificate of a robot before phase II begins: there is no use in training on what fails.

It speaks of the robot's program, not of the task policy, so a bundle with an untrained policy
carries it until the trained one is there. As with `safe-rl verify`, it counts only after the
independent check has accepted it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from safe_rl_core.bundle import ROBUST, Bundle, certify
from safe_rl_core.certificate import Certificate
from safe_rl_core.errors import CertificateError, ModelError
from safe_rl_systems.build import robot_program, write_bundle
from safe_rl_systems.robot import Robot
from safe_rl_systems.verification.certify import certify as derive

from safe_rl_training.export import export_policy
from safe_rl_training.parts.networks import network_for

_CARD = "Carries a certificate until the policy is trained; do not fly it.\n"


def prove(
    robot: Robot,
    folder: Path,
    workers: int,
    provenance: Mapping[str, str],
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Certificate:
    """The accepted certificate; CertificateError says why there is none."""
    try:
        from safe_rl_core.checker import check
    except ImportError:
        raise ModelError(
            "the independent check needs python-flint: pip install python-flint"
        ) from None
    carrier, started = folder / robot.name, time.monotonic()
    if resume and (earlier := _earlier(carrier, robot)) is not None:
        say("  as it was proved before")
        return earlier
    folder.mkdir(parents=True, exist_ok=True)
    network = network_for(robot.system, len(robot.task.observation_names), hidden=8)
    export_policy(network, robot, dict(provenance), folder / "policy.onnx")
    bundle = write_bundle(robot, folder / "policy.onnx", _CARD, folder)
    outcome = derive(
        bundle, provenance=provenance, workers=workers, state_file=folder / "search.npz"
    )
    if outcome.certificate is None:
        raise CertificateError(
            f"{robot.name}: the base set is {outcome.proof.status}: {outcome.proof.advice}"
        )
    outcome.certificate.provenance["duration_s"] = round(time.monotonic() - started, 1)
    say(f"  proved after {time.monotonic() - started:.0f} s")
    certify(bundle.path, outcome.certificate)
    report = check(bundle.path, workers=workers)
    if not report.accepted:
        shutil.rmtree(bundle.path)  # so that nobody takes it for certified
        refused = [f"{f.item}: {f.detail}" for f in report.findings if f.verdict == "refused"]
        raise CertificateError(
            f"{robot.name}: the independent check refuses the certificate: {'; '.join(refused)}"
        )
    say(f"  accepted by the independent check after {time.monotonic() - started:.0f} s")
    return outcome.certificate


def _earlier(carrier: Path, robot: Robot) -> Certificate | None:
    """What an interrupted run had proved for this very program."""
    if not (carrier / "bundle.yaml").is_file():
        return None
    bundle = Bundle.load(carrier)
    same = bundle.certificate == ROBUST and bundle.program.hash == robot_program(robot).hash
    return bundle.robust if same else None
