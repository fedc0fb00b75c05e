"""The start list: which nodes, with which parameters; and that `ros2 launch` gets the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml
from safe_rl.arguments import ARGUMENTS, options
from safe_rl.stack import BUNDLES, NodeSpec, StackError, share_directory, stack

ROBOTS = sorted(BUNDLES)


def by_name(specs: tuple[NodeSpec, ...]) -> dict[str, NodeSpec]:
    return {spec.name: spec for spec in specs}


@pytest.mark.parametrize("robot", ROBOTS)
def test_simulation_is_policy_shield_and_plant(robot: str) -> None:
    specs = stack(robot, seed=7, laps=2, gui=True)
    assert [spec.name for spec in specs] == ["policy", "shield", "sim"]
    assert [spec.ends_stack for spec in specs] == [False, False, True]
    assert {spec.parameters["bundle"] for spec in specs} == {BUNDLES[robot]}
    assert all(spec.parameters["lockstep"] is True for spec in specs)
    sim = by_name(specs)["sim"].parameters
    assert (sim["plant"], sim["seed"], sim["laps"], sim["gui"]) == ("bullet", 7, 2, True)
    assert sim["wait_for"] == ("policy", "shield")
    assert sim["realtime"] is False


def test_the_robot_flies_on_without_its_policy_but_not_without_its_shield() -> None:
    for plant in ("sim", "hardware"):
        specs = by_name(stack("quadrotor", plant=plant, record="there"))
        assert specs["shield"].required
        assert not specs["policy"].required
        assert not specs["recorder"].required


def test_hardware_takes_the_place_of_the_simulation(tmp_path: Path) -> None:
    specs = by_name(stack("quadrotor", plant="hardware", record=tmp_path, seed=3, gui=True))
    assert sorted(specs) == ["hardware", "policy", "recorder", "shield"]
    assert specs["hardware"].module == "sim_bridge.hardware_node"
    assert specs["hardware"].ends_stack
    assert specs["policy"].parameters["start_at_first_state"] is True
    for spec in specs.values():
        assert spec.parameters["lockstep"] is False
        assert spec.parameters["use_sim_time"] is False
        assert not {"seed", "laps", "gui", "plant"} & set(spec.parameters)


def test_the_simulation_waits_for_the_recorder(tmp_path: Path) -> None:
    specs = by_name(stack("unicycle", record=tmp_path / "run"))
    assert specs["recorder"].parameters["output"] == str(tmp_path / "run")
    assert specs["sim"].parameters["wait_for"] == ("policy", "shield", "recorder")


def test_without_lockstep_the_clock_drives_the_plant() -> None:
    specs = by_name(stack("quadrotor", lockstep=False))
    assert specs["shield"].parameters["lockstep"] is False
    assert specs["sim"].parameters["realtime"] is True


@pytest.mark.parametrize(
    ("robot", "more", "words"),
    [
        ("boat", {}, "quadrotor, unicycle"),
        ("quadrotor", {"plant": "moon"}, "hardware"),
        ("quadrotor", {"laps": -1}, "laps"),
        ("quadrotor", {"config": "no/such.yaml"}, "no/such.yaml"),
    ],
)
def test_what_cannot_be_started_is_refused_with_what_to_do(robot, more, words) -> None:
    with pytest.raises(StackError, match=words):
        stack(robot, **more)


def test_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(StackError, match="make run"):
        share_directory()


@pytest.mark.parametrize("robot", ROBOTS)
def test_wiring_sets_nothing_that_the_start_list_sets(robot: str, tmp_path: Path) -> None:
    """Else the file would say one thing and the nodes do another."""
    wiring = yaml.safe_load((share_directory() / "config" / f"{robot}.yaml").read_text())
    for plant in ("sim", "hardware"):
        for spec in stack(robot, plant=plant, record=tmp_path):
            own = wiring.get(spec.name, {}).get("ros__parameters", {})
            both = {**wiring["/**"]["ros__parameters"], **own}
            assert not set(both) & set(spec.parameters)
    assert set(wiring) - {"/**"} <= {"policy", "shield", "recorder", "sim", "hardware"}


def test_arguments_of_launch_files_become_options() -> None:
    defaults = {argument.name: argument.default for argument in ARGUMENTS}
    assert stack("quadrotor", **options("quadrotor", defaults)) == stack("quadrotor")
    given = {**defaults, "record": "True", "seed": "4", "gui": "true", "bundle": "my/bundle"}
    found = options("quadrotor", given)
    assert found["record"].parent == Path("runs")
    assert found["record"].name.endswith("-quadrotor")
    assert (found["seed"], found["gui"], found["bundle"]) == (4, True, "my/bundle")
    assert options("quadrotor", {**defaults, "record": "here"})["record"] == "here"
    for name, text in (("gui", "perhaps"), ("laps", "many")):
        with pytest.raises(StackError, match=f"{name}:={text}"):
            options("quadrotor", {**defaults, name: text})


ROS_LAUNCH = importlib.util.find_spec("launch_ros") is not None


@pytest.mark.skipif(not ROS_LAUNCH, reason="launch and launch_ros are not on PyPI")
@pytest.mark.parametrize("arguments", [{}, {"plant": "hardware"}, {"record": "out", "laps": "3"}])
@pytest.mark.parametrize("robot", ROBOTS)
def test_launch_files_start_the_same_nodes(robot: str, arguments: dict[str, str]) -> None:
    from launch import LaunchContext
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    from launch.utilities import perform_substitutions
    from launch_ros.actions import Node

    file = Path(__file__).parents[1] / f"{robot}.launch.py"
    context = LaunchContext()
    context.launch_configurations.update(arguments)
    found: list[tuple[str, str, str]] = []
    pending = list(get_launch_description_from_python_launch_file(str(file)).entities)
    while pending:
        entity = pending.pop(0)
        if isinstance(entity, Node):
            words = entity.node_package, entity.node_executable, entity._Node__node_name
            found.append(
                tuple(
                    w if isinstance(w, str) else perform_substitutions(context, w) for w in words
                )
            )
        else:
            pending[:0] = entity.visit(context) or ()
    defaults = {argument.name: argument.default for argument in ARGUMENTS}
    specs = stack(robot, **options(robot, {**defaults, **arguments}))
    assert found == [(spec.package, spec.executable, spec.name) for spec in specs]
