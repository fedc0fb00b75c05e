"""The chain of records: every bit comes back, every changed bit is found, and nothing raises."""

from __future__ import annotations

import sys
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from safe_rl_core.chain import FORMAT, SIGN_EVERY, ChainError, ChainWriter, Kind, StepRecord
from safe_rl_core.chain_reader import frames, read_chain, read_header

N, M, ROWS = 10, 4, 101
HEADER = {
    "format": FORMAT, "bundle": "b", "bundle_hash": "00", "files": {}, "program": "11",
    "states": N, "inputs": M, "plan_inputs": ROWS, "delay_steps": 1, "period_s": 0.02,
    "sign_every": SIGN_EVERY, "clock": "simulated",
}  # fmt: skip
KEY = bytes(range(32))


def record(seed: int, plan: bool = False, state: bool = True) -> StepRecord:
    rng = np.random.default_rng(seed)
    return StepRecord(
        stamp_ns=seed * 20_000_000,
        kind=Kind.BACKUP if plan else Kind.CONTINUE,
        u_in_force=rng.normal(size=M),
        u_next=rng.normal(size=M),
        index=0 if plan else seed,
        slack=rng.normal(),
        x_hat=rng.normal(size=N) if state else None,
        proposal=np.array([np.nan, -0.0, np.inf, 5e-324]) if seed % 2 else None,
        z_0=rng.normal(size=N) if plan else None,
        ubar=rng.normal(size=(ROWS, M)) if plan else None,
    )


def written(records: list[StepRecord]) -> list[bytes]:
    """One piece per record, then the closing one."""
    writer = ChainWriter(HEADER, KEY)
    pieces = [writer.append(r) for r in records]
    pieces.append(writer.close())
    assert writer.faults == 0, writer.last_fault
    return pieces


def same(a: StepRecord, b: StepRecord) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(StepRecord)]
    return all(
        (x is None) == (y is None)
        and (x is None or np.asarray(x).tobytes() == np.asarray(y).tobytes())
        for x, y in pairs
    )


def test_every_bit_comes_back() -> None:
    records = [record(k, plan=k % 3 == 0, state=k % 5 != 0) for k in range(45)]
    chain = read_chain(b"".join(written(records)))
    assert chain.defect == ""
    assert chain.closed
    assert chain.signed == 45
    assert chain.header["states"] == N
    assert all(same(a, b) for a, b in zip(records, chain.records, strict=True))


def test_a_record_is_below_a_kilobyte_beside_its_plan() -> None:
    pieces = written([record(k, plan=k % 2 == 1) for k in range(41)])
    assert max(len(piece) for piece in pieces[2:-1:2]) < 500
    assert max(len(piece) for piece in pieces[1:-1:2]) < 500 + 8 * (N + ROWS * M)


def test_a_record_is_written_in_time() -> None:
    writer, r, times = ChainWriter(HEADER), record(1, plan=True), []
    for _ in range(400):
        begin = time.perf_counter()
        writer.append(r)
        times.append(time.perf_counter() - begin)
    assert np.median(times) < 100e-6


def test_header_comes_with_the_first_record_and_nowhere_else() -> None:
    pieces = written([record(k) for k in range(3)])
    assert [bytes([f.type]) for p in pieces for f in frames(p)] == [b"H", b"R", b"R", b"R", b"E"]
    assert read_header(pieces[0])["public_key"] == ChainWriter(HEADER, KEY).public_key
    assert read_header(pieces[1]) == read_header(b"nonsense") == {}


def test_a_key_per_chain_unless_one_is_given() -> None:
    assert ChainWriter(HEADER).public_key != ChainWriter(HEADER).public_key
    assert ChainWriter(HEADER, KEY).public_key == ChainWriter(HEADER, KEY).public_key


@pytest.mark.parametrize(
    "broken",
    [
        replace(record(1), x_hat=np.zeros(N + 1)),
        replace(record(1), u_next=None, u_in_force=np.zeros((M, 1))),
        replace(record(1), z_0=np.zeros(N)),
        replace(record(1), stamp_ns=2**63),
        replace(record(1), stamp_ns=np.nan),
        replace(record(1), index=1.5),
        replace(record(1), slack="tight"),
        replace(record(1, plan=True), ubar=np.zeros((ROWS - 1, M))),
        None,
    ],
)
def test_a_record_that_cannot_be_written_raises_nothing_and_leaves_a_gap(broken: object) -> None:
    writer = ChainWriter(HEADER, KEY)
    pieces = [writer.append(record(0)), writer.append(broken), writer.append(record(2))]
    assert pieces[1] is None
    assert writer.faults == 1
    assert writer.last_fault
    chain = read_chain(pieces[0] + pieces[2] + writer.close())
    assert chain.bad == 1
    assert "missing: record 2 stands in its place" in chain.defect


def test_nothing_is_written_after_the_end() -> None:
    writer = ChainWriter(HEADER, KEY)
    assert writer.append(record(0))
    assert writer.close()
    assert writer.append(record(1)) is None
    assert writer.close() is None
    assert writer.faults == 2


def test_a_header_as_deep_as_no_reader_can_go_raises_nothing() -> None:
    data = b"H" + (10**6).to_bytes(4, "little") + b"[" * 10**6
    assert "cannot be read" in read_chain(data).defect
    assert read_header(data) == {}


def test_an_empty_flight_is_a_chain() -> None:
    chain = read_chain(written([])[0])
    assert (chain.defect, chain.records, chain.closed) == ("", [], True)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_bad_key_is_refused(key: bytes) -> None:
    with pytest.raises(ChainError, match="must have 32 bytes"):
        ChainWriter(HEADER, key)


def test_a_header_without_sizes_is_refused() -> None:
    with pytest.raises(ChainError, match="'states'"):
        ChainWriter({k: v for k, v in HEADER.items() if k != "states"}, KEY)


def test_without_pynacl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nacl.signing", None)
    with pytest.raises(ChainError, match="pip install pynacl"):
        ChainWriter(HEADER)


SHORT = b"".join(written([record(k, plan=k == 4) for k in range(23)]))


def spans() -> list[tuple[int, int, int]]:
    """End of each frame, first and last record that may be blamed for what is wrong in it."""
    found, place, records, signed = [], 0, 0, 0
    for frame in frames(SHORT):
        size = 5 + len(frame.payload) + len(frame.digest)
        kind = bytes([frame.type])
        low = signed if kind in b"SE" else records
        found.append((place + size, low, records))
        place += size
        if kind == b"R":
            records += 1
        elif kind == b"S":
            signed = records
    return found


def test_every_flipped_bit_is_found_at_its_record() -> None:
    start, rng = 0, np.random.default_rng(0)
    for stop, low, high in spans():
        places = range(start, stop) if stop - start < 600 else rng.integers(start, stop, 300)
        for place in places:
            data = bytearray(SHORT)
            data[place] ^= 1 << int(rng.integers(8))
            chain = read_chain(bytes(data))
            assert chain.defect, f"byte {place}"
            assert low <= chain.bad <= high, f"byte {place}: {chain.bad} {chain.defect}"
        start = stop


def test_every_cut_is_found() -> None:
    for length in range(0, len(SHORT), 7):
        chain = read_chain(SHORT[:length])
        assert chain.defect
        assert chain.bad == len(chain.records)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"RRRRRRRRRRRR", b"H\x02\x00\x00\x00{}", SHORT[5:]]
)
def test_what_is_no_chain_is_said_to_be_none(data: bytes) -> None:
    chain = read_chain(data)
    assert chain.defect
    assert not chain.records
