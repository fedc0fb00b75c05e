"""The audit: an honest flight is accepted, everything else is refused at the right record."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_robot import GAIN, Cart, D, N, header, sign_folder, theorem, write, write_bundle
from safe_rl_core.audit import Report, audit
from safe_rl_core.audit.flight import check_flight
from safe_rl_core.audit.records import Finding, Theorem, as_arrays, load_theorem
from safe_rl_core.chain import ChainWriter, Kind, StepRecord, header_of
from safe_rl_core.chain_reader import frames
from shipped import load

KEY = bytes(range(32))
STEPS, OUTAGE = 125, (70, 110)
Records = list[StepRecord]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "cart_robust")


@pytest.fixture(scope="module")
def t(folder: Path) -> Theorem:
    return theorem(folder)


@pytest.fixture(scope="module")
def flight(t: Theorem) -> Records:
    """A planner outage longer than a plan: accept … continue … base … accept."""
    return Cart(t, outage=OUTAGE).fly(STEPS)


def judge(folder: Path, records: Records) -> Report:
    return audit(b"".join(write(folder, records, KEY)), folder)


def named(report: Report, record: int, text: str, kind: str = "") -> Finding:
    """The finding of that record with that text; it must be among the first record's."""
    assert not report.accepted
    first = report.findings[0].record
    assert first == record, report.findings
    hits = [f for f in report.findings if f.record == record and text in f.text]
    assert hits, report.findings
    assert kind in ("", hits[0].kind)
    return hits[0]


def test_an_honest_flight_is_accepted(folder: Path, flight: Records) -> None:
    report = judge(folder, flight)
    assert report.findings == []
    assert report.accepted
    assert {r.kind for r in flight} == set(Kind) - {Kind.STOP}
    assert len(report.slack) == sum(r.z_0 is not None for r in flight)
    said = [r.slack for r in flight if r.z_0 is not None]
    np.testing.assert_allclose(report.slack, said, atol=1e-12)


def test_residuals_reach_the_bound_and_stay_below(folder: Path, flight: Records) -> None:
    """The adversary sits on the edge of the assumed box, so the test is tight and never false."""
    for window, ratio in judge(folder, flight).ratios.items():
        assert np.isnan(ratio[:window]).all()
        assert 0.999 < np.nanmax(ratio) <= 1.0


# ------------------------------------------------------- who does not have the key: the bytes

AT = 47


def _flip(pieces: list[bytes], record: int, offset: int) -> list[bytes]:
    """One bit of a record; offset counts from the beginning of its body."""
    data = bytearray(pieces[record])
    data[5 + offset] ^= 1
    return [*pieces[:record], bytes(data), *pieces[record + 1 :]]


BYTES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int, str]] = {
    "sequence changed": (lambda p: _flip(p, AT, 0), AT, "changed"),
    "stamp changed": (lambda p: _flip(p, AT, 8), AT, "changed"),
    "kind changed": (lambda p: _flip(p, AT, 16), AT, "do not fit|changed"),
    "flags changed": (lambda p: _flip(p, AT, 17), AT, "do not fit|changed"),
    "index changed": (lambda p: _flip(p, AT, 18), AT, "changed"),
    "slack changed": (lambda p: _flip(p, AT, 28), AT, "changed"),
    "sigma changed": (lambda p: _flip(p, AT, 36), AT, "changed"),
    "x_hat changed": (lambda p: _flip(p, AT, 40), AT, "changed"),
    "u_in_force changed": (lambda p: _flip(p, AT, 60), AT, "changed"),
    "u_next changed": (lambda p: _flip(p, AT, 68), AT, "changed"),
    "proposal changed": (lambda p: _flip(p, AT, 76), AT, "changed"),
    "plan changed": (lambda p: _flip(p, AT, 120), AT, "changed"),
    "hash changed": (lambda p: _flip(p, AT, len(p[AT]) - 6), AT, "changed"),
    "record left out": (lambda p: p[:AT] + p[AT + 1 :], AT, "changed"),
    "record repeated": (lambda p: p[: AT + 1] + p[AT:], AT + 1, "changed"),
    "records swapped": (lambda p: [*p[:AT], p[AT + 1], p[AT], *p[AT + 2 :]], AT, "changed"),
    "stretch replayed": (lambda p: p[: AT + 1] + p[AT - 5 :], AT + 1, "changed"),
    "cut between records": (lambda p: p[:AT], AT, "truncated"),
    "cut inside of a record": (lambda p: [*p[:AT], p[AT][:100]], AT, "truncated"),
    "closing signature left out": (lambda p: p[:-1], STEPS, "truncated"),
    "signatures left out": (
        lambda p: [b"".join(_framed(f) for f in frames(x) if f.type != ord("S")) for x in p],
        20,
        "unsigned",
    ),
    "something appended": (lambda p: [*p, p[-2]], STEPS, "after the chain was closed"),
    "two flights": (lambda p: p[:-1] + p, STEPS, "two flights"),
    "header left out": (lambda p: p[1:], -1, "no record"),
    "header changed": (lambda p: [p[0].replace(b"cart_", b"kart_")] + p[1:], -1, "changed"),
    "nothing": (lambda p: [], -1, "no record"),
}  # fmt: skip


