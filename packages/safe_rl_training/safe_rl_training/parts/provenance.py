"""Where a trained file comes from: sources, command, seed, machine and date, all as strings."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import safe_rl_systems

import safe_rl_training

# The packages whose code decides what is learned.
_PACKAGES = (safe_rl_systems, safe_rl_training)
_ROOTS = tuple(Path(str(package.__file__)).parent for package in _PACKAGES)


def source_hash() -> str:
    """sha256 over all Python files of the packages that define and train a robot."""
    digest = hashlib.sha256()
    for root in _ROOTS:
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root.parent).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """Output of git in the source folder; None outside a repository or without git."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


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
    """The facts of one training run; `git_dirty` is about the sources that are hashed.

    Installed copies of the sources are outside of git: commit none, dirty unknown.
    """
    tracked = _git("ls-files", "--error-unmatch", "--", *(str(root) for root in _ROOTS))
    status = tracked and _git("status", "--porcelain", "--", *(str(root) for root in _ROOTS))
    return {
        "command": command,
        "seed": str(seed),
        "hardware": hardware(),
        "threads": str(threads),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "git_commit": (tracked and _git("rev-parse", "HEAD")) or "none",
        "git_dirty": "unknown" if status is None else str(bool(status)).lower(),
        "source_sha256": source_hash(),
        "torch_version": version("torch"),
        "python_version": platform.python_version(),
    }
