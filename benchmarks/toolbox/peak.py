"""The machine's peak: floating-point operations per second of one thread in float64.

Compiled with the compiler and the flags of the kernel, so that both may use the same instructions.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter_ns

from safe_rl_core.kernel import build

CHAINS = 12
WIDTHS = (16, 32, 64)
ROUNDS = 20_000


def flags() -> tuple[str, ...]:
    """The kernel's compiler command, without files."""
    return (*build.compiler(), *build._FLAGS, *build._machine_flags())


def compiled(source: Path, folder: Path, *more: str) -> ctypes.CDLL:
    """A C file as a loaded library, built as the kernel is."""
    target = folder / f"{source.stem}.so"
    command = [*flags(), str(source), "-o", str(target), "-lm", *more]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(target))


class Peak:
    """The best multiply-add rate seen so far, in flop per ns; measure it again whenever idle."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = compiled(Path(__file__).with_name("peak.c"), Path(folder))
        self._loops = []
        for width in WIDTHS:
            loop = getattr(library, f"peak_{width}")
            loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_long]
            self._loops.append((width, loop))
        self.flop_per_ns, self.vector_bytes = 0.0, 0

    def measure(self, repetitions: int = 200) -> float:
        """Improve the estimate; returns it."""
        for width, loop in self._loops:
            flop = 2 * CHAINS * (width // 8) * ROUNDS
            for _ in range(repetitions):
                start = perf_counter_ns()
                loop(ROUNDS)
                rate = flop / (perf_counter_ns() - start)
                if rate > self.flop_per_ns:
                    self.flop_per_ns, self.vector_bytes = rate, width
        return self.flop_per_ns

    def microseconds(self, flop: float) -> float:
        """Least time for this many floating-point operations."""
        return flop / self.flop_per_ns / 1e3