def _framed(frame: object) -> bytes:
    data = frame.payload + frame.digest
    return bytes([frame.type]) + len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize("name", BYTES)
def test_changed_bytes(name: str, folder: Path, flight: Records) -> None:
    change, record, text = BYTES[name]
    report = audit(b"".join(change(write(folder, flight, KEY))), folder)
    assert not report.accepted
    first = report.findings[0]
    assert first.record == record, report.findings
    assert any(part in f.text for part in text.split("|") for f in report.findings)


def test_a_record_of_another_flight(folder: Path, t: Theorem, flight: Records) -> None:
    pieces, others = write(folder, flight, KEY), write(folder, Cart(t, seed=1).fly(60), KEY)
    pieces[AT] = others[AT]
    named(audit(b"".join(pieces), folder), AT, "changed", "chain")


@pytest.mark.parametrize("start", [0, 41])
def test_hashes_computed_again_without_the_key(start: int, folder: Path, flight: Records) -> None:
    """Whoever gets at the log can chain on, but not sign: found where that stretch begins."""
    honest = ChainWriter(header(folder), KEY)
    data = b"".join(honest.append(r) for r in flight[:start])
    forger = ChainWriter(header(folder), bytes(32))
    forger.records, forger._head, forger._opening = start, honest._head, honest._opening
    data += b"".join(forger.append(r) for r in flight[start:]) + forger.close()
    first = start // 20 * 20
    text = f"records {first} to {first + 19} are not what the key signed"
    named(audit(data, folder), first, text, "chain")


def test_another_key_than_the_trusted_one(folder: Path, flight: Records) -> None:
    pieces = write(folder, flight, bytes(32))
    trusted = ChainWriter(header(folder), KEY).public_key
    named(audit(b"".join(pieces), folder, key=trusted), -1, "not by", "chain")
    own = ChainWriter(header(folder), bytes(32)).public_key
    assert audit(b"".join(pieces), folder, key=own).accepted


# ------------------------------------------------------- who has the key: a shield with a defect


def _next_of(kind: Kind, records: Records, after: int = 0) -> int:
    return next(k for k, r in enumerate(records) if k > after and r.kind == kind)


def _edited(records: Records, k: int, **changes: object) -> Records:
    return [*records[:k], replace(records[k], **changes), *records[k + 1 :]]


def _bit(values: np.ndarray) -> np.ndarray:
    return np.nextafter(values, np.inf)


def _fallback(records: Records, t: Theorem, k: int, index: int, gain: np.ndarray) -> np.ndarray:
    """What a tracker at record k would send that takes element `index` of the plan in hand."""
    start = max(i for i in range(k) if records[i].z_0 is not None)
    z, plan = records[start].z_0, records[start].ubar
    for u in plan[:index]:
        z = t.program("step", z, u)
    ahead = t.program("step", records[k].x_hat, records[k].u_in_force)
    return plan[index] + gain @ (ahead - z)


def _case(make: Callable[[Records, Theorem], tuple[Records, int]], text: str, kind: str):
    return make, text, kind


def _with(k_of: Callable[[Records], int], **change: Callable[[Records, int, Theorem], object]):
    def make(records: Records, t: Theorem) -> tuple[Records, int]:
        k = k_of(records)
        return _edited(records, k, **{n: f(records, k, t) for n, f in change.items()}), k

    return make


def _at(kind: Kind, after: int = 0) -> Callable[[Records], int]:
    return lambda records: _next_of(kind, records, after)


