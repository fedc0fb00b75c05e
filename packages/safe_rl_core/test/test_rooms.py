"""Each room imports only what it may: checked in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = (
    "import sys, importlib\n"
    "importlib.import_module(sys.argv[1])\n"
    "print(*[name for name in ('torch', 'rclpy', 'pybullet') if name in sys.modules])\n"
)


def test_a_launch_file_needs_neither_solver_nor_inference() -> None:
    """`ros2 launch` may run in a Python that has only ROS: the node list must load there."""
    probe = (
        "import sys\n"
        "for name in ('osqp', 'onnxruntime', 'scipy'): sys.modules[name] = None\n"
        "import safe_rl.stack, safe_rl_core\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("safe_rl_core.checker", {"ball", "tape"}),
        ("safe_rl_core.audit", {"chain", "chain_reader"}),
    ],
)
def test_checker_and_audit_share_with_what_flies_only_the_program(
    module: str, others: set[str]
) -> None:
    """Nor with each other; no solver, no inference, no ROS."""
    probe = (
        "import sys, importlib\n"
        "importlib.import_module(sys.argv[1])\n"
        "print(*[name for name in sys.modules if name.startswith('safe_rl')])\n"
        "print(*{'osqp', 'onnxruntime', 'scipy', 'torch', 'rclpy'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, module], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if not name.startswith(module)}
    expected = {f"safe_rl_core.{name}" for name in others | {"errors", "program"}}
    assert loaded == expected | {"safe_rl_core"}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("safe_rl_core", set()),
        ("safe_rl_core.adversary", set()),
        ("safe_rl_core.metrics", set()),
        ("safe_rl_systems.robot", {"torch"}),
        ("safe_rl_systems.build", {"torch"}),
        ("safe_rl_training.tracker", {"torch"}),
        ("sim_bridge.plants", {"pybullet"}),
        ("safe_rl_ros.convert", set()),
        ("safe_rl.cli", set()),
    ],
)
def test_a_room_imports_only_what_it_may(module: str, allowed: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, module], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= allowed
