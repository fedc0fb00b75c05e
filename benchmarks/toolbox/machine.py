"""The machine that a result was measured on, and how a script takes hold of it.

Nothing here imports numpy: `one_thread` must come before the libraries that start threads.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_PREPARED = "SAFE_RL_BENCH_PREPARED"


def one_thread() -> None:
    """Start this script again on a single core with single-threaded libraries.

    The libraries read affinity and environment when they are loaded, so both are set before. The
    last core that is allowed is taken: interrupts and other people's jobs prefer the first.
    """
    if os.environ.get(_PREPARED):
        return
    os.environ.update(dict.fromkeys(THREADS, "1"), **{_PREPARED: "1", "JAX_PLATFORMS": "cpu"})
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def describe(packages: tuple[str, ...]) -> dict[str, Any]:
    """Processor, cores, load, commit and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "commit": _commit(),
        "python": platform.python_version(),
        "compiler": _first_line("cc", "--version"),
        "versions": {name: _version(name) for name in packages},
    }


def after(machine: dict[str, Any]) -> dict[str, Any]:
    """The description with the load at the end."""
    return machine | {"load_after": round(os.getloadavg()[0], 1)}


def sentence(machine: dict[str, Any]) -> str:
    """The description as one line of Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load']} at the start "
        f"and {machine.get('load_after', '?')} at the end; commit {machine['commit']}; "
        f"Python {machine['python']}, {versions}; {machine['compiler']}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    commit = _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _first_line("git", "-C", str(ROOT), "status", "--porcelain", "-uno")
    return f"{commit} with changes" if changed else commit or "unknown"


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return lines[0].strip() if lines else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "from the source tree"
