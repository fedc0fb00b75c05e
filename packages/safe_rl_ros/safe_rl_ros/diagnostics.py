"""`diagnostic_msgs/DiagnosticArray` with one status, built once and filled many times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from safe_rl_ros.stamps import write_ns

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR
STALE = DiagnosticStatus.STALE


class StatusMessage:
    """One named status whose keys are fixed; only the values are written on each use."""

    def __init__(self, name: str, hardware_id: str, keys: Iterable[str]) -> None:
        self.message = DiagnosticArray()
        self._status = DiagnosticStatus(name=name, hardware_id=hardware_id)
        self._values = {key: KeyValue(key=key) for key in keys}
        self._status.values = list(self._values.values())
        self.message.status = [self._status]

    def fill(
        self, stamp_ns: int, level: bytes, text: str, values: Mapping[str, str]
    ) -> DiagnosticArray:
        """The message with these contents; it is the same object on each call."""
        write_ns(stamp_ns, self.message.header.stamp)
        self._status.level, self._status.message = level, text
        for key, value in values.items():
            self._values[key].value = value
        return self.message


def report(
    name: str, stamp_ns: int, level: bytes, text: str, values: Mapping[str, object]
) -> DiagnosticArray:
    """A fresh array with one status, for `/diagnostics`, where keys come and go."""
    message = StatusMessage(name, "safe_rl", values)
    return message.fill(stamp_ns, level, text, {key: str(item) for key, item in values.items()})
