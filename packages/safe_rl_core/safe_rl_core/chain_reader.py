"""Reads a chain of records: layout, hash chain and signatures, from the bytes alone.

It stops at the first defect, because nothing that stands behind one is known to be what was
written. Whether the records tell of a safe flight is another question: `safe_rl_core.audit`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from safe_rl_core.chain import (
    DIGEST,
    END,
    FIXED,
    FORMAT,
    FRAME,
    HAS_PLAN,
    HAS_PROPOSAL,
    HAS_STATE,
    HEAD,
    HEADER,
    RECORD,
    SIGNATURE,
    SIZES,
    ChainError,
    Kind,
    StepRecord,
    signed_message,
)

_NEEDED = ("bundle", "bundle_hash", "files", "program", "period_s", "clock", "public_key")


@dataclass
class Chain:
    """A chain as far as it can be followed.

    `defect`: what is wrong with it, at record `bad`; empty if it is whole, signed and closed.
    `signed`: so many records are covered by a signature of the header's key.
    """

    header: dict[str, Any] = field(default_factory=dict)
    records: list[StepRecord] = field(default_factory=list)
    signed: int = 0
    closed: bool = False
    head: bytes = b""
    bad: int = 0
    defect: str = ""


@dataclass(frozen=True)
class Frame:
    """One frame as it stands: `payload` without the digest, which only records carry."""

    type: int
    payload: bytes
    digest: bytes = b""


def read_chain(data: bytes) -> Chain:
    """Follow a chain from its header to its end or to its first defect. Never raises."""
    chain = Chain()
    try:
        for frame in frames(data):
            _take(chain, frame)
            chain.bad = len(chain.records)
        if not chain.closed:
            raise ChainError(
                f"truncated: the chain was not closed; whatever followed record {chain.bad - 1} "
                f"is missing, and records from {chain.signed} on are not signed"
            )
    except ChainError as error:
        chain.defect = str(error)
    return chain


def _take(chain: Chain, frame: Frame) -> None:
    """Check one frame against everything before it."""
    if chain.closed:
        raise ChainError("bytes follow after the chain was closed")
    if (frame.type == HEADER) == bool(chain.header):
        raise ChainError("a chain has one header, at its beginning: two flights in one?")
    if frame.type == HEADER:
        chain.header = decode_header(frame.payload)
        chain.head = hashlib.sha256(frame.payload).digest()
    elif frame.type == RECORD:
        _take_record(chain, frame)
    else:
        _take_signature(chain, frame)


def _take_record(chain: Chain, frame: Frame) -> None:
    if chain.bad % chain.header["sign_every"] == 0 and chain.signed != chain.bad:
        raise ChainError(f"unsigned: no signature after record {chain.bad - 1}")
    digest = hashlib.sha256(chain.head + frame.payload).digest()
    sequence, record = decode_record(frame.payload, chain.header)
    if digest != frame.digest:
        raise ChainError(
            f"changed, or not the one that followed: it calls itself record {sequence}, and its "
            "hash is not that of the chain"
        )
    if sequence != chain.bad:
        raise ChainError(f"missing: record {sequence} stands in its place")
    chain.records.append(record)
    chain.head = digest


def _take_signature(chain: Chain, frame: Frame) -> None:
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    if len(frame.payload) != HEAD.size + 64:
        raise ChainError("a signature has the wrong length")
    number, head = HEAD.unpack_from(frame.payload)
    if (number, head) != (len(chain.records), chain.head):
        raise ChainError(f"a signature of {number} other records stands before it")
    try:
        key = VerifyKey(bytes.fromhex(chain.header["public_key"]))
        key.verify(signed_message(frame.type, number, head), frame.payload[HEAD.size :])
    except (BadSignatureError, TypeError, ValueError):
        chain.bad = chain.signed
        raise ChainError(
            f"forged: records {chain.signed} to {number - 1} are not what the key signed"
        ) from None
    chain.signed, chain.closed = number, frame.type == END


def frames(data: bytes) -> Iterator[Frame]:
    """The frames of a stream in order; ChainError where it is cut off or garbled."""
    place = 0
    while place < len(data):
        if place + FRAME.size > len(data):
            raise ChainError(f"truncated: the stream ends inside of a frame, at byte {place}")
        kind, length = FRAME.unpack_from(data, place)
        start, stop = place + FRAME.size, place + FRAME.size + length
        if kind not in (HEADER, RECORD, SIGNATURE, END):
            raise ChainError(f"no frame begins at byte {place}: unknown type {kind}")
        if stop > len(data):
            raise ChainError(f"truncated: the stream ends inside of a frame, at byte {place}")
        cut = stop - DIGEST if kind == RECORD else stop
        if cut < start:
            raise ChainError(f"the record at byte {place} is too short for its digest")
        yield Frame(kind, data[start:cut], data[cut:stop])
        place = stop


def decode_header(payload: bytes) -> dict[str, Any]:
    """The header; ChainError if it is of another format or lacks an entry."""
    try:
        header = json.loads(payload)
        numbers = [header[key] for key in (*SIZES, "sign_every", "delay_steps")]
        if missing := [key for key in ("format", *_NEEDED) if key not in header]:
            raise KeyError(*missing)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChainError(f"the header of the chain cannot be read: {error!r}") from error
    if header["format"] != FORMAT:
        raise ChainError(f"expected a chain of format '{FORMAT}', got '{header['format']}'")
    if not all(isinstance(n, int) and 0 <= n < 2**31 for n in numbers) or not all(numbers[:4]):
        raise ChainError(f"the header's {SIZES} and sign_every must be whole numbers > 0")
    return header


def decode_record(payload: bytes, header: Mapping[str, Any]) -> tuple[int, StepRecord]:
    """Sequence number and record; ChainError if the layout is not that of the header."""
    n, m, rows = (header[key] for key in SIZES)
    if len(payload) < FIXED.size:
        raise ChainError(f"a record of {len(payload)} bytes is too short")
    sequence, stamp, kind, flags, index, slack, sigma = FIXED.unpack_from(payload)
    plan = bool(flags & HAS_PLAN)
    sizes = (n, m, m, m, *((n, rows * m) if plan else ()))
    if 8 * sum(sizes) != len(payload) - FIXED.size or flags > 7 or kind not in list(Kind):
        raise ChainError(f"record {sequence}: kind {kind}, flags {flags} or length do not fit")
    numbers = np.frombuffer(payload, "<f8", offset=FIXED.size).astype(np.float64)
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    return sequence, StepRecord(
        stamp_ns=stamp,
        kind=Kind(kind),
        u_in_force=parts[1],
        u_next=parts[2],
        index=index,
        slack=slack,
        sigma=sigma,
        x_hat=parts[0] if flags & HAS_STATE else None,
        proposal=parts[3] if flags & HAS_PROPOSAL else None,
        z_0=parts[4] if plan else None,
        ubar=parts[5].reshape(rows, m) if plan else None,
    )


def read_header(data: bytes) -> dict[str, Any]:
    """The header of a chain alone; empty if the bytes do not begin with one."""
    try:
        first = next(frames(data), None)
        return decode_header(first.payload) if first and first.type == HEADER else {}
    except ChainError:
        return {}
