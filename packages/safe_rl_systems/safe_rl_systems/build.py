"""From a `Robot` and a trained policy to a bundle folder.

    python -m safe_rl_systems.build quadrotor_powerloop --policy policy.onnx --card CARD.md \\
        --record training.json --out models
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safe_rl_core.bundle import FORMAT, NOMINAL, NUMERICAL_MARGIN, Bundle, write_sums
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel import Compiled, theorem_vector
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_core.program import Program
from torch import Tensor

from safe_rl_systems.backup.learned import load_backup, with_backup
from safe_rl_systems.control_affine import dynamics
from safe_rl_systems.robot import ROBOTS, Robot
from safe_rl_systems.robust import RobustDesign
from safe_rl_systems.trace import trace_program
from safe_rl_systems.verification.assumptions import DOMAINS

#: In a bundle: the layers of its learned backup policy.
BACKUP = "backup.npz"
#: A function to trace and the named sizes of its arguments.
Traced = tuple[Callable[..., Tensor], tuple[tuple[str, int], ...]]


def robot_program(robot: Robot) -> Program:
    """Trace everything that the robot's bundle needs at run time."""
    n, m = len(robot.system.states), len(robot.system.inputs)
    x, u, t = ("x", n), ("u", m), ("t", 1)
    task = robot.task
    functions = {} if robot.robust is None else _robust_functions(robot, robot.robust)
    return trace_program(
        {
            "dynamics": (lambda a, b: dynamics(robot.system, a, b), (x, u)),
            "step": (robot.system.step, (x, u)),
            "safe_set": (robot.safe_set, (x,)),
            "base_set": (robot.base_set, (x,)),
            "backup_policy": (robot.backup_policy, (x,)),
            "base_controller": (robot.base_controller, (x,)),
            "reference": (task.reference, (t,)),
            "observation": (task.observation, (x, t)),
            "reward": (task.reward, (("x_next", n), u, t)),
            "initial_state": (task.initial_state, (("w", task.start_dimension),)),
            "operating_state": (task.operating_state, (("w", task.operating_dimension),)),
            **functions,
        }
    )


def _robust_functions(robot: Robot, design: RobustDesign) -> dict[str, Traced]:
    """The functions that the certificate, the robust shield and the audit evaluate."""
    chart = design.chart
    n, m, k = len(robot.system.states), len(robot.system.inputs), len(chart.errors)
    x, z, u = ("x", n), ("z", n), ("u", m)
    e, s, w = ("e", k), ("s", chart.num_schedule), ("w", k)
    return {
        "difference": (chart.difference, (x, z)),
        "retract": (chart.retract, (z, e)),
        "schedule": (chart.schedule, (x, u)),
        "error_map": (chart.error_map, (s, e, ("v", m), w)),
        "shifted": (design.shifted, (e, ("d", k))),
        "safe_at": (lambda a, b: robot.safe_set(chart.retract(a, b)), (z, e)),
        "base_point": (design.base.point, (x,)),
    }


def description(robot: Robot) -> dict[str, Any]:
    """The contents of bundle.yaml; models/README.md explains every field."""
    task = robot.task
    assumed = {} if robot.robust is None else {"assumptions": _assumptions(robot.robust)}
    return {
        "format": FORMAT,
        "name": robot.name,
        "robot": robot.robot,
        "variant": robot.variant,
        "certificate": NOMINAL,
        "states": [asdict(c) for c in robot.system.states],
        "inputs": [asdict(c) for c in robot.system.inputs],
        "period_s": robot.system.period,
        "horizon_steps": robot.horizon,
        "delay_steps": robot.delay_steps,
        "class_k_per_s": robot.class_k,
        "base_class_k_per_s": robot.base_class_k,
        "safe_set": list(robot.safe_set.names),
        "base_set": list(robot.base_set.names),
        "margins": {
            name: max(NUMERICAL_MARGIN, robot.margins.get(name, 0.0))
            for name in robot.safe_set.names
        },
        "input_scale": list(robot.input_scale),
        "stop_action": list(robot.stop_action),
        "task": {
            "name": task.name,
            "duration_s": robot.duration,
            "lap_s": task.lap,
            "laps_default": robot.laps,
            "observation": list(task.observation_names),
            "tracked": list(task.tracked),
        },
        "variants": dict(robot.variants),
        **assumed,
    }


