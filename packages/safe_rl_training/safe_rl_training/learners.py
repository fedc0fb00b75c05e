"""The learners of phase II by name: their settings, whole or quick, and how they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.robot import Robot

from safe_rl_training import gradient, ppo, sac, staged
from safe_rl_training.parts.learner import Learner
from safe_rl_training.parts.policy_file import load_policy

Settings = gradient.GradientSettings | sac.SacSettings | ppo.PpoSettings

NAMES = ("staged", "ppo", "gradient", "sac", "published")
#: Settings -> the file whose `make` makes their learner.
_MODULES: Mapping[type[Settings], Any] = {
    staged.StagedSettings: staged,
    ppo.PpoSettings: ppo,
    gradient.GradientSettings: gradient,
    sac.SacSettings: sac,
}
#: Those whose work is nearly all in the compiled kernel.
CPU_ONLY = ("staged", "gradient")
#: `--quick`: enough to go through every part once, too little to be good at anything.
QUICK: Mapping[str, Mapping[str, Any]] = {
    "staged": {"iterations": 8, "gradient_iterations": 4, "count": 32, "steps": 64}
    | {"critic_first": 1, "compiled": False},
    "gradient": {"iterations": 24, "batch": 32, "horizon": (5, 20), "compiled": False},
    "sac": {"iterations": 8, "random_steps": 1024, "update_after": 1024},
    "ppo": {"iterations": 4, "count": 32, "steps": 64},
    "published": {"iterations": 4, "update_after": 1024},
}


def settings_of(
    name: str,
    robot: Robot,
    quick: bool = False,
    changes: Mapping[str, Any] | None = None,
    warm_start: bool = False,
) -> Settings:
    """The learner's settings for any robot, with `changes` by field name.

    `warm_start`: it begins with a policy, so `staged` is its second part alone.
    """
    settings: Settings
    if name == "staged":
        settings = staged.StagedSettings()
    elif name == "gradient":
        settings = gradient.GradientSettings()
    elif name == "sac":
        settings = sac.SacSettings()
    elif name == "ppo":
        settings = ppo.PpoSettings()
    elif name == "published":
        settings = sac.SacSettings.published(robot)
    else:
        raise ModelError(f"no learner {name!r}; choose one of {', '.join(NAMES)}")
    if quick:
        settings = replace(settings, **QUICK[name])
    changes = changes or {}
    known = [field.name for field in fields(settings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ModelError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    # YAML knows no tuples.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    settings = replace(settings, **values)
    skips = warm_start and isinstance(settings, staged.StagedSettings)
    return settings.then() if skips else settings


def make(
    robot: Robot,
    settings: Settings,
    seed: int,
    threads: int,
    device: str,
    kernel: BatchKernel | None = None,
    warm_start: Path | None = None,
) -> Learner:
    """The learner of these settings at its start.

    `kernel` of the robot, if there is one already; `warm_start`: policy.onnx to begin with.
    """
    learner: Learner = _MODULES[type(settings)].make(
        robot, settings, seed, threads, device, kernel
    )
    if warm_start is not None:
        load_policy(learner.policy, warm_start)
    return learner


def plain(settings: Settings) -> dict[str, Any]:
    """The settings for a JSON file: tuples become lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(settings).items()
    }
