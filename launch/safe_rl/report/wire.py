"""Does the record tell what was on the wire? A recording's own messages against its chain.

The chain is what the shield says that it received and sent. States and commands were recorded
beside it; each record must have its own, with the same numbers, and no command may stand alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safe_rl_core.audit.records import Finding, Flight
from safe_rl_core.bundle import Bundle
from safe_rl_ros import topics
from safe_rl_ros.convert import MessageFault, Numbers, StateCodec, codecs
from safe_rl_ros.stamps import to_ns

from safe_rl.report import recording

#: A set-point of speed is rounded when it is made into an acceleration and back.
TOLERANCE = 1e-9

Wire = dict[int, list[Numbers]]


def wire_findings(path: Path, bundle: Bundle, flight: Flight) -> list[Finding]:
    """The first record of each kind of disagreement between the chain and the messages."""
    command = topics.commands_of(bundle.robot).command
    states, commands = _by_stamp(path, topics.STATE, command)
    known = {int(stamp): k for k, stamp in reversed(list(enumerate(flight.stamp)))}
    codec, inputs = codecs(bundle)
    found: dict[str, Finding] = {}

    def doubt(record: int, kind: str, text: str) -> None:
        found.setdefault(text, Finding(record, kind, text))

    for stamp, k in sorted(known.items(), key=lambda item: item[1]):
        x = flight.x_hat[k]
        if stamp not in commands or (np.isfinite(x).all() and stamp not in states):
            doubt(k, "unchecked", "its state or its command is not in the recording")
        if not np.isfinite(x).all():
            continue
        if stamp in states and not any(_same(codec, n, x) for n in states[stamp]):
            doubt(k, "wire", "its estimate is not the state that was received")
        sent = [inputs.input(numbers, x) for numbers in commands.get(stamp, [])]
        if not all((np.abs(u - flight.u_next[k]) <= TOLERANCE).all() for u in sent):
            doubt(k, "wire", "a command that was sent is not its u_next")
    if stray := sorted(set(commands) - set(known)):
        after = int(np.searchsorted(flight.stamp, stray[0]))
        doubt(min(after, len(flight.stamp) - 1), "wire", "a command was sent without a record")
    return sorted(found.values())


def _by_stamp(path: Path, *wanted: str) -> tuple[Wire, ...]:
    found: dict[str, Wire] = {topic: {} for topic in wanted}
    for topic, message in recording.messages(path):
        if topic in found:
            numbers = recording.numbers_of(message)
            found[topic].setdefault(to_ns(message.header.stamp), []).append(numbers)
    return tuple(found.values())


def _same(codec: StateCodec, numbers: Numbers, x: np.ndarray) -> bool:
    try:
        return codec.state(numbers).tobytes() == x.tobytes()
    except MessageFault:
        return False
