"""What an audit says, in words: conclusion, assumptions with their numbers, findings, causes."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.audit import Report
from safe_rl_core.audit.plans import EPS, label, node, slacks
from safe_rl_core.audit.report import CLOSE
from safe_rl_core.chain import Kind

from safe_rl.report.text import Row, quantity

Array = NDArray[np.float64]

MEANINGS = {
    "chain": "the bytes of the record",
    "wire": "what was sent, against the record",
    "shield": "what the shield did",
    "premise": "an assumption is contradicted",
    "unchecked": "could not be derived again",
}
#: Longest interventions whose cause is looked for.
CAUSES = 10


def word(report: Report) -> str:
    """The result in two words."""
    return "ACCEPTED" if report.accepted else "NOT ACCEPTED"


def conclusion(report: Report) -> str:
    """What follows from the audit."""
    if report.accepted:
        return (
            "Every real motion that is compatible with these records and with assumptions A1 to "
            "A6 stayed in the safe set, between the samples too, from the moment the first plan "
            f"took effect{_begin(report)}, and would have stayed there for ever had the policy "
            "died at the last record. Not proved: that the assumptions held (no record "
            "contradicts them, which is all that records can show), and that the log is of this "
            "vehicle."
        )
    if not report.findings:
        return "No plan was committed, so nothing was proved."
    first = report.findings[0]
    return (
        f"First: {place(first.record)}: {first.text}. Nothing is guaranteed from there on, and "
        "nothing at all where the finding concerns header, bundle or signatures."
    )


def _begin(report: Report) -> str:
    begin = report.flight.begin
    return f" (committed in record {begin}; nothing is claimed before)" if begin else ""


def place(record: int) -> str:
    """Where a finding belongs."""
    return "header or bundle" if record < 0 else f"record {record}"


def assumptions(report: Report) -> list[Row]:
    """A1 to A6 with the bundle's numbers, and whose word the record is."""
    t = report.theorem
    if t is None:
        return []
    c = t.c

    def bounds(values: Array) -> str:
        shared: dict[str, list[str]] = {}
        for name, value, unit in zip(c.error_names, values, c.error_units, strict=True):
            shared.setdefault(f"{value:.3g} {unit}", []).append(str(name))
        return ", ".join(f"{' '.join(names)} {bound}" for bound, names in shared.items())

    parts = (c.base_contraction, c.base_disturbance_norm, c.base_estimate_norm)
    base = " + ".join(f"{part:.4f}" for part in parts)
    return [
        Row("A1 model", f"after each period of {t.period:g} s the robot is where the model puts "
            f"it, to within {bounds(c.disturbance)}"),
        Row("A2 estimate", f"each estimate is right to within {bounds(c.estimate_error)}"),
        Row("A3 timing", f"an action takes effect {_periods(t.delay)} after the stamp of its "
            f"estimate, to within {c.jitter:g} s, and is held for one period"),
        Row("A4 certificate", f"the base set is invariant ({base} = {sum(parts):.4f} of at most 1)"
            " and the derived bounds hold; proved apart from any flight by safe-rl verify"),
        Row("A5 start", "claims begin with the first committed plan (checked); nothing is claimed "
            "before it takes effect"),
        Row("A6 numbers", f"each inequality keeps {EPS:g} for rounding; {report.proved} plans "
            f"closer than {CLOSE:g} to zero were decided in ball arithmetic"),
        Row("the record", f"tells what the robot received and sent, and the private half of key "
            f"{report.header.get('public_key', '?')} was the robot's alone"),
    ]  # fmt: skip


def _periods(count: int) -> str:
    return "1 period" if count == 1 else f"{count} periods"


def checked(report: Report) -> list[Row]:
    """What was derived again, in numbers."""
    f, t = report.flight, report.theorem
    if f is None or t is None:
        return []
    count = len(f.kind)
    rows = [
        Row("records", f"{count}, {count * t.period:.2f} s, clock: {report.header['clock']}"),
        Row("answers", " · ".join(f"{kind.name.lower()} {n}" for kind, n in kinds(report))),
        Row("plans", f"{len(report.slack)} committed, each of {t.horizon} periods"),
    ]
    if len(report.slack):
        worst = int(np.argmin(report.slack))
        where = f"{report.tightest[worst]}, record {f.committed[worst]}"
        rows.append(Row("least slack", f"{report.slack[worst]:.3g} ({where})"))
    if np.isfinite(f.sigma).any():
        rows.append(Row("least sigma", f"{np.nanmin(f.sigma):.3g} times the assumed bounds"))
    for window, ratio in report.ratios.items():
        tested = int(np.isfinite(ratio).sum())
        most = quantity(np.nanmax(ratio)) if tested else "none"
        possible = max(count - window, 0)
        text = f"largest {most} of the bound; {tested} of {possible} tested"
        rows.append(Row(f"residual over {_periods(window)}", text))
    return rows


def kinds(report: Report) -> list[tuple[Kind, int]]:
    """How often each kind of answer was given."""
    counted = Counter(report.flight.kind.tolist())
    return [(kind, counted[kind]) for kind in Kind if counted[kind]]


def interventions(report: Report) -> list[Row]:
    """The longest stretches in which another input than the proposal flew, and why."""
    f, t = report.flight, report.theorem
    if f is None or t is None:
        return []
    changed = np.flatnonzero(f.kind != Kind.ACCEPT)
    stretches = [s for s in np.split(changed, np.flatnonzero(np.diff(changed) > 1) + 1) if len(s)]
    longest = sorted(sorted(stretches, key=len, reverse=True)[:CAUSES], key=lambda s: s[0])
    rows = []
    for stretch in longest:
        first, count = int(stretch[0]), len(stretch)
        names = Counter(Kind(k).name.lower() for k in f.kind[stretch].tolist())
        what = ", ".join(f"{name} {n}" for name, n in names.items())
        rows.append(Row(f"{first * t.period:.2f} s, {count}x", f"{what}: {_cause(report, first)}"))
    if len(stretches) > len(longest):
        rows.append(Row("and", f"{len(stretches) - len(longest)} shorter ones"))
    return rows


def _cause(report: Report, record: int) -> str:
    """Why the proposal of one record did not fly: the plan it would have begun is judged."""
    f, t = report.flight, report.theorem
    proposal = f.proposal[record]
    if not np.isfinite(f.x_hat[record]).all():
        return "no state estimate"
    if not np.isfinite(proposal).all():
        return "no usable proposal"
    outside = ", proposal outside of the input box" if np.any(
        (proposal < t.low) | (proposal > t.high)) else ""  # fmt: skip
    sent = np.concatenate((np.repeat(t.stop[None], t.delay, 0), f.u_next))
    z = f.x_hat[record, None]
    for u in sent[record : record + t.delay]:
        z = t.program("step", z, u[None])
    inputs, at = [np.clip(proposal, t.low, t.high)[None]], z
    for _ in range(t.horizon):
        at = t.program("step", at, inputs[-1])
        inputs.append(t.program("backup_policy", at))
    with np.errstate(all="ignore"):
        found = slacks(t, z, np.stack(inputs, 1), np.ones(1))[0]
    failing = np.flatnonzero(found < 0.0)
    if not len(failing):
        return f"the clipped proposal's plan holds{outside}"
    first = min(failing.tolist(), key=lambda i: (node(t, i), found[i]))
    by = f" by {-found[first]:.3g}" if np.isfinite(found[first]) else ""
    return f"the proposal's plan breaks {label(t, first)}{by}{outside}"
