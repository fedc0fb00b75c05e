"""The packages as a release: what setup.py, package.xml and the sources say agrees."""

from __future__ import annotations

import ast
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from safe_rl.stack import stack

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("packages/*/package.xml"))
FOLDERS += [ROOT / "launch", ROOT / "models"]
NAMES = [ElementTree.parse(folder / "package.xml").findtext("name") for folder in FOLDERS]
each_package = pytest.mark.parametrize(("folder", "name"), list(zip(FOLDERS, NAMES, strict=True)))

#: import -> rosdep key, where they differ; None: part of another key
KEYS = {
    "numpy": "python3-numpy",
    "scipy": "python3-scipy",
    "yaml": "python3-yaml",
    "osqp": "python3-osqp-pip",
    "onnxruntime": "python3-onnxruntime-pip",
    "onnx": "python3-onnx-pip",
    "torch": "python3-torch",
    "pybullet": "python3-pybullet-pip",
    "matplotlib": "python3-matplotlib",
    "PIL": "python3-pil",
    "mcap": "python3-mcap-pip",
    "nacl": "python3-nacl",
    "mcap_ros2": "python3-mcap-ros2-support-pip",
    "tensorboard": "python3-tensorboard-pip",
}

#: Imported by one command only, which says what to install where it is missing.
OPTIONAL = {"flint", "cvxpy", "ray", "gymnasium", "stable_baselines3"}
OPTIONAL |= {"safe_rl_systems", "safe_rl_training", "torch"}


def imports(folder: Path) -> set[str]:
    """Top-level modules that the sources of a package import, without Python's own."""
    found = set()
    for path in folder.rglob("*.py"):
        if {"test", "build"} & set(path.relative_to(folder).parts) or path.name == "setup.py":
            continue
        for item in ast.walk(ast.parse(path.read_text())):
            if isinstance(item, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in item.names}
            elif isinstance(item, ast.ImportFrom) and item.module and not item.level:
                found.add(item.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


@each_package
def test_name_version_and_marker_agree(folder: Path, name: str) -> None:
    manifest = ElementTree.parse(folder / "package.xml")
    setup = (folder / "setup.py").read_text()
    assert manifest.getroot().get("format") == "3"
    assert f'PACKAGE = "{name}"' in setup
    assert f'version="{manifest.findtext("version")}"' in setup
    assert manifest.findtext("license") == "Apache-2.0"
    assert (folder / "resource" / name).is_file()
    for line in ("script_dir", "install_scripts"):
        assert f"{line}=$base/lib/{name}" in (folder / "setup.cfg").read_text()
    # Without these words colcon runs no tests and calls it a success.
    assert re.search(r'extras_require=\{\s*"test": \["pytest"\]', setup)


@each_package
def test_every_import_is_a_declared_dependency(folder: Path, name: str) -> None:
    manifest = ElementTree.parse(folder / "package.xml")
    declared = {item.text for item in manifest.iterfind("exec_depend")}
    optional = OPTIONAL - declared
    needed = {KEYS.get(module, module) for module in imports(folder) - {name} - optional}
    assert needed <= declared, f"add to package.xml: {sorted(needed - declared)}"


@each_package
def test_dependencies_point_down(folder: Path, name: str) -> None:
    rank = {
        "safe_rl_core": 0, "safe_rl_systems": 1, "safe_rl_training": 2, "safe_rl_ros": 1,
        "safe_policy_node": 2, "backup_shield_node": 2, "sim_bridge": 2, "safe_rl": 3,
        "safe_rl_models": 0,
    }  # fmt: skip
    assert all(rank[other] < rank[name] for other in (imports(folder) & set(rank)) - {name})


def test_every_node_of_the_start_list_is_an_executable_of_its_package(tmp_path: Path) -> None:
    for robot in ("quadrotor", "unicycle"):
        for plant in ("sim", "hardware"):
            for spec in stack(robot, plant=plant, record=tmp_path):
                setup = (ROOT / "packages" / spec.package / "setup.py").read_text()
                assert f'"{spec.executable} = {spec.module}:main"' in setup


def test_launch_folder_does_not_shadow_ros_launch() -> None:
    assert not (ROOT / "launch" / "__init__.py").exists()


def test_workspace_knows_every_package() -> None:
    words = yaml.safe_load((ROOT / "ros2_ws" / "colcon_defaults.yaml").read_text())
    for verb in ("list", "build", "test"):
        places = {(ROOT / "ros2_ws" / path).resolve() for path in words[verb]["base-paths"]}
        assert places == {ROOT / "packages", ROOT / "launch", ROOT / "models"}


def pins(name: str) -> dict[str, list[str]]:
    """Package -> hashes, of a requirement file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.partition("==")[0]: re.findall(r"sha256:([0-9a-f]{64})", line) for line in lines}


def test_wheels_are_pinned_with_hashes() -> None:
    for name in ("robot", "ros", "sim", "test", "train", "lint", "bench"):
        found = pins(name)
        assert found
        assert all(found.values()), f"{name}.txt has pins without a hash"


def test_the_robot_needs_neither_torch_nor_simulator() -> None:
    robot = set(pins("robot")) | set(pins("ros"))
    assert {"numpy", "osqp", "onnxruntime", "ros-rclpy"} <= robot
    assert not {"torch", "pybullet", "matplotlib", "onnx"} & robot


def test_requirement_files_name_no_place_to_download_from() -> None:
    for path in (ROOT / "requirements").iterdir():
        if path.suffix in (".txt", ".in"):
            assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|^-[if] ",
                                 path.read_text(), re.MULTILINE), path.name  # fmt: skip
