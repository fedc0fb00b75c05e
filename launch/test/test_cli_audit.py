"""`safe-rl audit` on chains in files and in recordings: exit code, words, page."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mcap_ros2.writer import Writer
from recordings import write_recording
from safe_rl.commands import audit
from safe_rl.report import audit_text
from safe_rl.report.audit_page import build_audit_page
from safe_rl.report.wire import wire_findings
from safe_rl_core.audit import audit as audit_chain
from safe_rl_core.audit.records import Flight
from safe_rl_core.chain import ChainWriter, Kind
from safe_rl_core.errors import SafeRLError
from safe_rl_ros.convert import codecs
from safe_rl_ros.stamps import SECOND
from synthetic import quadrotor_bundle, quadrotor_log

# The robot of the audit's own tests, so that it is written once.
sys.path.append(str(Path(__file__).parents[2] / "packages" / "safe_rl_core" / "test"))
from audit_robot import Cart, header, theorem, write, write_bundle

KEY = bytes(range(32))
QUADROTOR = SimpleNamespace(**vars(quadrotor_bundle()), delay_steps=1)
UINT8_ARRAY = """std_msgs/MultiArrayLayout layout
uint8[] data
================================================================================
MSG: std_msgs/MultiArrayLayout
std_msgs/MultiArrayDimension[] dim
uint32 data_offset
================================================================================
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "cart_robust")


@pytest.fixture(scope="module")
def records(folder: Path) -> list:
    return Cart(theorem(folder), outage=(60, 95)).fly(130)


@pytest.fixture(scope="module")
def pieces(folder: Path, records: list) -> list[bytes]:
    return write(folder, records, KEY)


@pytest.fixture
def run(tmp_path: Path, pieces: list[bytes]) -> Path:
    """A run's folder that holds a chain."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "flight.chain").write_bytes(b"".join(pieces))
    return tmp_path / "run"


def call(*words: object) -> int:
    """The exit code of `safe-rl audit …`."""
    parser = argparse.ArgumentParser()
    audit.add_command(parser.add_subparsers())
    args = parser.parse_args(["audit", "--jobs", "1", *map(str, words)])
    try:
        return args.run(args)
    except SafeRLError as error:
        print(f"safe-rl audit: {error}", file=sys.stderr)
        return 2


def recording(path: Path, pieces: list[bytes], topic: str = "/shield/certificate") -> Path:
    """The pieces as messages; all under one stamp, so that only the file's order can tell."""
    with path.open("wb") as stream:
        writer = Writer(stream)
        kind = writer.register_msgdef("std_msgs/msg/UInt8MultiArray", UINT8_ARRAY)
        for piece in pieces:
            message = {"layout": {"dim": [], "data_offset": 0}, "data": piece}
            writer.write_message(topic, kind, message, 1_000_000_000)
        writer.finish()
    return path


