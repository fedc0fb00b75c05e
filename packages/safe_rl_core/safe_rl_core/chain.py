"""The per-step certificate: one record per control period, hash-chained and signed, as bytes.

A chain is a stream of frames, whether in one file or cut into messages at any frame's end:

    frame   u8 type, u32 length of what follows, then
    'H'     header: canonical JSON (sorted keys, no spaces, UTF-8); h_0 = SHA-256(header)
    'R'     record: body, then h_n = SHA-256(h_{n-1} || body), which pins down a changed record
    'S'     signature: u64 number of records so far, h_n, Ed25519 over (tag, number, h_n)
    'E'     the same under another tag: the chain is closed, nothing follows

The body of a record, little-endian (n states, m inputs, from the header):

    u64 sequence   i64 stamp in ns   u8 kind   u8 flags   i32 index   f64 slack   f64 sigma
    f64 x_hat (n), u_in_force (m), u_next (m), proposal (m)       nan where the flag says unknown
    f64 z_0 (n), ubar (rows, m)                                   only if a plan is committed

`chain_reader` reads a chain and follows hashes and signatures; whether what it tells is right is
for `safe_rl_core.audit` to find out.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.errors import SafeRLError

if TYPE_CHECKING:
    from safe_rl_core.bundle import Bundle

Array = NDArray[np.float64]

FORMAT = "safe_rl_chain 1"
HEADER, RECORD, SIGNATURE, END = b"HRSE"
DIGEST = 32
#: Records between two signatures.
SIGN_EVERY = 20
TAGS = {SIGNATURE: b"safe_rl chain 1 head", END: b"safe_rl chain 1 closed"}

FRAME = struct.Struct("<BI")
FIXED = struct.Struct("<QqBBidd")
HEAD = struct.Struct("<Q32s")
HAS_STATE, HAS_PROPOSAL, HAS_PLAN = 1, 2, 4
SIZES = ("states", "inputs", "plan_inputs")


class ChainError(SafeRLError):
    """Bytes that are no chain, or a chain that cannot be written."""


class Kind(IntEnum):
    """Where the next input of a record comes from. The first four commit a new plan."""

    ACCEPT = 0
    PROJECTED = 1
    BLENDED = 2
    BACKUP = 3
    CONTINUE = 4
    BASE = 5
    STOP = 6


@dataclass(frozen=True)
class StepRecord:
    """What the shield did in one control period.

    `stamp_ns`: of the estimate; `kind`; `u_in_force` (m,) acts from the stamp on, `u_next` (m,) is
    the answer, which takes effect delay_steps periods later; `index`: which element of the
    committed plan `u_next` is (0 when it is committed, beyond the horizon: base controller);
    `slack`, `sigma`: of the plan in hand, nan if unknown. `x_hat` (n,) and `proposal` (m,) are
    None where there was none, `z_0` (n,) and `ubar` (rows, m) unless a plan was committed.
    """

    stamp_ns: int
    kind: Kind
    u_in_force: Array
    u_next: Array
    index: int = 0
    slack: float = np.nan
    sigma: float = np.nan
    x_hat: Array | None = None
    proposal: Array | None = None
    z_0: Array | None = None
    ubar: Array | None = None


def canonical(value: Mapping[str, Any]) -> bytes:
    """JSON that has one form only."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def header_of(bundle: Bundle, clock: str, **more: Any) -> dict[str, Any]:
    """The header of a flight with this bundle; `clock` says what the stamps count.

    `more` is provenance (software version, machine …); the writer adds its public key.
    """
    return {
        "format": FORMAT,
        "bundle": bundle.name,
        "bundle_hash": bundle.hash,
        "files": dict(bundle.hashes),
        "program": bundle.program.hash,
        "states": len(bundle.states),
        "inputs": len(bundle.inputs),
        "plan_inputs": bundle.horizon + 1,
        "delay_steps": bundle.delay_steps,
        "period_s": bundle.period,
        "sign_every": SIGN_EVERY,
        "clock": clock,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **more,
    }


def signed_message(frame_type: int, records: int, head: bytes) -> bytes:
    """What the Ed25519 key signs."""
    return TAGS[frame_type] + HEAD.pack(records, head)


