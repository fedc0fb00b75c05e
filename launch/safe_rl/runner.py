"""Start a stack without `ros2 launch`: one process per node, watched to the end.

Each node's output comes line by line with its name in front. The stack ends when the node marked
`ends_stack` ends, when a required node ends before that, or on Ctrl-C; then the others get SIGINT,
SIGTERM and SIGKILL in turn (a second Ctrl-C shortens the waiting). Nodes also die with this
process, whatever ends it, so that none is ever left behind.

Exit codes: that of the node that ends the stack; 130 or 143 after Ctrl-C or SIGTERM; that of a
required node that ended early (1 if it said 0); `LOST_NODE` when the run itself ended with 0 but
a node that was not required was lost on the way.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from safe_rl.child import Child, Echo, pump
from safe_rl.stack import NodeSpec, StackError, share_directory, stack

LOST_NODE = 4
#: what the nodes get when the stack ends, and the time in s that each signal is given
STEPS = ((signal.SIGINT, 5.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0))
#: exit codes of a node that was told to end
TOLD_TO_END = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
POLL_S = 0.05


def ros_environment(*, private: bool = True) -> dict[str, str]:
    """The environment of the nodes; what the user has set stays as it is.

    `private` (simulation): this machine only, in a ROS domain of its own, so that two runs at once
    do not hear each other. A vehicle's nodes use the domain and the range that the user chose.
    """
    profile = str(share_directory() / "config" / "fastdds_profile.xml")
    defaults = {
        "AMENT_PREFIX_PATH": sys.prefix,
        # An int or a numpy float32 in a float64 field would be sent as garbage, without a word.
        "ROS_PYTHON_CHECK_FIELDS": "1",
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,  # read by Jazzy
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,  # read by later releases
        "PYTHONUNBUFFERED": "1",
    }
    if private:
        defaults["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        # Domains above 101 share their ports with those that Linux hands out by itself.
        defaults["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 50)
    return defaults | {name: value for name, value in os.environ.items() if value}


def launch(robot: str, *, echo: Echo = print, **options: Any) -> int:
    """Start `robot`'s stack (options: see `safe_rl.stack.stack`) and stay until it ends."""
    if importlib.util.find_spec("rclpy") is None:
        raise StackError(
            f"{sys.executable} has no rclpy; use the environment that `make run` sets up, or "
            f"source a ROS 2 installation (`. /opt/ros/jazzy/setup.bash`) and its Python"
        )
    specs = stack(robot, **options)
    env = ros_environment(private=options.get("plant") != "hardware")
    if options.get("record"):
        env.setdefault("ROS_LOG_DIR", str(Path(options["record"]).expanduser().absolute() / "log"))
    names = ", ".join(spec.name for spec in specs)
    echo(f"starting {names} with ROS_DOMAIN_ID={env.get('ROS_DOMAIN_ID', '0')}")
    return run_stack(specs, env=env, echo=echo)


def run_stack(specs: Sequence[NodeSpec], *, env: Mapping[str, str], echo: Echo) -> int:
    """Run the nodes to the end of the stack; the exit code as told at the top of this file."""
    _check(specs)
    children: list[Child] = []
    with _signals() as caught:
        try:
            for spec in specs:
                children.append(Child(spec, env, echo))
            code = _watch(children, caught, echo)
        finally:
            lost = _stop(children, caught, echo)
    return LOST_NODE if lost and code == 0 else code


def _check(specs: Sequence[NodeSpec]) -> None:
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise StackError(f"node names must be unique in a stack, got {', '.join(names)}")
    for spec in specs:
        package = spec.module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            raise StackError(
                f"node {spec.name} needs the Python package {package}, which {sys.executable} "
                f"does not have; `make run` installs it, or `pip install ./packages/{package}`"
            )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that arrived, instead of what they do otherwise."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught  # Python lets only the main thread handle signals
        return
    before = {n: signal.signal(n, catch) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(children: Sequence[Child], caught: Sequence[int], echo: Echo) -> int:
    """Wait for the end of the stack; its exit code."""
    running, lost = list(children), False
    while running:
        pump(running, POLL_S)
        if caught:
            return 128 + caught[0]
        # The regular end first: what ends in the same moment ended because of it.
        for child in sorted(running, key=lambda child: not child.spec.ends_stack):
            if not child.ended:
                continue
            code = child.clear()
            running.remove(child)
            if child.spec.ends_stack:
                return code or (LOST_NODE if lost else 0)
            echo(child.report(code))
            if child.spec.required:
                echo(f"{child.spec.name} is required: stopping the stack")
                return code or 1
            lost = True
            echo(f"going on without {child.spec.name}")
    return LOST_NODE


def _stop(children: Sequence[Child], caught: Sequence[int], echo: Echo) -> bool:
    """End the nodes that still run; True if one of them did not end as it should."""
    running = [child for child in children if not child.cleared]
    lost = False
    for number, patience in STEPS:
        for child in running:
            child.signal(number)
        deadline, heard = time.monotonic() + patience, len(caught)
        while running and time.monotonic() < deadline and len(caught) == heard:
            pump(running, POLL_S)
            for child in [child for child in running if child.ended]:
                running.remove(child)
                code = child.clear()
                if code not in TOLD_TO_END:
                    echo(child.report(code))
                    lost = True
    for child in running:
        child.clear()
    return lost or bool(running)
