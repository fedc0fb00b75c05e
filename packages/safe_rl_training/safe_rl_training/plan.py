"""What a run of the pipeline is asked for, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import Robot

from safe_rl_training import learners
from safe_rl_training.phase_one import BACKUPS
from safe_rl_training.robot_source import shown


@dataclass(frozen=True)
class Plan:
    """What is asked for. `source` names the robot (`robot_source.py`), `changes` are settings of
    the learner by name; the rest are the options of `safe-rl train ps2`.
    """

    source: str
    seed: int = 0
    backup: str = "learned"
    learner: str = "staged"
    quick: bool = False
    threads: int = 2
    device: str = "cpu"
    phase1_only: bool = False
    warm_start: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("backup", BACKUPS), ("learner", learners.NAMES)):
            if getattr(self, name) not in known:
                raise ModelError(
                    f"no {name} {getattr(self, name)!r}; choose one of {', '.join(known)}"
                )
        if self.device != "cpu" and self.learner in learners.CPU_ONLY:
            raise ModelError(
                f"{self.learner} runs on the CPU; leave --device out, or use --learner sac there"
            )
        if self.warm_start is not None and not Path(self.warm_start).is_file():
            raise ModelError(
                f"--warm-start: there is no file {self.warm_start}; give a policy.onnx"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ModelError("--device cuda: torch sees no CUDA device; leave the option out")

    @property
    def episodes(self) -> tuple[int, int]:
        """Episodes of one validation, and of the final evaluation per policy."""
        return (8, 32) if self.quick else (64, 1000)

    def learner_settings(self, robot: Robot) -> learners.Settings:
        """Of the learner; ModelError if it knows no setting of that name."""
        warm = self.warm_start is not None
        return learners.settings_of(self.learner, robot, self.quick, self.changes, warm)

    def command(self) -> str:
        """What a person types for the same result, without what is the default."""
        words = [f"safe-rl train ps2 {shown(self.source)} --seed {self.seed}"]
        words += [f"--backup {self.backup}", f"--learner {self.learner}"]
        words += ["--quick"] * self.quick + [f"--threads {self.threads}"]
        words += [f"--device {self.device}"] * (self.device != "cpu")
        if self.warm_start is not None:
            words.append(f"--warm-start {Path(self.warm_start).name}")
        changes = " ".join(f"{name}={value}" for name, value in self.changes.items())
        return " ".join(words) + (f" (settings {changes})" if changes else "")
