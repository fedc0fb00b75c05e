"""The nodes of a stack, listed once. The launch files and the runner both read this list.

    odom ─► policy ─ proposal ─► shield ─ command ─► bridge (sim or hardware) ─► odom
    recorder: listens to all of it, when asked to

Nothing here imports ROS, so that the list can be read, tested and started without `launch`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safe_rl_core.errors import SafeRLError

#: Robot -> the bundle it flies with when no other is named.
BUNDLES: Mapping[str, str] = {"quadrotor": "quadrotor_powerloop", "unicycle": "unicycle_lane"}
PLANTS = ("sim", "bullet", "model", "assumed", "hardware")

Value = bool | int | float | str | tuple[str, ...]


class StackError(SafeRLError):
    """A stack that cannot be started as asked."""


@dataclass(frozen=True)
class NodeSpec:
    """One process of the stack.

    `executable` is also the node's name. `module` is what `python -m` runs. `parameters` go on top
    of those in `parameter_file`. When a `required` node ends early the stack is stopped as failed;
    when another does, the rest goes on. The end of the node with `ends_stack` is the regular end.
    """

    package: str
    executable: str
    module: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    required: bool = True
    ends_stack: bool = False
    parameter_file: Path | None = None

    @property
    def name(self) -> str:
        """Node name, unique in the stack."""
        return self.executable


def share_directory() -> Path:
    """The installed share/safe_rl: configuration files and launch files."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    places = [Path(prefix) / "share" / "safe_rl" for prefix in prefixes if prefix]
    for place in places:
        if (place / "config").is_dir():
            return place
    raise StackError(
        f"no share/safe_rl/config below {', '.join(str(p.parents[1]) for p in places)}; install "
        f"the package (`make run`, `pip install ./launch`, or `colcon build` and its setup.bash); "
        f"an editable install (-e) leaves these files out"
    )


def parameter_file(robot: str, config: str | Path | None = None) -> Path:
    """The wiring of a robot: its own YAML file, or the one the user names."""
    path = Path(config) if config else share_directory() / "config" / f"{robot}.yaml"
    if not path.is_file():
        raise StackError(f"no parameter file {path}; name an existing YAML file, or none")
    return path


def stack(
    robot: str,
    *,
    plant: str = "sim",
    bundle: str | None = None,
    gui: bool = False,
    record: str | Path | None = None,
    seed: int = 0,
    laps: int = 0,
    realtime: bool = False,
    lockstep: bool = True,
    config: str | Path | None = None,
) -> tuple[NodeSpec, ...]:
    """The nodes of `robot`'s stack.

    plant     "sim" (= "bullet"), "model" (the bundle's own dynamics), "assumed" (the model on the
              edge of what the bundle's certificate assumes), or "hardware"
    bundle    name or folder of a bundle; the robot's own if None
    record    folder for the recording; no recorder if None
    laps      0 means as many as the bundle's task says
    realtime  simulation: keep pace with the clock
    lockstep  simulation: wait for the command of each state; without it the clock drives every
              node (and realtime is implied), as it always does on hardware
    """
    if robot not in BUNDLES:
        raise StackError(f"unknown robot {robot!r}; expected one of {', '.join(BUNDLES)}")
    if plant not in PLANTS:
        raise StackError(f"unknown plant {plant!r}; expected one of {', '.join(PLANTS)}")
    if laps < 0:
        raise StackError(f"laps must be 0 (as the task says) or more, got {laps}")
    simulated = plant != "hardware"
    lockstep = lockstep and simulated
    common: dict[str, Value] = {
        "bundle": bundle or BUNDLES[robot],
        "robot": robot,
        "lockstep": lockstep,
        "use_sim_time": simulated,
    }
    wiring = parameter_file(robot, config)

    def node(package: str, executable: str, module: str, **more: Value) -> NodeSpec:
        values = {**common, **more}
        return NodeSpec(package, executable, module, values, parameter_file=wiring)

    policy = node(
        "safe_policy_node", "policy", "safe_policy_node.node", start_at_first_state=not simulated
    )
    shield = node("backup_shield_node", "shield", "backup_shield_node.node")
    # Without its policy the robot flies on under the backup; without its shield it must not.
    nodes = [replace(policy, required=False), shield]
    if record is not None:
        output = str(Path(record).expanduser().absolute())
        recorder = node("safe_rl_ros", "recorder", "safe_rl_ros.recorder", output=output)
        nodes.append(replace(recorder, required=False))
    if simulated:
        bridge = node(
            "sim_bridge", "sim", "sim_bridge.node",
            plant="bullet" if plant == "sim" else plant,
            gui=gui, seed=seed, laps=laps, realtime=realtime or not lockstep,
            wait_for=tuple(spec.name for spec in nodes), use_sim_time=False,
        )  # fmt: skip
    else:
        bridge = node("sim_bridge", "hardware", "sim_bridge.hardware_node")
    return (*nodes, replace(bridge, ends_stack=True))
