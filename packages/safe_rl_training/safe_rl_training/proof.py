"""The certificate of a robot before it is trained: there is no use in training on what fails.

It speaks of the robot's program, not of the task policy, so a bundle with an untrained policy
carries it until the trained one is there. Phase I learns under the certificate of the program with
the analytic backup policy, and the program that it ends with gets its own. No number of it depends
on the backup policy, and the search, the longest part, is taken up where it ended; all the same
bounds, proof and check are done again, because the certificate names the program that it is about.
As with `safe-rl verify`, it counts only after the independent check has accepted it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from safe_rl_core.bundle import ROBUST, Bundle, certify
from safe_rl_core.errors import CertificateError, ModelError
from safe_rl_systems.build import description, robot_program, write_bundle
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
    say: Callable[[str], None] = print,
) -> Bundle:
    """A bundle with the accepted certificate; CertificateError says why there is none.

    What was proved in the same folder before, for this very program, is not proved again.
    """
    try:
        from safe_rl_core.checker import check
    except ImportError:
        raise ModelError(
            "the independent check needs python-flint: pip install python-flint"
        ) from None
    started = time.monotonic()
    place = folder / robot_program(robot).hash[:12]
    accepted, at_work = place / robot.name, place / "unchecked"
    earlier = _earlier(accepted, robot)
    if earlier is not None:
        say("  as it was proved before")
        return earlier
    at_work.mkdir(parents=True, exist_ok=True)
    network = network_for(robot.system, len(robot.task.observation_names), hidden=8)
    export_policy(network, robot, dict(provenance), at_work / "policy.onnx")
    bundle = write_bundle(robot, at_work / "policy.onnx", _CARD, at_work)
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
        refused = [f"{f.item}: {f.detail}" for f in report.findings if f.verdict == "refused"]
        raise CertificateError(
            f"{robot.name}: the independent check refuses the certificate: {'; '.join(refused)}"
        )
    say(f"  accepted by the independent check after {time.monotonic() - started:.0f} s")
    shutil.rmtree(accepted, ignore_errors=True)
    bundle.path.rename(accepted)
    return Bundle.load(accepted)


def _earlier(carrier: Path, robot: Robot) -> Bundle | None:
    """What was proved before of this very program and the same assumptions."""
    if not (carrier / "bundle.yaml").is_file():
        return None
    bundle = Bundle.load(carrier)
    same = bundle.program.hash == robot_program(robot).hash
    same &= bundle.assumptions == description(robot)["assumptions"]
    return bundle if same and bundle.certificate == ROBUST else None