def _wrapped(stamp: int) -> int:
    return (stamp + 2**63) % 2**64 - 2**63


def _plan(r: StepRecord, j: int, value: float) -> np.ndarray:
    ubar = r.ubar.copy()
    ubar[j] = value
    return ubar


CONT = _at(Kind.CONTINUE, OUTAGE[0] + 2)
DEFECTS = {
    "in force: one bit": _case(
        _with(_at(Kind.ACCEPT, 9), u_in_force=lambda r, k, t: _bit(r[k].u_in_force)),
        "in force is not, bit for bit", "shield"),
    "in force: this period's answer": _case(
        _with(_at(Kind.ACCEPT, 9), u_in_force=lambda r, k, t: r[k].u_next),
        "in force is not, bit for bit", "shield"),
    "in force at the start": _case(
        _with(lambda r: 0, u_in_force=lambda r, k, t: t.stop + 1e-12), "in force", "shield"),
    "the clipped proposal is sent, another plan is committed": _case(
        _with(_at(Kind.BLENDED, 5), u_next=lambda r, k, t: np.clip(r[k].proposal, -1, 1)),
        "not the committed plan's first input", "shield"),
    "accepted, but not the proposal": _case(
        _with(_at(Kind.BLENDED, 5), kind=lambda r, k, t: Kind.ACCEPT),
        "u_next is not the proposal", "shield"),
    "an input outside of the box": _case(
        _with(_at(Kind.BASE), u_next=lambda r, k, t: np.array([1.0 + 1e-9])),
        "leaves the input box", "shield"),
    "z_0 of another prediction": _case(
        _with(_at(Kind.ACCEPT, 9), z_0=lambda r, k, t: r[k].z_0 + 2e-9), "z_0 is not", "shield"),
    "z_0 without prediction": _case(
        _with(_at(Kind.ACCEPT, 9), z_0=lambda r, k, t: r[k].x_hat), "z_0 is not", "shield"),
    "a plan of another period": _case(
        _with(_at(Kind.ACCEPT, 9), z_0=lambda r, k, t: r[k - 1].z_0,
              ubar=lambda r, k, t: r[k - 1].ubar), "z_0 is not", "shield"),
    "a plan that leaves the safe set": _case(
        _with(_at(Kind.ACCEPT, 9), ubar=lambda r, k, t: np.full((N + 1, 1), r[k].u_next)),
        "is not VALID", "shield"),
    "one element of a plan beyond tracking": _case(
        _with(_at(Kind.ACCEPT, 9), ubar=lambda r, k, t: _plan(r[k], 9, 1.0)),
        "is not VALID", "shield"),
    "a plan without numbers": _case(
        _with(_at(Kind.ACCEPT, 9), ubar=lambda r, k, t: _plan(r[k], 9, np.nan)),
        "is not VALID", "shield"),
    "a slack that it does not have": _case(
        _with(_at(Kind.ACCEPT, 9), slack=lambda r, k, t: r[k].slack + 2e-6),
        "claims a slack", "shield"),
    "a negative slack": _case(
        _with(_at(Kind.ACCEPT, 9), slack=lambda r, k, t: -1e-9), "claims a slack", "shield"),
    "no slack": _case(
        _with(_at(Kind.ACCEPT, 9), slack=lambda r, k, t: np.nan), "claims a slack", "shield"),
    "a sigma that it does not have": _case(
        _with(lambda r: 20, sigma=lambda r, k, t: 50.0), "times its sigma 50", "shield"),
    "a sigma beyond the certificate's tables": _case(
        _with(lambda r: 21, sigma=lambda r, k, t: 2.1), "sigma is not in 0 to 2", "shield"),
    "an infinite sigma": _case(
        _with(lambda r: 21, sigma=lambda r, k, t: np.inf), "sigma is not in 0 to 2", "shield"),
    "a negative sigma": _case(
        _with(lambda r: 20, sigma=lambda r, k, t: -1.0), "sigma is not in 0 to 2", "shield"),
    "the wrong element of the plan": _case(
        _with(CONT, u_next=lambda r, k, t: _fallback(r, t, k, r[k].index + 1, GAIN)),
        "not what the plan in hand", "shield"),
    "the wrong element, and said so": _case(
        _with(CONT, u_next=lambda r, k, t: _fallback(r, t, k, r[k].index + 1, GAIN),
              index=lambda r, k, t: r[k].index + 1), "does not go on by one", "shield"),
    "an element replayed": _case(
        _with(CONT, u_next=lambda r, k, t: _fallback(r, t, k, r[k].index - 1, GAIN),
              index=lambda r, k, t: r[k].index - 1), "does not go on by one", "shield"),
    "another tracking gain": _case(
        _with(CONT, u_next=lambda r, k, t: _fallback(r, t, k, r[k].index, 1.02 * GAIN)),
        "not what the plan in hand", "shield"),
    "no tracking": _case(
        _with(CONT, u_next=lambda r, k, t: _fallback(r, t, k, r[k].index, 0 * GAIN)),
        "not what the plan in hand", "shield"),
    "base controller before the end": _case(
        _with(CONT, kind=lambda r, k, t: Kind.BASE), "base before it", "shield"),
    "continued after the end": _case(
        _with(_at(Kind.BASE), kind=lambda r, k, t: Kind.CONTINUE), "beyond the plan's end",
        "shield"),
    "another base gain": _case(
        _with(_at(Kind.BASE), u_next=lambda r, k, t: 1.02 * r[k].u_next),
        "not what the plan in hand", "shield"),
    "fallback with a plan": _case(
        _with(_at(Kind.ACCEPT, 9), kind=lambda r, k, t: Kind.CONTINUE),
        "kind and the presence of a plan", "shield"),
    "success without a plan": _case(
        _with(CONT, kind=lambda r, k, t: Kind.PROJECTED), "kind and the presence of a plan",
        "shield"),
    "stop": _case(
        _with(CONT, kind=lambda r, k, t: Kind.STOP, u_next=lambda r, k, t: t.stop),
        "which no plan covers", "shield"),
    "stop, but something else": _case(
        _with(CONT, kind=lambda r, k, t: Kind.STOP), "it says stop, but", "shield"),
    "success without a plan at the start": _case(
        _with(lambda r: 0, z_0=lambda r, k, t: None, ubar=lambda r, k, t: None),
        "kind and the presence of a plan", "shield"),
    "a plan continued that there never was": _case(
        _with(lambda r: 0, kind=lambda r, k, t: Kind.CONTINUE, z_0=lambda r, k, t: None,
              ubar=lambda r, k, t: None), "none was committed", "shield"),
    "a stamp that is late": _case(
        _with(lambda r: 33, stamp_ns=lambda r, k, t: r[k].stamp_ns + 110_000),
        "after the one before", "premise"),
    "a stamp twice": _case(
        _with(lambda r: 33, stamp_ns=lambda r, k, t: r[k - 1].stamp_ns), "after the one before",
        "premise"),
    "stamps from the end of numbers to their beginning": _case(
        lambda r, t: ([replace(x, stamp_ns=_wrapped(2**63 - r[33].stamp_ns + x.stamp_ns))
                       for x in r], 33), "after the one before", "premise"),
    "no estimate": _case(
        _with(CONT, x_hat=lambda r, k, t: None), "no state estimate", "premise"),
    "an estimate that is no number": _case(
        _with(CONT, x_hat=lambda r, k, t: np.array([np.nan, 0.0])), "no state estimate",
        "premise"),
    "an estimate that repeats": _case(
        _with(CONT, x_hat=lambda r, k, t: r[k - 1].x_hat), "repeats bit for bit", "premise"),
    "an estimate that jumps": _case(
        _with(CONT, x_hat=lambda r, k, t: r[k].x_hat + [0.01, 0.0]), "residual over 1", "premise"),
    "an estimate outside of the domain": _case(
        _with(lambda r: STEPS - 2, x_hat=lambda r, k, t: np.array([0.0, 9.0])),
        "residual over 1", "premise"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_a_shield_with_a_defect(name: str, folder: Path, t: Theorem, flight: Records) -> None:
    make, text, kind = DEFECTS[name]
    records, k = make(flight, t)
    named(judge(folder, records), k, text, kind)


def test_claims_begin_with_the_first_plan(folder: Path, t: Theorem, flight: Records) -> None:
    """Periods without a plan at the start, even with a lost estimate, spoil nothing after them."""
    first = replace(flight[0], kind=Kind.BACKUP, x_hat=None, z_0=None, ubar=None, index=0)
    report = judge(folder, [first, *flight[1:]])
    assert report.accepted and report.flight.begin == 1
    none = [replace(r, kind=Kind.BACKUP, z_0=None, ubar=None) for r in flight]
    report = judge(folder, none)
    assert not report.accepted
    assert "no plan was ever committed" in report.findings[0].text


@pytest.mark.parametrize(("delay", "first"), [(0, 4), (1, 4), (2, 3), (3, 2)])
def test_no_period_is_missing_while_the_first_plan_waits(
    delay: int, first: int, tmp_path: Path
) -> None:
    """A plan of record 4 is predicted with the inputs of the records before it, if these act."""
    other = write_bundle(tmp_path / "b", {"delay_steps": delay}, delay_steps=delay)
    rest = StepRecord(0, Kind.BACKUP, np.zeros(1), np.zeros(1), x_hat=np.zeros(2))
    plan = replace(rest, slack=0.0, z_0=np.zeros(2), ubar=np.zeros((N + 1, 1)))
    for gap in range(1, 5):
        stamps = [round((k + (k >= gap)) * D * 1e9) for k in range(5)]
        records = [
            replace(r, stamp_ns=s) for r, s in zip([rest] * 4 + [plan], stamps, strict=True)
        ]
        data = b"".join(write(other, records, edit=lambda h: h | {"delay_steps": delay}))
        found = audit(data, other).findings
        assert [(f.record, f.kind) for f in found] == [(gap, "premise")] * (gap >= first), found


@pytest.mark.parametrize(("size", "found"), [(1.0, False), (1.0 + 5e-8, False), (1.005, True)])
def test_an_estimate_must_be_a_state(size: float, found: bool) -> None:
    """A quaternion of another length is no error by the chart, and yet spoils the prediction."""
    bundle, z = load("quadrotor_robust"), np.array([0, 0, 1.5, 0, 0, 0, 0.8, 0.6, 0, 0])
    t, x = load_theorem(bundle.path, header_of(bundle, "simulated")), z.copy()
    x[6:] *= size
    assert np.abs(t.program("difference", x, z)).max() < 1e-12
    ahead = t.program("step", x, t.stop)
    plan = np.repeat(t.stop[None], t.horizon + 1, 0)
    record = StepRecord(0, Kind.BACKUP, t.stop, t.stop, x_hat=x, z_0=ahead, ubar=plan)
    flight = as_arrays([record], header_of(bundle, "simulated"))
    texts = [f.text for f in check_flight(t, flight)]
    assert [("is no state" in text) for text in texts] == [True] * found


def test_the_clipped_proposal_under_the_name_of_success(folder: Path, t: Theorem) -> None:
    """A projection that failed, its clipped proposal sent, its plan committed as if it held."""
    cart = Cart(t, seed=3, clip_from=20)
    records = cart.fly(60)
    lies = [k for k, r in enumerate(records) if r.slack == 0.01]
    finding = named(judge(folder, records), lies[0], "is not VALID", "shield")
    assert finding.record >= 20


def test_a_wind_beyond_the_bound_breaks_the_premise_alone(folder: Path, t: Theorem) -> None:
    report = judge(folder, Cart(t, push=4.0).fly(60))
    assert not report.accepted
    assert {f.kind for f in report.findings} == {"premise"}


def test_a_frozen_estimate_breaks_the_premise_alone(folder: Path, t: Theorem) -> None:
    report = judge(folder, Cart(t, frozen=(30, 33)).fly(40))
    assert {f.kind for f in report.findings} == {"premise"}
    assert any("repeats bit for bit" in f.text and f.record == 30 for f in report.findings)


# ------------------------------------------------------- another bundle than the one that flew


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def _flip_table(folder: Path) -> None:
    data = bytearray((folder / "certificate.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "certificate.npz").write_bytes(bytes(data))


BUNDLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "gain": (_replace("certificate.json", "-1.6", "-1.7"), "certificate.json"),
    "level": (_replace("certificate.json", '"base_contraction": 0.93', '"base_contraction": 0.92'),
              "certificate.json"),
    "bound": (_replace("certificate.json", "0.0002", "0.0001"), "certificate.json"),
    "plant": (_replace("program.txt", "const 0.1", "const 0.11"), "program.txt"),
    "one byte of a table": (_flip_table, "certificate.npz"),
    "horizon": (_replace("bundle.yaml", f"steps: {N}", "steps: 10"), "bundle.yaml"),
    "box": (_replace("bundle.yaml", "high: 1.0", "high: 2.0"), "bundle.yaml"),
    "file added": (lambda f: (f / "more.txt").write_text("x"), "more.txt"),
    "file gone": (lambda f: (f / "certificate.npz").unlink(), "certificate.npz"),
}  # fmt: skip


@pytest.mark.parametrize("signed", [False, True], ids=["as it is", "signed again"])
@pytest.mark.parametrize("name", BUNDLES)
def test_another_bundle(
    name: str, signed: bool, folder: Path, flight: Records, tmp_path: Path
) -> None:
    change, file = BUNDLES[name]
    other = write_bundle(tmp_path / "cart_robust")
    data = b"".join(write(other, flight[:20], KEY))
    assert audit(data, other).accepted
    change(other)
    if signed:
        sign_folder(other)
    finding = named(audit(data, other), -1, "is not the bundle that flew", "unchecked")
    assert file in finding.text


def test_a_header_cannot_lend_a_known_hash_to_another_bundle(
    flight: Records, tmp_path: Path
) -> None:
    """A certificate of one's own under the hash of a bundle that somebody trusts."""
    other = write_bundle(tmp_path / "b")
    known = header(other)
    change, file = BUNDLES["bound"]
    change(other)
    own = known["files"] | {file: hashlib.sha256((other / file).read_bytes()).hexdigest()}
    data = b"".join(write(other, flight[:20], edit=lambda h: h | {"files": own}))
    report = audit(data, other)
    assert report.header["bundle_hash"] == known["bundle_hash"]
    assert file in named(report, -1, "is not the bundle that flew", "unchecked").text


def test_a_header_that_names_another_bundle(folder: Path, flight: Records) -> None:
    pieces = write(folder, flight[:3], edit=lambda h: h | {"bundle": "tested_robust"})
    named(audit(b"".join(pieces), folder), -1, "disagree on the bundle's name", "unchecked")


def test_a_certificate_of_another_program(flight: Records, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "b", {"program": "00" * 32})
    named(judge(other, flight[:3]), -1, "disagree on program", "unchecked")


@pytest.mark.parametrize(
    "changes", [{"period": 0.2}, {"delay_steps": 0}, {"input_high": [2.0]}, {"base_gain": "x"}]
)
def test_a_certificate_that_does_not_fit(
    changes: dict[str, object], flight: Records, tmp_path: Path
) -> None:
    report = judge(write_bundle(tmp_path / "b", changes), flight)
    assert not report.accepted
    assert report.findings[0].record == -1


@pytest.mark.parametrize(
    "changes",
    [{"base_contraction": 0.97}, {"base_estimate_norm": np.nan}, {"disturbance": [0.0, -1e-3]},
     {"prediction_error": [np.nan, 1.0]}, {"jitter": np.inf}],
)  # fmt: skip
def test_a_certificate_that_is_none_at_first_sight(
    changes: dict[str, object], flight: Records, tmp_path: Path
) -> None:
    report = judge(write_bundle(tmp_path / "b", changes), flight[:3])
    named(report, -1, "no certificate", "unchecked")


def test_a_nominal_bundle_proves_nothing(flight: Records, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", certificate="none (nominal)")
    (folder / "certificate.json").unlink()
    (folder / "certificate.npz").unlink()
    sign_folder(folder)
    named(judge(folder, flight[:3]), -1, "is nominal", "unchecked")


def test_a_flight_without_records_is_not_accepted(folder: Path) -> None:
    named(judge(folder, []), -1, "holds no record", "unchecked")


# ------------------------------------------------------- what the audit is made of


PROBE = """
import sys
from pathlib import Path
from safe_rl_core.audit import audit
report = audit(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]))
assert report.accepted, report.findings
print(*[name for name in sys.modules if name.startswith("safe_rl")])
print(*{"osqp", "onnxruntime", "torch", "rclpy", "scipy"} & set(sys.modules))
"""


def test_it_imports_nothing_that_flies(folder: Path, flight: Records, tmp_path: Path) -> None:
    chain = tmp_path / "f.chain"
    chain.write_bytes(b"".join(write(folder, flight, KEY)))
    command = [sys.executable, "-c", PROBE, str(chain), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if not name.startswith("safe_rl_core.audit")}
    shared = ("errors", "program", "chain", "chain_reader")
    assert loaded == {"safe_rl_core", *(f"safe_rl_core.{name}" for name in shared)}
