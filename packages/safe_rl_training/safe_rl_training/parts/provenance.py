"""Where a trained file comes from: sources, command, seed, machine and date, all as strings."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import safe_rl_systems
from safe_rl_systems import sources

import safe_rl_training

# The packages whose code decides what is learned.
_PACKAGES = (safe_rl_systems, safe_rl_training)
_ROOTS = tuple(Path(str(package.__file__)).parent for package in _PACKAGES)


def hardware() -> str:
    """CPU model and number of cores."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def provenance(command: str, seed: int, threads: int) -> dict[str, str]:
    """The facts of one training run; commit and hash are those of the sources that decide it."""
    return {
        "command": command,
        "seed": str(seed),
        "hardware": hardware(),
        "threads": str(threads),
        "date": datetime.now(timezone.utc).date().isoformat(),
        **sources.state(_ROOTS),
        "torch_version": version("torch"),
        "python_version": platform.python_version(),
    }