def test_an_honest_flight(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "--bundle", folder) == 0
    out = capsys.readouterr().out
    for words in (
        "ACCEPTED", "between the samples too", "Not proved", "A1 model", "p 0.0002 m",
        "A6 numbers", "130, 13.00 s", "least slack", "residual over 20 periods", "x real time",
    ):  # fmt: skip
        assert words in out, words
    page = (run / "audit.html").read_text()
    for words in ("ACCEPTED", "A3 timing", "Interventions and their causes", "breaks V", "<svg"):
        assert words in page, words
    assert "NOT ACCEPTED" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_a_forged_flight(
    run: Path, folder: Path, pieces: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    forged = bytearray(pieces[41])
    forged[60] ^= 1
    (run / "flight.chain").write_bytes(b"".join([*pieces[:41], bytes(forged), *pieces[42:]]))
    assert call(run, "--bundle", folder, "--html", run / "page.html") == 1
    out = capsys.readouterr().out
    assert "NOT ACCEPTED" in out
    assert "record 41 (the bytes of the record): changed" in out
    page = (run / "page.html").read_text()
    assert "NOT ACCEPTED" in page
    assert "record 41" in page


def test_a_recording_says_the_same(
    tmp_path: Path,
    folder: Path,
    pieces: list[bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "compare_wire", lambda *args: None)  # no vehicle, no commands
    path = recording(tmp_path / "recording.mcap", pieces)
    assert audit.recorded_chain(path) == b"".join(pieces)
    assert call(path, "--bundle", folder) == 0
    assert call(recording(tmp_path / "cut.mcap", pieces[:77]), "--bundle", folder) == 1
    assert "record 77 (the bytes of the record): truncated" in capsys.readouterr().out


def test_a_recording_without_certificates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pieces: list[bytes]
) -> None:
    path = recording(tmp_path / "recording.mcap", pieces[:2], "/another/topic")
    assert call(path) == 2
    assert "holds no message on shield/certificate" in capsys.readouterr().err


def test_a_broken_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recording.mcap").write_bytes(b"no recording")
    assert call(tmp_path) == 2
    assert "cannot be read as MCAP" in capsys.readouterr().err


def flown(tmp_path: Path, **changes: object) -> tuple[Path, Flight]:
    """A recorded lap of a quadrotor, and its records as they should be."""
    bundle, log = QUADROTOR, quadrotor_log(laps=1)
    write_recording(tmp_path / "lap.mcap", bundle, log, **changes)
    codec, count = codecs(bundle)[0], log.steps
    flight = SimpleNamespace(
        stamp=np.array([round(k * bundle.period * SECOND) for k in range(count)]),
        x_hat=np.array([codec.state(codec.numbers(x)) for x in log.x_measured]),
        u_next=log.u_safe.copy(),
        begin=0,
    )
    return tmp_path / "lap.mcap", flight


def test_records_are_compared_with_the_wire(tmp_path: Path) -> None:
    path, flight = flown(tmp_path)
    assert wire_findings(path, QUADROTOR, flight) == []
    flight.u_next[33, 1] += 1e-6
    flight.x_hat[44, 2] = np.nextafter(flight.x_hat[44, 2], 9.0)
    found = wire_findings(path, QUADROTOR, flight)
    assert [(f.record, f.kind) for f in found] == [(33, "wire"), (44, "wire")]
    assert "a command that was sent is not its u_next" in found[0].text
    assert "not the state that was received" in found[1].text


def test_a_second_sender_is_found(tmp_path: Path) -> None:
    path, flight = flown(tmp_path, repeated=(21,))
    found = wire_findings(path, QUADROTOR, flight)
    assert [(f.record, f.kind) for f in found] == [(21, "wire")]


def test_every_record_under_one_stamp_needs_its_command(tmp_path: Path) -> None:
    """Before the first plan stamps may repeat, but what such a record sent acts when it begins."""
    path, flight = flown(tmp_path)
    flight.stamp, flight.begin = np.insert(flight.stamp, 1, flight.stamp[0]), 2
    for name in ("x_hat", "u_next"):
        values = getattr(flight, name)
        setattr(flight, name, np.insert(values, 1, values[0], axis=0))
    assert wire_findings(path, QUADROTOR, flight) == []
    flight.u_next[1, 0] += 1e-6
    found = wire_findings(path, QUADROTOR, flight)
    assert [(f.record, f.kind) for f in found] == [(1, "wire")]


@pytest.mark.parametrize(("begin", "records"), [(22, [21]), (23, [])])
def test_commands_without_an_estimate_count_when_the_first_plan_begins(
    begin: int, records: list[int], tmp_path: Path
) -> None:
    path, flight = flown(tmp_path)
    flight.x_hat[21], flight.begin = np.nan, begin
    assert wire_findings(path, QUADROTOR, flight) == []
    flight.u_next[21, 0] += 1e-6
    found = wire_findings(path, QUADROTOR, flight)
    assert [(f.record, f.kind) for f in found] == [(k, "wire") for k in records]


def test_commands_under_one_stamp_are_those_of_its_records_in_order(tmp_path: Path) -> None:
    """A period without a state is answered under the stamp of the last one."""
    path, flight = flown(tmp_path, repeated=(21,))
    other = codecs(QUADROTOR)[1].input([99.0] * 6, flight.x_hat[21])
    for name, value in (("stamp", flight.stamp[21]), ("x_hat", np.nan), ("u_next", other)):
        setattr(flight, name, np.insert(getattr(flight, name), 22, value, axis=0))
    assert wire_findings(path, QUADROTOR, flight) == []
    flight.u_next[[21, 22]] = flight.u_next[[22, 21]]
    found = wire_findings(path, QUADROTOR, flight)
    assert [(f.record, f.kind) for f in found] == [(21, "wire")]


def test_records_and_messages_without_each_other(tmp_path: Path) -> None:
    path, flight = flown(tmp_path)
    for name in ("stamp", "x_hat", "u_next"):
        setattr(flight, name, np.delete(getattr(flight, name), 50, axis=0))
    found = wire_findings(path, QUADROTOR, flight)
    assert [(f.record, f.text) for f in found] == [(50, "a command was sent without a record")]
    flight.stamp[70:] += 1
    found = wire_findings(path, QUADROTOR, flight)
    assert found[-1].record == 70
    assert found[-1].kind == "unchecked"


def test_two_processes_say_the_same(folder: Path, pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert data.count(b"R") > 0
    one = audit_chain(data, folder)
    two = audit_chain(data, folder, spread=audit.in_processes(2))
    assert two.accepted
    np.testing.assert_array_equal(one.slack, two.slack)
    assert one.tightest == two.tightest


def test_the_key_that_must_have_signed(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ChainWriter(header(folder), KEY).public_key
    (tmp_path / "robot.pub").write_text(own + "\n")
    assert call(run, "--bundle", folder, "--key", own) == 0
    assert call(run, "--bundle", folder, "--key", tmp_path / "robot.pub") == 0
    assert call(run, "--bundle", folder, "--key", "ab" * 32) == 1
    assert f"not by {'ab' * 32}" in capsys.readouterr().out
    assert call(run, "--bundle", folder, "--key", "abc") == 2


def test_a_record_cannot_choose_a_folder(
    run: Path, records: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own bundle beside it, under whatever bounds it likes: only if the user passes it."""
    own = tmp_path / "own"
    write_bundle(own, name=str(own))
    pieces = write(own, records, KEY, edit=lambda h: h | {"bundle": str(own)})
    (run / "flight.chain").write_bytes(b"".join(pieces))
    assert call(run) == 2
    assert "names a path" in capsys.readouterr().err
    assert call(run, "--bundle", own) == 0
    assert f"{own}, hash {header(own)['bundle_hash']}" in capsys.readouterr().out


def test_wrong_use(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path / "nothing") == 2
    assert "no run at" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty") == 2
    assert "found 0; fly again" in capsys.readouterr().err
    (run / "second.chain").write_bytes(b"")
    assert call(run) == 2
    assert "found 2; pass the file itself" in capsys.readouterr().err
    assert call(run / "second.chain") == 2
    assert "names no bundle" in capsys.readouterr().err
    assert call(run / "flight.chain") == 2
    assert "no bundle 'cart_robust'" in capsys.readouterr().err


def test_the_other_bundle_is_named(run: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", {"jitter": 0.5})
    assert call(run, "--bundle", other) == 1
    assert "certificate.json differ" in (run / "audit.html").read_text()


def test_causes_of_interventions(folder: Path, records: list) -> None:
    silent = [replace(records[0], proposal=None, kind=Kind.BACKUP), *records[1:50]]
    report = audit_chain(b"".join(write(folder, silent)), folder)
    rows = audit_text.interventions(report)
    assert "backup 1: no usable proposal" in rows[0].value
    assert any("the proposal's plan breaks V" in row.value for row in rows)
    assert any("outside of the input box" in row.value for row in rows)


def test_a_page_of_nothing_is_a_page() -> None:
    page = build_audit_page(audit_chain(b"", Path("nowhere")))
    assert "NOT ACCEPTED" in page
    assert "the chain holds no record" in page
