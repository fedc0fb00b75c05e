"""One line that says how far a long piece of work is; on a terminal it is drawn over itself."""

from __future__ import annotations

import sys
import time
from typing import TextIO

BAR = 28
TERMINAL_S, PLAIN_S = 0.1, 5.0  # time between two lines


class Progress:
    """`advance()` per finished piece; writes to stderr, so that stdout stays clean."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what, self._total = what, total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._done, self._start = 0, time.monotonic()
        self._next = self._start + (0.0 if self._live else PLAIN_S)
        self._note = ""

    def advance(self, note: str = "") -> None:
        """One more piece is done; `note` is shown at the end of the line."""
        self._done += 1
        self._note = note
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (TERMINAL_S if self._live else PLAIN_S)
            self._write(now)

    def close(self) -> None:
        """End the line; on a terminal it shows the last state."""
        if self._live:
            self._write(time.monotonic())
            print(file=self._stream)

    def _write(self, now: float) -> None:
        share = self._done / max(self._total, 1)
        elapsed = now - self._start
        left = elapsed / share - elapsed if share else 0.0
        text = f"{self._what} {self._done}/{self._total}"
        if self._live:
            bar = "█" * round(BAR * share) + "░" * (BAR - round(BAR * share))
            line = f"\r{bar} {text}  {left:.0f} s left  {self._note}"
            self._stream.write(f"{line}\033[K")
        else:
            self._stream.write(f"{text}, {left:.0f} s left {self._note}\n")
        self._stream.flush()
