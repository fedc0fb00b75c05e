"""One node of a stack as an operating-system process: started, read, signalled, cleared away."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from safe_rl_ros.parent import dies_with_this_process

from safe_rl.stack import NodeSpec, Value

LAST_LINES = 15

Echo = Callable[[str], None]


def _yaml(value: Value) -> str:
    """A parameter as YAML that keeps its type: "1" a string, 1.0 a float. JSON is YAML."""
    return json.dumps(value, allow_nan=False)


def command(spec: NodeSpec) -> list[str]:
    """What starts one node."""
    words = [sys.executable, "-m", spec.module, "--ros-args", "-r", f"__node:={spec.name}"]
    for source, target in spec.remappings:
        words += ["-r", f"{source}:={target}"]
    if spec.parameter_file is not None:
        words += ["--params-file", str(spec.parameter_file)]
    for name, value in spec.parameters.items():
        words += ["-p", f"{name}:={_yaml(value)}"]
    return words


class Child:
    """A running node in a process group of its own, and its output as lines."""

    def __init__(self, spec: NodeSpec, env: Mapping[str, str], echo: Echo) -> None:
        self.spec = spec
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._echo = echo
        self._rest = b""
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command(spec),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=dies_with_this_process(),  # noqa: PLW1509
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        self.output = self._pipe.fileno()
        os.set_blocking(self.output, False)
        self.silent = False

    def read(self) -> None:
        """Echo what the node has printed since the last call."""
        try:
            chunk = os.read(self.output, 65536)
        except BlockingIOError:
            return
        self.silent = not chunk
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if self.silent and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            text = line.decode(errors="replace")
            if text:
                self.last.append(text)
                self._echo(f"[{self.spec.name}] {text}")

    @property
    def cleared(self) -> bool:
        """True after `clear()`."""
        return self._process.returncode is not None

    @property
    def ended(self) -> bool:
        """True once the node has ended. Its process number stays taken until `clear()`."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self.cleared or os.waitid(os.P_PID, self._process.pid, how) is not None

    def signal(self, number: int) -> None:
        """Send a signal to the node, unless it was cleared away."""
        if not self.cleared:
            os.kill(self._process.pid, number)

    def clear(self) -> int:
        """Kill whatever is left of the process group; the node's exit code, as a shell counts."""
        if not self.cleared:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            while not self.silent and _readable([self], 0.5):
                self.read()
            self._pipe.close()
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    def report(self, code: int) -> str:
        """What to tell the user about a node that ended too early."""
        lines = "".join(f"\n    {line}" for line in self.last) or " (it printed nothing)"
        age = time.monotonic() - self._started
        return f"{self.spec.name} ended after {age:.1f} s with exit code {code}; last:{lines}"


def _readable(children: Iterable[Child], timeout: float) -> list[Child]:
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.output, selectors.EVENT_READ, child)
        return [key.data for key, _ in selector.select(timeout)]


def pump(children: Iterable[Child], timeout: float) -> None:
    """Echo what the nodes print, waiting at most `timeout` s for the first of it."""
    talking = [child for child in children if not child.silent]
    if not talking:
        time.sleep(timeout)
    for child in _readable(talking, timeout) if talking else ():
        child.read()