class ChainWriter:
    """Turns records into the bytes of a chain; the caller publishes or stores them.

    After the constructor nothing raises: a record that cannot be written is None, is counted in
    `faults`, said in `last_fault`, and leaves a gap in the sequence that the audit will name.
    Without `key` (32 bytes, an Ed25519 seed) a key is drawn for this chain alone and forgotten
    with it; who wants to know later that the log is the vehicle's keeps `public_key`.
    """

    def __init__(self, header: Mapping[str, Any], key: bytes | None = None) -> None:
        """Raises ChainError for a header without the sizes, a bad key, or a missing PyNaCl."""
        try:
            from nacl.signing import SigningKey
        except ImportError as error:
            raise ChainError(
                "signing the per-step certificate needs PyNaCl: pip install pynacl"
            ) from error
        if key is not None and len(key) != 32:
            raise ChainError(f"the signing key must have 32 bytes (Ed25519 seed), got {len(key)}")
        self._key = SigningKey.generate() if key is None else SigningKey(key)
        self.public_key = self._key.verify_key.encode().hex()
        text = canonical({**header, "public_key": self.public_key})
        try:
            self._n, self._m, self._rows = (int(header[key]) for key in SIZES)
            self._every = int(header["sign_every"])
        except (KeyError, TypeError, ValueError) as error:
            raise ChainError(f"the header lacks or garbles {error}; use header_of") from error
        self._head = hashlib.sha256(text).digest()
        self._opening = _frame(HEADER, text)
        self._closed = False
        self.records = self.faults = 0
        self.last_fault = ""

    def append(self, record: StepRecord) -> bytes | None:
        """The bytes of the next record; the first ones begin with the header."""
        sequence = self.records
        self.records += 1
        try:
            if self._closed:
                raise ChainError("the chain is closed")
            body = self._body(sequence, record)
            head = hashlib.sha256(self._head + body).digest()
            data = self._opening + _frame(RECORD, body + head)
            if self.records % self._every == 0:
                data += self._signature(SIGNATURE, head)
        except Exception as error:  # a fault here must never reach the shield
            self._fault(error)
            return None
        self._head, self._opening = head, b""
        return data

    def close(self) -> bytes | None:
        """The last bytes, without which the chain counts as cut off."""
        try:
            if self._closed:
                raise ChainError("the chain is closed")
            data = self._opening + self._signature(END, self._head)
        except Exception as error:  # as above
            self._fault(error)
            return None
        self._closed = True
        return data

    def _fault(self, error: Exception) -> None:
        self.faults += 1
        self.last_fault = f"{type(error).__name__}: {error}"

    def _signature(self, frame_type: int, head: bytes) -> bytes:
        message = signed_message(frame_type, self.records, head)
        return _frame(
            frame_type, HEAD.pack(self.records, head) + self._key.sign(message).signature
        )

    def _body(self, sequence: int, r: StepRecord) -> bytes:
        flags = HAS_STATE * (r.x_hat is not None) | HAS_PROPOSAL * (r.proposal is not None)
        flags |= HAS_PLAN * (r.z_0 is not None)
        if (r.z_0 is None) != (r.ubar is None):
            raise ChainError("a committed plan needs both z_0 and ubar")
        fixed = (sequence, r.stamp_ns, r.kind, flags, r.index, r.slack, r.sigma)
        parts = [
            FIXED.pack(*fixed),
            _numbers(r.x_hat, (self._n,)),
            _numbers(r.u_in_force, (self._m,)),
            _numbers(r.u_next, (self._m,)),
            _numbers(r.proposal, (self._m,)),
        ]
        if r.z_0 is not None:
            parts += [_numbers(r.z_0, (self._n,)), _numbers(r.ubar, (self._rows, self._m))]
        return b"".join(parts)


def _frame(frame_type: int, payload: bytes) -> bytes:
    return FRAME.pack(frame_type, len(payload)) + payload


def _numbers(values: Array | None, shape: tuple[int, ...]) -> bytes:
    if values is None:
        values = np.full(shape, np.nan)
    array = np.asarray(values, "<f8")
    if array.shape != shape:
        raise ChainError(f"expected numbers of shape {shape}, got {array.shape}")
    return array.tobytes()
