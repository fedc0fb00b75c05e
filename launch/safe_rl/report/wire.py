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
    codec, inputs = codecs(bundle)
    found: dict[str, Finding] = {}

    def doubt(record: int, kind: str, text: str) -> None:
        found.setdefault(text, Finding(record, kind, text))

    records: dict[int, list[int]] = {}
    for k, stamp in enumerate(flight.stamp.tolist()):
        records.setdefault(stamp, []).append(k)
    for k, x in enumerate(flight.x_hat):
        stamp, known = int(flight.stamp[k]), bool(np.isfinite(x).all())
        if stamp not in commands or (known and stamp not in states):
            doubt(k, "unchecked", "its state or its command is not in the recording")
        if known and stamp in states and not any(_same(codec, n, x) for n in states[stamp]):
            doubt(k, "wire", "its estimate is not the state that was received")
        if not known and k < flight.begin - bundle.delay_steps:
            continue  # its input has ended when the first plan begins
        # Without states the plan goes on under the last one's stamp: one command for each record.
        numbers, same = commands.get(stamp, []), records[stamp]
        if len(numbers) == len(same):
            numbers = [numbers[same.index(k)]]
        sent = [inputs.input(n, x) for n in numbers]
        if not known and np.isnan(sent).any():
            doubt(k, "unchecked", "without an estimate its command cannot be told")
        elif not all((np.abs(u - flight.u_next[k]) <= TOLERANCE).all() for u in sent):
            doubt(k, "wire", "a command that was sent is not its u_next")
    if stray := sorted(set(commands) - set(records)):
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
