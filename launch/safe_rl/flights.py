"""Estimates and commands of recorded flights, in pieces without a gap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import SafeRLError
from safe_rl_core.identify import Flight
from safe_rl_core.record import FlightLog
from safe_rl_ros.convert import MessageFault, codecs
from safe_rl_ros.stamps import SECOND

from safe_rl.report.recording import RecordingError, read_recording

#: Two estimates further than this from one period apart (share of it) have a gap between them.
GAP = 0.5


def read_flights(path: Path, bundle: Bundle) -> list[Flight]:
    """The recording in pieces without a gap."""
    if not path.exists():
        raise SafeRLError(f"no recording at {path}: expected a run's folder, .mcap or .npz")
    if path.suffix == ".npz":
        return _flight_log(FlightLog.load(path), path, bundle)
    return _recording(path, bundle)


def _flight_log(log: FlightLog, path: Path, bundle: Bundle) -> list[Flight]:
    n, m = len(bundle.states), len(bundle.inputs)
    got = (log.x_measured.shape[1], log.u_safe.shape[1])
    if got != (n, m):
        raise SafeRLError(
            f"{path} has {got[0]} states and {got[1]} inputs, {bundle.name} has {n} and {m}; "
            "name a bundle of the robot that flew"
        )
    return _pieces(log.t, log.x_measured, log.u_safe, log.x_true[:-1], bundle.period)


def _recording(path: Path, bundle: Bundle) -> list[Flight]:
    """Estimates with the command of the same stamp; the true state where it was recorded."""
    recording = read_recording(path)
    if recording.robot != bundle.robot:
        raise SafeRLError(
            f"{path} is a flight of a {recording.robot}, {bundle.name} is for a {bundle.robot}"
        )
    states, inputs = codecs(bundle)
    stamps = sorted(set(recording.states) & set(recording.commands))
    if not stamps:
        raise RecordingError(f"{path} has no estimate with a command of the same stamp")
    try:
        x = np.array([states.state(recording.states[stamp]) for stamp in stamps])
        known = all(stamp in recording.true_states for stamp in stamps)
        truth = [states.state(recording.true_states[s]) for s in stamps] if known else None
    except MessageFault as fault:
        raise RecordingError(f"{path}: a state cannot be used: {fault}") from fault
    pairs = zip(stamps, x, strict=True)
    u = np.array([inputs.input(recording.commands[stamp], row) for stamp, row in pairs])
    seconds = (np.array(stamps) - stamps[0]) / SECOND
    return _pieces(seconds, x, u, None if truth is None else np.array(truth), bundle.period)


def _pieces(
    t: NDArray[np.float64],
    x: NDArray[np.float64],
    u: NDArray[np.float64],
    truth: NDArray[np.float64] | None,
    period: float,
) -> list[Flight]:
    """Cut where a period is missing and where a number is not finite."""
    good = np.isfinite(x).all(axis=1) & np.isfinite(u).all(axis=1)
    broken = np.abs(np.diff(t) - period) > GAP * period
    cuts = np.flatnonzero(broken | ~good[1:] | ~good[:-1]) + 1
    rows = np.split(np.arange(len(t)), cuts)
    return [
        Flight(x[r], u[r], None if truth is None else truth[r])
        for r in rows
        if len(r) and good[r].all()
    ]
