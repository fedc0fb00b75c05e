"""The arguments of the launch files: `name:=text` into the options of `safe_rl.stack.stack`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_rl.stack import PLANTS, StackError


@dataclass(frozen=True)
class Argument:
    """What `ros2 launch … --show-args` says about one argument."""

    name: str
    default: str
    help: str


ARGUMENTS = (
    Argument("plant", "sim", f"one of {', '.join(PLANTS)}; sim is bullet (PyBullet)"),
    Argument("bundle", "", "name or folder of a bundle; empty: the robot's own"),
    Argument("gui", "false", "simulation: show the PyBullet window"),
    Argument("record", "false", "true: record into runs/<time>-<robot>; or name a folder"),
    Argument("seed", "0", "simulation: seed of start, noise and disturbances"),
    Argument("laps", "0", "simulation: number of laps; 0: as the task says"),
    Argument("realtime", "false", "simulation: keep pace with the clock"),
    Argument("lockstep", "true", "simulation: wait for the command of each state"),
    Argument("config", "", "YAML file with other wiring than the robot's own"),
)
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


def run_folder(robot: str) -> Path:
    """Where a run of this robot that begins now is kept, below the working directory."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{robot}"


def options(robot: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """The options of `stack` that these texts mean."""
    record = texts["record"]
    recording = _SWITCH.get(record.lower())
    return {
        "plant": texts["plant"],
        "bundle": texts["bundle"] or None,
        "gui": _switch(texts, "gui"),
        "record": (run_folder(robot) if recording else None) if recording is not None else record,
        "seed": _whole(texts, "seed"),
        "laps": _whole(texts, "laps"),
        "realtime": _switch(texts, "realtime"),
        "lockstep": _switch(texts, "lockstep"),
        "config": texts["config"] or None,
    }


def _switch(texts: Mapping[str, str], name: str) -> bool:
    text = texts[name].lower()
    if text not in _SWITCH:
        raise StackError(f"{name}:={texts[name]} is not a switch; write {name}:=true or false")
    return _SWITCH[text]


def _whole(texts: Mapping[str, str], name: str) -> int:
    try:
        return int(texts[name])
    except ValueError:
        raise StackError(f"{name}:={texts[name]} is not a whole number") from None
