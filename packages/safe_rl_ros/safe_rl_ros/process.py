"""One node in one process: executor, spin loop, signals, exit code.

The events executor is always spun with a timeout: an untimed wait of it never returns. Signals are
taken here and not by rclpy, so that a node still has its publishers when it closes. The executor
lets go of the node before the node's parts are destroyed: until then the middleware's threads
still call into it.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.signals import SignalHandlerOptions
from safe_rl_core.errors import SafeRLError

from safe_rl_ros.node_base import SUCCESS, StackNode

EXIT_BAD_SETUP = 1


def make_executor(context: rclpy.Context | None = None) -> Executor:
    """The events executor: a quarter less processor time and latency than the classic one."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:  # rclpy before 7.1.4
        return SingleThreadedExecutor(context=context)
    return EventsExecutor(context=context)


def run(node_class: Callable[[], StackNode], args: Sequence[str] | None = None) -> NoReturn:
    """Run one node until it ends by itself or a signal ends it, then end the process.

    It ends without the static destructors of its libraries, whose order nobody defines. So the
    node is collected before that: only then the middleware gives its shared memory back.
    """
    faulthandler.enable()
    code = _run(node_class, args)
    gc.unfreeze()
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(node_class: Callable[[], StackNode], args: Sequence[str] | None) -> int:
    """The exit code of the node."""
    if os.environ.get("ROS_PYTHON_CHECK_FIELDS") != "1":
        print(
            "warning: ROS_PYTHON_CHECK_FIELDS is not 1: a wrongly typed number in a message "
            "would be sent as garbage; unset it or set it to 1",
            file=sys.stderr,
        )
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = _StopFlag()
    node = executor = None
    try:
        node = node_class()
        executor = make_executor()
        executor.add_node(node)
        if node.param("autostart") and not _start(node):
            return EXIT_BAD_SETUP
        _spin(node, executor, stop)
    except ExternalShutdownException:
        pass
    except (SafeRLError, ParameterException) as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return EXIT_BAD_SETUP
    finally:
        if executor is not None:
            executor.shutdown()
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return node.interrupted_code if node.exit_code is None else node.exit_code


class _StopFlag:
    """Set by the first SIGINT or SIGTERM; the second one ends the process at once."""

    def __init__(self) -> None:
        self.since: float | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.since = time.monotonic()
        signal.signal(number, signal.SIG_DFL)

    def over(self, linger_s: float) -> bool:
        """True when the node should end, `linger_s` after the signal."""
        return self.since is not None and time.monotonic() - self.since >= linger_s


def _start(node: StackNode) -> bool:
    """Configure and activate; False when the node refuses."""
    return node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS


def _spin(node: StackNode, executor: Executor, stop: _StopFlag) -> None:
    """Spin with a timeout: the events executor never returns from an untimed wait."""
    while rclpy.ok() and node.exit_code is None and not stop.over(node.linger_s):
        try:
            executor.spin_once(timeout_sec=0.1)
        except rclpy_implementation.RCLError as error:
            # rclpy raises this for a lifecycle request that the present state does not allow.
            if "transition" not in str(error).lower():
                raise
            node.get_logger().error(f"refused: {error}")
