"""Long measurements in parts: what was measured stays in a file and is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def kept(
    path: Path, asked: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `measure` gives, or what `path` holds of an earlier time if the same was asked."""
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["asked"] == asked:
            return stored["scores"]
    scores = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"asked": asked, "scores": scores}, indent=1))
    partial.replace(path)
    return scores
