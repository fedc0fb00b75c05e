"""What is audited: the records of a flight as arrays, and the theorem that the bundle states.

The theorem is read here from the bundle's bytes, by code that the shield does not use.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from safe_rl_core.chain import StepRecord
from safe_rl_core.errors import SafeRLError
from safe_rl_core.program import Program

Array = NDArray[np.float64]
Header = Mapping[str, Any]
NEEDED = {"bundle.yaml", "program.txt", "certificate.json", "certificate.npz"}


class AuditError(SafeRLError):
    """Something without which nothing can be checked."""


@dataclass(frozen=True, order=True)
class Finding:
    """One reason not to accept. `record` -1: header or bundle.

    `kind`: chain (bytes), shield (it did not do what the theorem asks), premise (an assumption is
    visibly broken), unchecked (it could not be derived again).
    """

    record: int
    kind: str
    text: str


@dataclass(frozen=True)
class Flight:
    """K records as arrays, P committed plans; nan where the record says unknown."""

    stamp: NDArray[np.int64]
    kind: NDArray[np.int64]
    index: NDArray[np.int64]
    slack: Array
    sigma: Array
    x_hat: Array
    u_in_force: Array
    u_next: Array
    proposal: Array
    committed: NDArray[np.int64]  # (P,) record of each plan
    plan: NDArray[np.int64]  # (K,) number of the plan in hand, -1 before the first
    z_0: Array
    ubar: Array

    @property
    def begin(self) -> int:
        """The record of the first plan, from which on something is claimed; K without a plan."""
        return int(self.committed.min(initial=len(self.kind)))


@dataclass(frozen=True)
class Theorem:
    """The bundle's part in the proof; `c` holds the certificate's entries by their names."""

    program: Program
    period: float
    horizon: int
    delay: int
    low: Array
    high: Array
    scale: Array
    stop: Array
    rows: tuple[str, ...]
    inputs: tuple[str, ...]
    c: SimpleNamespace


def as_arrays(records: list[StepRecord], header: Header) -> Flight:
    """The records as arrays."""
    n, m, rows = (header[key] for key in ("states", "inputs", "plan_inputs"))
    plans = [(k, r) for k, r in enumerate(records) if r.z_0 is not None]

    def column(name: str, size: int) -> Array:
        unknown = np.full(size, np.nan)
        values = (getattr(r, name) for r in records)
        return np.array([unknown if v is None else v for v in values])

    return Flight(
        **{name: np.array([getattr(r, name) for r in records], np.int64)
           for name in ("kind", "index")},
        **{name: np.array([getattr(r, name) for r in records]) for name in ("slack", "sigma")},
        **{name: column(name, m) for name in ("u_in_force", "u_next", "proposal")},
        stamp=np.array([r.stamp_ns for r in records], np.int64),
        x_hat=column("x_hat", n),
        committed=np.array([k for k, _ in plans], np.int64),
        plan=np.cumsum([r.z_0 is not None for r in records], dtype=np.int64) - 1,
        z_0=np.array([r.z_0 for _, r in plans]).reshape(-1, n),
        ubar=np.array([r.ubar for _, r in plans]).reshape(-1, rows, m),
    )  # fmt: skip


def load_theorem(folder: Path, header: Header) -> Theorem:
    """The theorem of a bundle's folder; AuditError unless it is, to the byte, what flew."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    own = {"SHA256SUMS": header["bundle_hash"]}
    # A bundle is known by this one hash, so it must stand for every file whatever a header says.
    lines = (line.split("  ", 1) for line in files.get("SHA256SUMS", b"").decode().splitlines())
    lists = {**header["files"], **own}, {name: digest for digest, name in lines} | own
    differ = sorted({name for told in lists for name in {*told, *hashes}
                     if told.get(name) != hashes.get(name)})  # fmt: skip
    if differ:
        raise AuditError(
            f"{folder} is not the bundle that flew, {header['bundle']} "
            f"{header['bundle_hash'][:12]}…: {', '.join(differ)} differ; pass that one"
        )
    if not set(files) >= NEEDED:
        raise AuditError(
            f"{header['bundle']} is nominal: without {', '.join(sorted(NEEDED - set(files)))} it "
            "states no bounds, and there is no theorem that a flight could be checked against"
        )
    try:
        data = yaml.safe_load(files["bundle.yaml"])
        entries = json.loads(files["certificate.json"])
        with np.load(io.BytesIO(files["certificate.npz"]), allow_pickle=False) as archive:
            entries |= {name: archive[name] for name in archive.files}
        theorem = Theorem(
            program=Program.load(folder / "program.txt"),
            period=float(data["period_s"]),
            horizon=int(data["horizon_steps"]),
            delay=int(data["delay_steps"]),
            low=np.array([float(channel["low"]) for channel in data["inputs"]]),
            high=np.array([float(channel["high"]) for channel in data["inputs"]]),
            scale=np.array(data["input_scale"], float),
            stop=np.array(data["stop_action"], float),
            rows=tuple(data["safe_set"]),
            inputs=tuple(channel["name"] for channel in data["inputs"]),
            c=SimpleNamespace(
                **{k: np.array(v) if isinstance(v, list) else v for k, v in entries.items()}
            ),
        )
        _check_agreement(theorem, header, len(data["states"]), data["name"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AuditError(f"{folder}: the certificate cannot be read: {error!r}") from error
    return theorem


def _check_agreement(t: Theorem, header: Header, n: int, called: str) -> None:
    """Bundle, certificate and header speak of the same robot."""
    c, m = t.c, len(t.low)
    sizes = [header[key] for key in ("states", "inputs", "plan_inputs")]
    own = (t.period, t.delay)
    pairs = {
        "the bundle's name": (header["bundle"], called),
        "program": ((header["program"], c.program), (t.program.hash,) * 2),
        "sizes": (sizes, [n, m, t.horizon + 1]),
        "period and delay": ((c.period, c.delay_steps), own),
        "the header's period and delay": ((header["period_s"], header["delay_steps"]), own),
        "input box": (np.array([c.input_low, c.input_high]).tolist(), [[*t.low], [*t.high]]),
    }  # fmt: skip
    for name, (got, wanted) in pairs.items():
        if got != wanted:
            raise AuditError(f"header, bundle and certificate disagree on {name}: {got}, {wanted}")
    names = ("disturbance", "estimate_error", "prediction_error", "tracking_error",
             "sampling_margin", "jitter")  # fmt: skip
    bounds = np.concatenate([np.ravel(getattr(c, k)) for k in names])
    total = c.base_contraction + c.base_disturbance_norm + c.base_estimate_norm
    if not ((bounds >= 0.0) & np.isfinite(bounds)).all() or not total <= 1.0 + 1e-12:
        raise AuditError(
            f"no certificate: {', '.join(names)} must be finite and >= 0, and the base set sums "
            f"up to {total:g}, at most 1; run safe-rl verify"
        )
