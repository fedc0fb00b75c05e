"""Checkpoints that another process can go on from, and how a run is asked to stop.

A checkpoint holds tensors and plain values only, so that it loads with weights_only=True, and the
settings of its run: a run is never continued with other ones. It is replaced in one step, so that
a power cut leaves the old or the new one, never half of one.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from safe_rl_core.errors import ModelError

_PLAIN = (str, bytes, bool, int, float, torch.Tensor, type(None))


def save(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write `state`, with the `settings` that it belongs to."""
    stored = {"settings": dict(settings), "state": dict(state)}
    _refuse_objects(stored, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(stored, partial)
    partial.replace(path)


def load(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint that was written with the same settings."""
    if not path.is_file():
        raise ModelError(f"no checkpoint at {path}; start without --resume")
    stored = torch.load(path, weights_only=True, map_location="cpu")
    refuse_other_settings(path, stored["settings"], settings)
    return stored["state"]


def refuse_other_settings(
    path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Raise, naming each difference, unless both are the same."""
    missing = "(nothing)"
    names = sorted({*stored, *wanted})
    pairs = {name: (stored.get(name, missing), wanted.get(name, missing)) for name in names}
    other = [f"{name} {old!r}, now {new!r}" for name, (old, new) in pairs.items() if old != new]
    if other:
        raise ModelError(
            f"{path} was made with other settings: {'; '.join(other)}. Resume with those, or "
            "start anew in another folder (--out)"
        )


def _refuse_objects(value: Any, place: str) -> None:
    """Raise where something stands that a safe loader would not load."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_objects(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _refuse_objects(item, f"{place}[{i}]")
    elif type(value) not in _PLAIN and not isinstance(value, torch.Tensor):
        raise ModelError(
            f"a checkpoint holds tensors and plain values, {place} is a {type(value).__name__}; "
            "convert it in state_dict()"
        )


class StopRequest:
    """Inside `with`, Ctrl-C or a plain kill sets `asked`; a second one stops at once.

    The loop inside looks at `asked` where it is safe to stop. Outside of the main thread signals
    cannot be caught, and nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstops after this iteration; once more stops at once", file=sys.stderr)
