"""Which sources made a file: their hash, and their commit where they lie in a git checkout."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path


def state(roots: Sequence[Path]) -> dict[str, str]:
    """`git_commit`, `git_dirty` and `source_sha256` of the Python files below some folders.

    Installed copies of the sources are outside of git: commit none, dirty unknown.
    """
    names = [str(root) for root in roots]
    tracked = _git(roots[0], "ls-files", "--error-unmatch", "--", *names)
    status = tracked and _git(roots[0], "status", "--porcelain", "--", *names)
    return {
        "git_commit": (tracked and _git(roots[0], "rev-parse", "HEAD")) or "none",
        "git_dirty": "unknown" if status is None else str(bool(status)).lower(),
        "source_sha256": _hash(roots),
    }


def _hash(roots: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root.parent).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git in a folder; None outside a repository or without git."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
