"""A recording to a `FlightLog`: one row per control period, aligned by stamp.

Row k holds the true state k, the measured state k, and the proposal, the command and the status
that carry its stamp. A repeated message counts once, the first one: repetitions are the simulation
asking again for an answer that it missed. What is not in the recording stays visible: it is
counted in `Recording.gaps`, never made up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.record import UNSHIELDED, VERDICTS, FlightLog
from safe_rl_ros import topics
from safe_rl_ros.convert import InputCodec, MessageFault, Numbers, StateCodec, codecs
from safe_rl_ros.stamps import SECOND

from safe_rl.report.recording import Recording, RecordingError

#: reason of a step that has no status of its own
UNRECORDED = "not_recorded"


def to_flight_log(recording: Recording, bundle: Bundle) -> FlightLog:
    """Align a recording into one row per control period; counts what is missing in `.gaps`.

    A step without a command of its own flew the command before it. A step without a status counts
    as not judged.
    """
    stamps = sorted(recording.true_states)
    if len(stamps) < 2:
        raise RecordingError(
            f"{recording.path}: {len(stamps)} true states on {topics.TRUE_STATE}, expected at "
            f"least 2; a report needs the simulation's true state"
        )
    if not recording.commands:
        raise RecordingError(f"{recording.path}: the shield sent no command in this recording")
    states, inputs = codecs(bundle)
    truth = _states(states, [recording.true_states[stamp] for stamp in stamps], recording.path)
    steps = stamps[:-1]
    measured = np.array(
        [
            states.state(recording.states[stamp]) if stamp in recording.states else truth[row]
            for row, stamp in enumerate(steps)
        ]
    )
    start = 0 if recording.simulated else stamps[0]
    recording.gaps = _count_gaps(recording, stamps, bundle.period)
    return FlightLog(
        t=(np.array(steps) - start) / SECOND,
        x_true=truth,
        x_measured=measured,
        u_proposed=_actions(inputs, recording.proposals, steps, measured, held=False),
        u_safe=_actions(inputs, recording.commands, steps, measured, held=True),
        **_status_columns(recording, steps),
    )


def _states(codec: StateCodec, messages: list[Numbers], path: Path) -> NDArray[np.float64]:
    try:
        return np.array([codec.state(message) for message in messages])
    except MessageFault as fault:
        raise RecordingError(f"{path}: a true state cannot be used: {fault}") from fault


def _actions(
    codec: InputCodec, messages: dict[int, Numbers], steps: list[int], states: NDArray, held: bool
) -> NDArray[np.float64]:
    """Actions (K, m); where none was sent: the one before (`held`, if any), else not-a-number."""
    rows = np.full((len(steps), len(codec.names)), np.nan)
    for row, stamp in enumerate(steps):
        if stamp in messages:
            rows[row] = codec.input(messages[stamp], states[row])
        elif held and row:
            rows[row] = rows[row - 1]
    return rows


def _status_columns(recording: Recording, steps: list[int]) -> dict[str, NDArray]:
    """The columns of a flight log that come from `shield/status`."""
    codes = {verdict: index for index, verdict in enumerate(VERDICTS)}
    verdicts, reasons, rows, used = [], [], [], []
    numbers: dict[str, list[float]] = {
        key: [] for key in ("margin", "intervention", "total_us", "latency_us")
    }
    for stamp in steps:
        values = recording.status.get(stamp, {})
        verdicts.append(codes.get(values.get("verdict", ""), UNSHIELDED))
        reasons.append(values.get("reason", UNRECORDED))
        rows.append(values.get("critical_row", ""))
        used.append(values.get("qp_used") == "true")
        for key, column in numbers.items():
            column.append(float(values.get(key, "nan")))
    return {
        "verdict": np.array(verdicts, dtype=np.int8),
        "reason": np.array(reasons),
        "margin": np.array(numbers["margin"]),
        "critical_row": np.array(rows),
        "intervention": np.array(numbers["intervention"]),
        "shield_us": np.array(numbers["total_us"]),
        "latency_us": np.array(numbers["latency_us"]),
        "qp_used": np.array(used),
    }


def _count_gaps(recording: Recording, stamps: list[int], period: float) -> dict[str, int]:
    """How much of the run is not in the recording."""
    steps = stamps[:-1]
    expected = round((stamps[-1] - stamps[0]) / (period * SECOND)) + 1
    return {
        "true_states": max(0, expected - len(stamps)),
        "states": sum(stamp not in recording.states for stamp in steps),
        "proposals": sum(stamp not in recording.proposals for stamp in steps),
        "commands": sum(stamp not in recording.commands for stamp in steps),
        "status": sum(stamp not in recording.status for stamp in steps),
    }
