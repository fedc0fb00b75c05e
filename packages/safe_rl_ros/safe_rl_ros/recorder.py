"""The recorder node: every topic of the stack into `<output>/recording.mcap`.

It takes the messages as serialized bytes and looks at nothing but their time stamps. In the file
    log_time      is the message's own stamp, so in simulation a flight plays back in flight time
                  however fast it was computed (other messages get the newest stamp seen)
    publish_time  is the wall clock at which the recorder got it (the events executor of rclpy 7.1
                  cannot hand over the publisher's own time: it crashes on message info)
It listens to the state last, once it is connected to every other publisher or after five
seconds: a simulation that waits for the recorder loses no message. Losses are counted and said.
"""

from __future__ import annotations

import importlib
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.subscription import Subscription
from safe_rl_core.errors import SafeRLError

from safe_rl_ros import diagnostics, qos, topics
from safe_rl_ros.definitions import definition
from safe_rl_ros.mcap_log import McapLog
from safe_rl_ros.node_base import StackNode, now_ns
from safe_rl_ros.process import run
from safe_rl_ros.stamps import SECOND

FILE_NAME = "recording.mcap"
CONNECT_NS = 5 * SECOND
# Topics whose messages do not begin with the stamp of the state they belong to.
UNSTAMPED = (topics.MARKERS, topics.DIAGNOSTICS, topics.RECORD)
# CDR: four bytes of encapsulation, then Time as int32 seconds and uint32 nanoseconds.
LITTLE, BIG = struct.Struct("<iI"), struct.Struct(">iI")


class RecorderNode(StackNode):
    """Writes what the others say."""

    #: s; what is under way when the stop signal comes is still written
    linger_s = 0.3

    def __init__(self) -> None:
        super().__init__("recorder")
        self.declare_parameter("output", "")

    def configure(self) -> None:
        """Create the file and register every topic in it."""
        if not self.param("output"):
            raise SafeRLError(
                "parameter output is empty: expected a folder; pass -p output:=runs/today"
            )
        folder = Path(self.param("output"))
        folder.mkdir(parents=True, exist_ok=True)
        self._types = topics.recorded(self.bundle.robot, robust=self.bundle.robust is not None)
        texts = {topic: definition(kind) for topic, kind in self._types.items()}
        self._log = McapLog(folder / FILE_NAME)
        self._channels = {
            topic: self._log.channel(self.resolve_topic_name(topic), kind, texts[topic])
            for topic, kind in self._types.items()
        }
        self._log.note(
            "safe_rl",
            {
                "bundle": self.bundle.name,
                "bundle_hash": self.bundle.hash,
                "certificate": self.bundle.certificate,
                "log_time": "stamp in the message",
                "publish_time": "wall clock of the recorder",
            },
        )

    def activate(self) -> None:
        """Connect to everything but the state, then to the state."""
        if self._log.finished:
            raise SafeRLError("a recording cannot be continued; clean up and configure again")
        self._newest_ns = 0
        self._since_ns = now_ns()
        self._connecting = {
            topic: self._record(topic) for topic in self._types if topic != topics.STATE
        }
        self._log.start()
        self.every(0.05, self._listen_to_state)

    def _listen_to_state(self) -> None:
        if not self._connecting:
            return
        silent = [t for t, sub in self._connecting.items() if not sub.get_publisher_count()]
        if silent and now_ns() - self._since_ns < CONNECT_NS:
            return
        if silent:
            self.get_logger().warning(f"nobody publishes {', '.join(silent)}; recording the rest")
        self._connecting.clear()
        self._record(topics.STATE)

    def _record(self, topic: str) -> Subscription:
        package, _, name = self._types[topic].split("/")
        kind = getattr(importlib.import_module(f"{package}.msg"), name)
        write = self._writer_of(topic)
        profile = qos.reliable(qos.RECORDER_DEPTH)
        return self.listen(kind, topic, write, profile, raw=True, message_lost=self._on_lost)

    def _writer_of(self, topic: str) -> Callable[[bytes], None]:
        channel, stamped = self._channels[topic], topic not in UNSTAMPED
        # In lockstep everything that carries a state's stamp comes once per period, so that a
        # message that the middleware dropped without a word leaves a gap to be counted.
        period = self.period_ns if self.lockstep and stamped and topic != topics.CLOCK else 0
        last = None

        def write(data: bytes) -> None:
            nonlocal last
            stamp = self._newest_ns or self.ros_ns()
            if stamped:
                seconds, nanoseconds = (LITTLE if data[1] & 1 else BIG).unpack_from(data, 4)
                stamp = max(seconds, 0) * SECOND + nanoseconds
                self._newest_ns = max(self._newest_ns, stamp)
            if period and last is not None and stamp > last + period:
                self.counts["lost_on_the_way"] += (stamp - last) // period - 1
            last = stamp
            self._log.put(channel, stamp, time.time_ns(), data)

        return write

    def _on_lost(self, info: Any) -> None:
        if not self.lockstep:  # there the gaps say more: the middleware keeps some losses quiet
            self.counts["lost_on_the_way"] += info.total_count_change

    def deactivate(self) -> None:
        """Complete the file and say what is in it."""
        log = self._log
        log.finish()
        lost = log.lost + self.counts["lost_on_the_way"]
        log.note("losses", {"recorder": str(log.lost), "transport": str(lost - log.lost)})
        failure = log.close()
        text = f"{log.written} messages in {log.path}, {lost} lost"
        if failure or lost:
            self.get_logger().error(
                f"recording incomplete: {text}; {failure or 'machine too slow or busy'}"
            )
        else:
            self.get_logger().info(f"recorded {text}")

    def health(self) -> tuple[bytes, str]:
        """ERROR when messages were lost."""
        lost = self._log.lost + self.counts["lost_on_the_way"]
        if lost:
            return diagnostics.ERROR, f"{lost} messages lost; the recording has gaps"
        return diagnostics.OK, "recording"

    def details(self) -> dict[str, object]:
        """Messages written so far."""
        return {"written": self._log.written, "file": str(self._log.path)}


def main() -> None:
    """Entry point of the executable `recorder`."""
    run(RecorderNode)


if __name__ == "__main__":
    main()
