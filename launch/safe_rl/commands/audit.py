"""`safe-rl audit`: derive a flight's per-step certificate again, and say what it proves."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_rl_core.errors import SafeRLError
from safe_rl_core.progress import Progress

from safe_rl.commands.common import add_parser, whole

if TYPE_CHECKING:
    from safe_rl_core.audit import Report
    from safe_rl_core.audit.records import Theorem
    from safe_rl_core.audit.report import Judged, Piece

DESCRIPTION = """\
Check the per-step certificate of a flight in a program of its own, which uses neither shield,
kernel nor solver: hash chain and signatures, every input, every committed plan, the fallbacks,
whether the estimates contradict the assumptions, and, in a recording, whether the states received
and the commands sent are those of the record. Says what acceptance proves, names the first bad
record, and writes a page to file.

  safe-rl audit runs/20260101-120000-quadrotor
  safe-rl audit flight.mcap --bundle models/quadrotor_robust --key robot.pub

Exit code: 0 only if everything was checked and nothing was found; 1 on any doubt; 2 wrong use.
"""
SUFFIXES = (".mcap", ".chain")
PAGE = "audit.html"


def add_command(subparsers: Any) -> None:
    """Add `audit` to the command line."""
    parser = add_parser(subparsers, "audit", "check the certificate of a flight", DESCRIPTION)
    parser.add_argument(
        "flight", type=Path, help="a run's folder, an .mcap file, or a chain's bytes"
    )
    parser.add_argument(
        "--bundle", metavar="B", help="the bundle that flew; default: the one the record names"
    )
    parser.add_argument(
        "--key", help="public key that must have signed: 64 hex digits, or a file that holds them"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help=f"the page; default: {PAGE} beside the record"
    )
    parser.add_argument("--jobs", type=whole(1), default=2, help="processes (default: 2)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Audit, print, write the page."""
    from safe_rl_core.audit import audit
    from safe_rl_core.chain_reader import read_header

    from safe_rl.report.audit_page import build_audit_page

    path = find_record(args.flight)
    data = recorded_chain(path) if path.suffix == ".mcap" else path.read_bytes()
    folder = _bundle_folder(args.bundle, str(read_header(data).get("bundle", "")))
    begin = time.monotonic()
    report = audit(data, folder, key=_key(args.key), spread=in_processes(args.jobs))
    if path.suffix == ".mcap":
        compare_wire(report, path, folder)
    duration = time.monotonic() - begin
    _print(report, folder, duration)
    page = args.html or path.parent / PAGE
    page.write_text(build_audit_page(report), encoding="utf-8")
    print(f"  page  {page}")
    return 0 if report.accepted else 1


def find_record(run: Path) -> Path:
    """The recording of a run: the file itself, or the only one in the folder."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise SafeRLError(f"no run at {run}: expected a folder, an .mcap file or a chain")
    found = sorted(path for path in run.rglob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        raise SafeRLError(
            f"expected one {' or '.join(SUFFIXES)} file in {run}, found {len(found)}; "
            + ("pass the file itself" if found else "fly again with a robust bundle")
        )
    return found[0]


def recorded_chain(path: Path) -> bytes:
    """The chain in a recording: the messages of the certificate's topic, in the file's order."""
    import struct

    from mcap.exceptions import McapError
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory
    from safe_rl_ros.topics import RECORD

    try:
        with path.open("rb") as stream:
            reader = make_reader(stream, decoder_factories=[DecoderFactory()])
            summary = reader.get_summary()
            channels = summary.channels.values() if summary else ()
            wanted = [c.topic for c in channels if c.topic.endswith(RECORD)]
            found = reader.iter_decoded_messages(wanted or [RECORD], log_time_order=False)
            pieces = [bytes(message.data) for *_, message in found]
    except (McapError, OSError, EOFError, ValueError, struct.error) as error:
        raise SafeRLError(f"{path} cannot be read as MCAP: {error}") from error
    if len(set(wanted)) > 1:
        raise SafeRLError(f"{path} holds certificates of several robots: {', '.join(wanted)}")
    if not pieces:
        raise SafeRLError(
            f"{path} holds no message on {RECORD}: only a shield with a robust bundle writes "
            "per-step certificates"
        )
    return b"".join(pieces)


def compare_wire(report: Report, path: Path, folder: Path) -> None:
    """Add what the recording's own states and commands say against the record."""
    from safe_rl_core.bundle import Bundle

    from safe_rl.report.wire import wire_findings

    if report.flight is not None:
        found = wire_findings(path, Bundle.load(folder), report.flight)
        report.findings = sorted([*report.findings, *found])


def in_processes(jobs: int) -> Callable[[Theorem, list[Piece]], Iterator[Judged]]:
    """How the plans are spread over processes, with a line that says how far it is."""

    def spread(theorem: Theorem, pieces: list[Piece]) -> Iterator[Judged]:
        progress = Progress("blocks of plans checked", len(pieces))
        for result in _results(theorem, pieces, jobs):
            progress.advance()
            yield result
        progress.close()

    return spread


def _results(theorem: Theorem, pieces: list[Piece], jobs: int) -> Iterator[Judged]:
    _start_worker(theorem)
    if jobs == 1 or len(pieces) < 2:
        yield from map(_judge, pieces)
        return
    # A fork has everything loaded already, but must not be taken while other threads run.
    forks = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if forks else "spawn")
    with context.Pool(min(jobs, len(pieces)), _start_worker, (theorem,)) as pool:
        yield from pool.imap(_judge, pieces)


_theorem: Theorem | None = None  # of a worker process


def _start_worker(theorem: Theorem) -> None:
    global _theorem
    _theorem = theorem


def _judge(piece: Piece) -> Judged:
    from safe_rl_core.audit.report import judged

    return judged(_theorem, *piece)


def _bundle_folder(given: str | None, named: str) -> Path:
    """The bundle given, or the one that the record names, but never a folder of its choice."""
    from safe_rl_core.bundle import find

    if not given and not named:
        raise SafeRLError("the record names no bundle: pass the one that flew with --bundle")
    if not given and Path(named).name != named:
        raise SafeRLError(f"the record names a path, '{named}', as its bundle: pass the one that "
                          "flew with --bundle")  # fmt: skip
    return find(given or named)


def _key(text: str | None) -> str | None:
    if text is None:
        return None
    path = Path(text)
    digits = (path.read_text() if path.is_file() else text).strip().lower()
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise SafeRLError(f"--key: expected 64 hex digits or a file that holds them, got '{text}'")
    return digits


def _print(report: Report, folder: Path, duration: float) -> None:
    from safe_rl.report import audit_text as words
    from safe_rl.report.text import emphasise, print_table

    print(f"\n{emphasise(words.word(report), report.accepted)}: {words.conclusion(report)}")
    for finding in report.findings:
        where = words.place(finding.record)
        print(f"  - {where} ({words.MEANINGS[finding.kind]}): {finding.text}")
    for title, rows in (
        ("assumed", words.assumptions(report)),
        ("derived again", words.checked(report)),
    ):
        if rows:
            print(f"\n{title}")
            print_table(rows)
    if report.theorem is not None:
        print(f"\n  bundle  {folder}, hash {report.header['bundle_hash']}")
    if report.flight is not None and report.theorem is not None:
        flown = len(report.flight.kind) * report.theorem.period
        print(
            f"\n  {duration:.1f} s for {flown:.1f} s of flight, {flown / duration:.1f}x real time"
        )
