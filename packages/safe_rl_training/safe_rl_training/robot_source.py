"""From a text to the robot that it names: one that is shipped, or one of your own file.

quadrotor_robust            a name in ROBOTS
my_robot.py                 the only function of the file that is annotated `-> Robot`
my_robot.py:fast            this one
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from safe_rl_core.bundle import model_folders
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS, Robot


def load_robot(source: str) -> Robot:
    """The robot that `source` names; ModelError says what else there is."""
    path, colon, name = source.rpartition(":") if ".py:" in source else (source, "", "")
    if not path.endswith(".py"):
        if source in ROBOTS:
            return ROBOTS[source]()
        raise ModelError(
            f"no robot {source!r}: expected one of {', '.join(ROBOTS)}, or a file like "
            "my_robot.py with a function that returns a Robot (docs/your_robot.md)"
        )
    found = _functions(_load(Path(path)), path)
    if not colon and len(found) == 1:
        (name,) = found
    if name not in found:
        wanted = f"no function {name!r}" if colon else "more than one robot"
        names = ", ".join(f"{path}:{each}" for each in found)
        raise ModelError(f"{path} has {wanted}; name one of {names}")
    robot = found[name]()
    if not isinstance(robot, Robot):
        raise ModelError(f"{path}:{name} must return a Robot, it returned a {type(robot)}")
    return robot


def tracker_of(source: str) -> Path | None:
    """The policy that phase II of a shipped robot begins with; None for a robot of your own.

    `models/README.md` says what it is. The first file that is found where bundles lie.
    """
    if source not in ROBOTS:
        return None
    name = f"{ROBOTS[source]().robot}.onnx"
    files = [folder / "trackers" / name for folder in model_folders()]
    return next((file.resolve() for file in files if file.is_file()), None)


def shown(source: str) -> str:
    """The source without the folders of this machine, for what others read."""
    path, colon, name = source.rpartition(":") if ".py:" in source else (source, "", "")
    return f"{Path(path).name}{colon}{name}"


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"no file {path}; expected a Python file that defines a robot")
    # A name that cannot be that of an installed module; dataclasses look their module up.
    name = f"_robot_of_{path.resolve().stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise ModelError(f"{path} cannot be loaded: {error}") from error
    return module


def _functions(module: ModuleType, path: str) -> dict[str, Callable[[], Robot]]:
    """Functions that the file itself defines, take nothing and are annotated `-> Robot`."""
    found = {}
    for name, value in vars(module).items():
        if not inspect.isfunction(value) or value.__module__ != module.__name__:
            continue
        signature = inspect.signature(value)
        required = [p for p in signature.parameters.values() if p.default is p.empty]
        if signature.return_annotation in (Robot, "Robot", "robot.Robot") and not required:
            found[name] = value
    if not found:
        raise ModelError(
            f"{path} defines no robot: expected a function without arguments and with the "
            "annotation, like `def my_robot() -> Robot:`"
        )
    return found
