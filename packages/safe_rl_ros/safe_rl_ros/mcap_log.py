"""An MCAP file written by a thread of its own, fed through a bounded queue. ROS-free.

`put` never blocks and never raises: what does not fit is dropped and counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from mcap.writer import Writer

# About 20 s of a whole stack in lockstep, some 60 MB of odometry at worst.
CAPACITY = 100_000
PAUSE_S = 0.02


class McapLog:
    """Serialized ROS 2 messages into one file; profile ros2, schemas ros2msg, messages CDR."""

    def __init__(self, path: Path, capacity: int = CAPACITY) -> None:
        self.path, self.lost, self.written = path, 0, 0
        self._capacity = capacity
        self._queue: deque[tuple[int, int, int, bytes]] = deque()
        self._stream = path.open("wb")
        self._writer = Writer(self._stream)
        self._writer.start(profile="ros2", library="safe_rl_ros")
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="mcap writer", daemon=True)

    def channel(self, topic: str, type_name: str, text: str) -> int:
        """Register a topic before `start`; returns the number that `put` wants."""
        schema = self._writer.register_schema(type_name, "ros2msg", text.encode())
        return self._writer.register_channel(topic, "cdr", schema)

    def note(self, name: str, values: Mapping[str, str]) -> None:
        """Write a metadata record; before `start` or after `finish` only."""
        self._writer.add_metadata(name, dict(values))

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def put(self, channel: int, log_ns: int, publish_ns: int, data: bytes) -> None:
        """Queue one serialized message."""
        if len(self._queue) >= self._capacity or self._failure is not None:
            self.lost += 1
        else:
            self._queue.append((channel, log_ns, publish_ns, data))

    @property
    def finished(self) -> bool:
        """True once the thread has been told to stop; a log is not started twice."""
        return self._closing.is_set()

    def finish(self) -> None:
        """Write what is queued and stop the thread; the file stays open for `note`."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> Exception | None:
        """Complete the file. Returns what stopped the writing (a full disk …), or None."""
        self.finish()
        try:
            self._writer.finish()
            self._stream.close()
        except OSError as error:
            return error
        return self._failure

    def _work(self) -> None:
        try:
            while not self._closing.wait(PAUSE_S):
                self._drain()
            self._drain()
        except OSError as error:
            self._failure = error
            self.lost += len(self._queue)

    def _drain(self) -> None:
        # A batch at a time, so that a feed faster than the disk cannot keep this from returning.
        for _ in range(len(self._queue)):
            channel, log_ns, publish_ns, data = self._queue.popleft()
            self._writer.add_message(channel, log_ns, data, publish_ns, self.written)
            self.written += 1
