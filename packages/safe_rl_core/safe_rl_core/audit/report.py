"""The audit as a whole: what is checked, in which order, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.audit import flight as flights
from safe_rl_core.audit import plans, records
from safe_rl_core.audit.records import Array, AuditError, Finding, Flight, Theorem
from safe_rl_core.chain_reader import read_chain
from safe_rl_core.errors import SafeRLError

#: A slack this close to zero is decided in ball arithmetic; the shield may claim this much more.
CLOSE = 1e-6
#: Plans per piece of work; one committed plan in so many has its sigma derived again.
BLOCK, SIGMA_EVERY = 64, 10
#: How a plan was decided.
REFUSED, IN_FLOATS, IN_BALLS, OPEN = range(4)

#: z_0 (P, n), ubar (P, N+1, m), scale (P,) of some plans, and `judged` of them.
Piece = tuple[Array, Array, Array]
Judged = tuple[Array, NDArray[np.int64], NDArray[np.int64]]
Spread = Callable[[Theorem, list[Piece]], Iterable[Judged]]


@dataclass
class Report:
    """`slack` (P,): of each committed plan, as derived here; `tightest`: which inequality has it.

    `ratios`: residual / bound by window, per record; `proved`: plans decided in ball arithmetic.
    """

    findings: list[Finding] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=dict)
    flight: Flight | None = None
    theorem: Theorem | None = None
    slack: Array = field(default_factory=lambda: np.zeros(0))
    tightest: list[str] = field(default_factory=list)
    ratios: dict[int, Array] = field(default_factory=dict)
    proved: int = 0

    @property
    def accepted(self) -> bool:
        """Everything was checked and nothing was found."""
        return not self.findings and len(self.slack) > 0


def in_line(t: Theorem, pieces: list[Piece]) -> Iterator[Judged]:
    """The pieces one after the other; a caller with more processes passes its own."""
    return (judged(t, *piece) for piece in pieces)


def audit(data: bytes, folder: Path, key: str | None = None, spread: Spread = in_line) -> Report:
    """Derive everything in the chain `data` again, against the bundle in `folder`.

    `key`: hex of the public key that must have signed; None believes the header.
    """
    report = Report()
    try:
        chain = read_chain(data)
        report.header = chain.header
        if chain.defect:
            report.findings.append(Finding(chain.bad, "chain", chain.defect))
        if key not in (None, signer := chain.header.get("public_key")):
            report.findings.append(Finding(-1, "chain", f"signed by {signer}, not by {key}"))
        if not chain.records:
            raise AuditError("the chain holds no record")
        report.theorem = records.load_theorem(folder, report.header)
        report.flight = records.as_arrays(chain.records, report.header)
        with np.errstate(all="ignore"):
            report.findings += flights.check_flight(report.theorem, report.flight)
            report.ratios = flights.residuals(report.theorem, report.flight)
            report.findings += flights.residual_findings(report.flight, report.ratios)
            _check_plans(report, spread)
    except (SafeRLError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        name = "" if isinstance(error, SafeRLError | OSError) else f"{type(error).__name__}: "
        report.findings.append(Finding(-1, "unchecked", f"{name}{error}"))
    report.findings.sort()
    return report


def _check_plans(report: Report, spread: Spread) -> None:
    t, f, count = report.theorem, report.flight, len(report.flight.committed)
    if not count:
        report.findings.append(Finding(0, "shield", "no plan was ever committed (A5)"))
        return
    told = np.flatnonzero(np.isfinite(f.sigma) & (f.plan >= 0))[::SIGMA_EVERY]
    plan = np.concatenate((np.arange(count), f.plan[told]))
    scale = np.concatenate((np.ones(count), f.sigma[told]))
    parts = (plan[i : i + BLOCK] for i in range(0, len(plan), BLOCK))
    scales = np.split(scale, range(BLOCK, len(scale), BLOCK))
    pieces = [(f.z_0[p], f.ubar[p], s) for p, s in zip(parts, scales, strict=True)]
    least, where, how = (np.concatenate(x) for x in zip(*spread(t, pieces), strict=True))
    for k in told[~(least[count:] >= -CLOSE)][:1]:
        text = f"with all bounds times its sigma {f.sigma[k]:.4g} the plan is not VALID"
        report.findings.append(Finding(int(k), "shield", text))
    report.slack, how = least[:count], how[:count]
    report.tightest = [plans.label(t, int(i)) for i in where[:count]]
    report.proved = int(np.sum(how == IN_BALLS))
    said = f.slack[f.committed]
    for kind, bad, text in (
        ("shield", how == REFUSED, "its plan is not VALID: {0}, {1:.3g}"),
        ("unchecked", how == OPEN, "its plan is too close to zero to tell ({1:.2g} in {0}): "
         "install python-flint"),
        ("shield", ~((said >= 0.0) & (said <= report.slack + CLOSE)), "it claims a slack of "
         "{2:.6g}; derived: {1:.6g}"),
    ):  # fmt: skip
        for p in np.flatnonzero(bad)[:1]:
            text = text.format(report.tightest[p], report.slack[p], said[p])
            report.findings.append(Finding(int(f.committed[p]), kind, text))


def judged(t: Theorem, z_0: Array, ubar: Array, scale: Array) -> Judged:
    """Least slack of each plan, which inequality has it, and how it was decided.

    The first input lies in the box or not: a comparison of two floats, without rounding.
    """
    with np.errstate(all="ignore"):
        found = plans.slacks(t, z_0, ubar, scale)
    where, least, m = found.argmin(1), found.min(1), len(t.low)
    first = found[:, (t.horizon + 1) * len(t.rows) :][:, : 2 * m]
    exact = first.min(1) >= 0.0
    first[:] = np.inf
    how = np.where(least >= 0.0, IN_FLOATS, REFUSED)
    close = (np.abs(found.min(1)) < CLOSE) & exact & (scale == 1.0)
    for p in np.flatnonzero(close):
        tight = np.flatnonzero(np.abs(found[p]) < CLOSE)
        how[p] = _decided(t, z_0[p], ubar[p], max(plans.node(t, int(i)) for i in tight))
    return least, where, how


def _decided(t: Theorem, z_0: Array, ubar: Array, last: int) -> int:
    try:
        from safe_rl_core.audit.exact import holds
    except ImportError:
        return OPEN
    return IN_BALLS if holds(t, z_0, ubar, last) else REFUSED
