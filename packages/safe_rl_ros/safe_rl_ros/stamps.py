"""Time stamps: nanoseconds inside, `builtin_interfaces/Time` at the edge; which ones to believe.

ROS-free. Ages inside a node are taken from the machine's steady clock; a stamp only says which
state a message belongs to, and is believed when it moves forward and agrees with the ROS clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

SECOND = 1_000_000_000
# A source that has restarted (simulation reset, bag loop, clock stepped back) is believed again
# after this long; by then the shield has already brought the robot to its stop.
REARM_NS = SECOND


def to_ns(stamp: Any) -> int:
    """Nanoseconds of a `builtin_interfaces/Time`."""
    return stamp.sec * SECOND + stamp.nanosec


def write_ns(ns: int, stamp: Any) -> None:
    """Fill a `builtin_interfaces/Time` with nanoseconds >= 0."""
    stamp.sec, stamp.nanosec = divmod(int(ns), SECOND)


class StampGate:
    """Accepts each stamp of one source once, in order, and near the ROS clock.

    `window_ns`: largest difference, to both sides, between a stamp and the ROS clock.
    Verdicts: "ok", "restart" (accepted; everything known about the source is void),
    "duplicate", "out_of_order", "future", "late". The last four mean: do not use.
    """

    def __init__(self, window_ns: int) -> None:
        self.window_ns = window_ns
        self.last: int | None = None
        self.counts: Counter[str] = Counter()
        self._backwards_since: int | None = None

    def check(self, stamp_ns: int, steady_ns: int, ros_ns: int | None = None) -> str:
        """Verdict on a stamp; `ros_ns` None (lockstep) leaves the ROS clock out of it."""
        verdict = self._judge(stamp_ns, steady_ns, ros_ns)
        self.counts[verdict] += 1
        if verdict in ("ok", "restart"):
            self.last, self._backwards_since = stamp_ns, None
        return verdict

    def _judge(self, stamp_ns: int, steady_ns: int, ros_ns: int | None) -> str:
        if ros_ns is not None and stamp_ns - ros_ns > self.window_ns:
            return "future"
        if ros_ns is not None and ros_ns - stamp_ns > self.window_ns:
            return "late"
        if self.last is None or stamp_ns > self.last:
            return "ok"
        if stamp_ns == self.last:
            return "duplicate"
        if self._backwards_since is None:
            self._backwards_since = steady_ns
        return "restart" if steady_ns - self._backwards_since >= REARM_NS else "out_of_order"
