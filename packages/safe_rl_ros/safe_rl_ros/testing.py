"""Real nodes as processes, and a probe on their topics: for tests of the ROS packages.

    with Stack() as stack:
        shield = stack.start("backup_shield_node.node", bundle="quadrotor_powerloop")
        commands = stack.listen(TwistStamped, "cmd_ctbr")
        state = stack.publisher(Odometry, "odom")
        ...
        stack.until(lambda: commands)

Each stack has a ROS domain of its own, held by a lock, so that tests may run at the same time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile

from safe_rl_ros import qos, topics
from safe_rl_ros.parent import dies_with_this_process
from safe_rl_ros.process import make_executor

# Domains to choose from, "first-last"; others are left to whatever else runs on this machine.
DOMAINS_VARIABLE, DEFAULT_DOMAINS = "SAFE_RL_TEST_DOMAINS", "60-99"
PATIENCE_S = 15.0
PROFILE = "fastdds_profile.xml"


class Process:
    """One node in a process of its own, with everything it prints in a file."""

    def __init__(self, module: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.module = module
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115  lives as long as self
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=self._log, stderr=subprocess.STDOUT, env=dict(environment),
            start_new_session=True, preexec_fn=dies_with_this_process(),  # noqa: PLW1509
        )  # fmt: skip

    @property
    def text(self) -> str:
        """Everything printed so far."""
        # Not through the shared file offset: the process is still writing there.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self._process.poll() is None

    def says(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it has printed this; AssertionError with its output if it does not."""
        end = time.monotonic() + timeout_s
        while text not in self.text:
            if time.monotonic() > end or not self.running and text not in self.text:
                raise AssertionError(f"{self.module} did not say {text!r}; it said:\n{self.text}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Send a signal (SIGKILL: as if it had died; SIGSTOP: as if it hung)."""
        self._process.send_signal(number)

    def ends(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end; the exit code. AssertionError with the output if it does not end."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self.module} did not end; it said:\n{self.text}") from None

    def stop(self) -> int:
        """End it as the runner does, with SIGINT; the exit code."""
        if self.running:
            self.send(signal.SIGCONT)
            self.send(signal.SIGINT)
        return self.ends()


class Stack:
    """Processes in one ROS domain, and a node in this process to talk with them."""

    def __init__(self, **environment: str) -> None:
        self._lock, self.domain = _take_domain()
        self._environment = {**os.environ, **_ros_environment(self.domain), **environment}
        os.environ.update(_ros_environment(self.domain))
        self.processes: list[Process] = []
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=self.domain)
        self.node = Node("probe", context=self._context)
        self._executor = make_executor(self._context)
        self._executor.add_node(self.node)

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Asked to end, a node gives its shared memory back; killed, it would leave it behind.
        running = [process for process in self.processes if process.running]
        for process in running:
            process.send(signal.SIGCONT)
            process.send(signal.SIGINT)
        end = time.monotonic() + 5.0
        while any(process.running for process in running) and time.monotonic() < end:
            time.sleep(0.02)
        for process in self.processes:
            if process.running:
                process.send(signal.SIGKILL)
                process.ends()
            if kind is not None:
                print(f"---- {process.module}\n{process.text}")
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)
        self._lock.close()

    def start(self, module: str, remap: Mapping[str, str] | None = None, **params: Any) -> Process:
        """Start `python -m module` with ROS parameters; autostart is on unless given."""
        arguments = ["--ros-args"]
        for name, value in {"autostart": True, **params}.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ["-p", f"{name}:={text}"]
        for old, new in (remap or {}).items():
            arguments += ["-r", f"{old}:={new}"]
        process = Process(module, arguments, self._environment)
        self.processes.append(process)
        return process

    def listen(
        self, kind: type, topic: str, profile: QoSProfile | None = None
    ) -> list[tuple[float, Any]]:
        """A list that fills with (steady time in s, message) while the probe spins."""
        heard: list[tuple[float, Any]] = []
        self.node.create_subscription(
            kind,
            topic,
            lambda m: heard.append((time.monotonic(), m)),
            profile or qos.reliable(1000),
        )
        return heard

    def publisher(self, kind: type, topic: str, profile: QoSProfile | None = None) -> Any:
        """A publisher of the probe."""
        return self.node.create_publisher(kind, topic, profile or qos.reliable())

    def spin(self, seconds: float) -> None:
        """Handle messages for this long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0.0:
            self._executor.spin_once(timeout_sec=min(left, 0.1))

    def until(self, condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
        """Handle messages until the condition holds; AssertionError after the timeout."""
        end = time.monotonic() + timeout_s
        while not (result := condition()):
            if time.monotonic() > end:
                raise AssertionError("the condition did not come true in time")
            self._executor.spin_once(timeout_sec=0.02)
        return result

    def connected(self, publisher: Any, listeners: int = 1) -> None:
        """Wait until a publisher of the probe has this many subscribers."""
        self.until(lambda: publisher.get_subscription_count() >= listeners)

    def known_to(self, *names: str) -> None:
        """Wait until these nodes send all that the probe listens to so far.

        Subscriptions become known to a node in the order in which they are made, so hearing it on
        the last of them proves the others.
        """
        heard = self.listen(DiagnosticArray, topics.DIAGNOSTICS)
        self.until(lambda: set(names) <= {m.status[0].name.partition(":")[0] for _, m in heard})

    def call(self, kind: type, service: str, request: Any) -> Any:
        """Call a service and return its answer."""
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready)
        future = client.call_async(request)
        self.until(future.done)
        self.node.destroy_client(client)
        return future.result()


def _take_domain() -> tuple[IO[str], int]:
    """A ROS domain that no other test holds, and the open lock file that holds it."""
    first, last = map(int, os.environ.get(DOMAINS_VARIABLE, DEFAULT_DOMAINS).split("-"))
    end = time.monotonic() + 120.0
    while time.monotonic() < end:
        for domain in range(first, last + 1):
            lock = (Path(tempfile.gettempdir()) / f"safe_rl_ros_domain_{domain}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock, domain
            except OSError:
                lock.close()
        time.sleep(0.2)
    raise RuntimeError(f"no free ROS domain in {first}-{last}; set {DOMAINS_VARIABLE}")


def _ros_environment(domain: int) -> dict[str, str]:
    """Loopback only, field checks on, one domain; quick discovery if `safe_rl` is installed."""
    prefixes = (*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix)
    profiles = [Path(p) / "share" / "safe_rl" / "config" / PROFILE for p in prefixes if p]
    quick = [str(path) for path in profiles if path.is_file()][:1]
    return {
        **({"FASTRTPS_DEFAULT_PROFILES_FILE": quick[0]} if quick else {}),
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_PYTHON_CHECK_FIELDS": "1",
        "PYTHONUNBUFFERED": "1",
    }