def _assumptions(design: RobustDesign) -> dict[str, Any]:
    """Bounds per error channel, and the choices that a certificate is derived from."""
    bounds = zip(design.chart.errors, design.disturbance, design.estimate_error, strict=True)
    return {
        "errors": [
            {"name": name, "unit": unit, "disturbance": w, "estimate_error": eta}
            for (name, unit), w, eta in bounds
        ],
        "jitter_s": design.jitter,
        "tracking_gain": design.tracking_gain.tolist(),
        **{name: list(getattr(design, name)) for name in DOMAINS},
        "base": {
            "input": design.base.input.tolist(),
            "schedule": list(design.base_schedule),
            "gain": design.base.gain.tolist(),
            "factor": design.base_set.factor.tolist(),
            "cell_directions": design.cell_directions.tolist(),
            "symmetries": [list(signs) for signs in design.symmetries],
        },
    }


def batch_kernel(robot: Robot, threads: int = 1) -> BatchKernel:
    """The nominal shield's kernel for many states at once, straight from a robot."""
    compiled = Compiled(robot_program(replace(robot, robust=None)))
    theorem = theorem_vector(
        robot.class_k,
        robot.base_class_k,
        robot.system.period,
        low=np.array([c.low for c in robot.system.inputs]),
        high=np.array([c.high for c in robot.system.inputs]),
        scale=np.array(robot.input_scale),
        margin=np.array(list(description(robot)["margins"].values())),
    )
    return BatchKernel(compiled, theorem, robot.horizon, threads)


def write_bundle(
    robot: Robot,
    policy: Path,
    card: str,
    out: Path,
    record: Path | None = None,
    backup: Path | None = None,
) -> Bundle:
    """Write the bundle folder `out`/<name>, then load it with every check; returns it.

    `record` is the training run's own account of itself; it becomes training.json. `backup` holds
    the layers of the robot's learned backup policy, if it has one; the program has them already,
    and with the file `robot_of` can trace it again.
    """
    if not policy.is_file():
        raise ModelError(f"no policy file at {policy}; train one with safe_rl_training first")
    files = {"policy.onnx": policy, "training.json": record, BACKUP: backup}
    contents = {name: path.read_bytes() for name, path in files.items() if path is not None}
    folder = out / robot.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():  # which may be the files just read
        old.unlink()
    text = yaml.safe_dump(description(robot), sort_keys=False, width=99)
    (folder / "bundle.yaml").write_text(text)
    robot_program(robot).save(folder / "program.txt")
    (folder / "CARD.md").write_text(card)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_sums(folder)
    return Bundle.load(folder)


def robot_of(folder: Path) -> Robot:
    """The robot that a bundle of this repository was traced from, with its learned backup."""
    robot = ROBOTS[folder.name]()
    backup = folder / BACKUP
    return with_backup(robot, load_backup(backup, robot)) if backup.is_file() else robot


def main() -> None:
    """Command line: trace one robot and write its bundle."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("robot", choices=sorted(ROBOTS))
    parser.add_argument("--policy", type=Path, required=True, help="trained policy (ONNX)")
    parser.add_argument("--card", type=Path, required=True, help="CARD.md to put into the bundle")
    parser.add_argument("--record", type=Path, help="training.json of the run that made it")
    parser.add_argument("--backup", type=Path, help="backup.npz of a learned backup policy")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder of bundles")
    args = parser.parse_args()
    robot, card = ROBOTS[args.robot](), args.card.read_text()
    if args.backup is not None:
        robot = with_backup(robot, load_backup(args.backup, robot))
    bundle = write_bundle(robot, args.policy, card, args.out, args.record, args.backup)
    print(f"{bundle.path}  {bundle.hash[:12]}  certificate: {bundle.certificate}")


if __name__ == "__main__":
    main()
