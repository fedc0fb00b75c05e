"""A child process that does not outlive its parent (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def dies_with_this_process() -> Callable[[], None]:
    """For `subprocess.Popen(preexec_fn=…)`: be killed when this process dies, whatever it died of.

    Safe beside threads: it makes two system calls and touches no lock.
    """
    parent = os.getpid()

    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec
