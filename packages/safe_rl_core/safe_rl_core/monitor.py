"""Premise monitor: do the estimates contradict the assumptions A1 to A3 of the certificate?

Every period, for each window of M periods, the model is replayed from the estimate M periods ago
with the inputs that were in force (the answers are defined in findings.py):

    zeta_0 = x_hat_{k-M},   zeta_{j+1} = F(zeta_j, u_{k-M+j}),   r = difference(x_hat_k, zeta_M).

If A1 (disturbance), A2 (estimate error) and A3 (timing) hold, then the true state's error
e = difference(x_k, zeta_M) lies in the open-loop tube E_M that starts at `estimate_error`, and
x_k = retract(x_hat_k, d) with |d| <= estimate_error, so e = shifted(r, d), and by Taylor's theorem

    |r_i| <= E_M,i + estimate_error_i + turn_i(r) + EPS,
    turn_i(r) = sum |d2 shifted_i / de_a dd_b| |r_a| estimate_error_b + the same in (d, d) / 2.

`turn` is what the box of estimate errors gains when it is seen from a frame that r has turned; it
is zero for a chart of plain differences. (The certificate's `tracking_error` bounds the same for
every e, and is used where it is smaller or r is beyond the reach of the derivatives.)

A residual above the bound is therefore a proof that an assumption failed within those M periods,
and there is no false alarm. The converse is not true: what hides inside the bound, or is not
excited, is not seen. Ratios near 1 are a hint, no more.

One window of 1 period sees jumps and timing faults, longer ones see what adds up: wind, bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.certificate import EPS, Certificate
from safe_rl_core.errors import CertificateError, ModelError
from safe_rl_core.findings import Fault, Finding, MonitorResult, Status
from safe_rl_core.kernel.robust import RobustKernel

Array = NDArray[np.float64]

#: Periods per residual test, ascending.
WINDOWS = (1, 5, 20)
#: Share of the bound above which a residual is worth a warning.
SOFT = 0.8
#: Two stamps further than this from one period apart (share of it) have a period between them.
STAMP_TOLERANCE = 0.5


@dataclass
class _Period:
    """What one update has found so far."""

    ratios: Array
    worst: float = math.nan
    worst_window: int = 0
    worst_channel: str = "none"
    finding: Finding | None = None
    notes: list[str] = field(default_factory=list)


class OpenTube(Protocol):
    """What the monitor needs of a kernel."""

    def open_tube(self, x: Array, inputs: Array, start: Array) -> Array:
        """Bound of the error (k,) after inputs (M, m) from x (n,), at first within start (k,)."""
        ...


class PremiseMonitor:
    """Call `update` once per control period. One instance serves one robot and thread.

    `kernel`: by default one of its own, made from the bundle.
    """

    def __init__(self, bundle: Bundle, kernel: OpenTube | None = None) -> None:
        certificate = certified(bundle)
        self._names = certificate.error_names
        self._certificate, self._compiled = certificate, bundle.compiled
        self._open_tube = (kernel or RobustKernel.of(bundle)).open_tube
        self._period_ns = round(bundle.period * 1e9)
        self._input_names = tuple(channel.name for channel in bundle.inputs)
        self._state_names = tuple(channel.name for channel in bundle.states)
        k, eta = len(self._names), certificate.estimate_error
        second = certificate.shift_remainder
        self._turn = second[:, k:, :k].transpose(0, 2, 1) @ eta
        self._fixed = eta + 0.5 * (second[:, k:, k:] @ eta) @ eta
        longest = WINDOWS[-1]
        self._states = np.zeros((longest + 1, len(bundle.states)))
        self._inputs = np.zeros((longest, len(bundle.inputs)))
        self._stamps = np.zeros(longest + 1, np.int64)
        self._leeway = np.full((longest, k), math.nan)
        self.reset()

    def reset(self) -> None:
        """A new flight, or a person has looked: forget everything, the proof too."""
        self._broken: Finding | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the windows, keep the proof: the coming estimate is not one period after."""
        self._intervals, self._repeats = -1, 0
        self._leeway[:] = math.nan

    def update(self, stamp_ns: int, x_hat: Array, u_in_force: Array) -> MonitorResult:
        """Judge the estimate x_hat (n,) of `stamp_ns`; u_in_force (m,) acts from then on.

        Raises ModelError for arrays of the wrong shape, which is a wiring mistake.
        """
        x = _vector(x_hat, self._state_names, "x_hat")
        u = _vector(u_in_force, self._input_names, "u_in_force")
        period = _Period(np.full((len(WINDOWS), len(self._names)), math.nan))
        usable = self._finite(stamp_ns, x, u, period)
        if usable:
            self._append(stamp_ns, x, period)
            self._test_windows(period)
            self._inputs[:-1] = self._inputs[1:]
            self._inputs[-1] = u
            usable = period.finding is None or period.finding.fault is not Fault.FROZEN
        if self._broken is None:
            self._broken = period.finding
        return self._result(stamp_ns, usable, period)

    def _finite(self, stamp_ns: int, x: Array, u: Array, period: _Period) -> bool:
        values = np.concatenate((x, u))
        finite = np.isfinite(values)
        if finite.all():
            return True
        names, first = (*self._state_names, *self._input_names), int(np.argmin(finite))
        premise = "A2" if first < len(x) else "A3"
        since = self._stamps[-1] if self._intervals >= 0 else stamp_ns
        period.finding = Finding(
            Fault.NOT_FINITE, premise, stamp_ns, int(since), 0, names[first], "",
            float(values[first]), math.inf,
        )  # fmt: skip
        self.restart()
        return False

    def _append(self, stamp_ns: int, x: Array, period: _Period) -> None:
        """Take the estimate into the windows, which restart where a period is missing."""
        if self._intervals >= 0:
            passed = stamp_ns - int(self._stamps[-1])
            if abs(passed - self._period_ns) > STAMP_TOLERANCE * self._period_ns:
                period.notes.append(
                    f"stamps moved by {passed * 1e-6:.1f} ms, one period is "
                    f"{self._period_ns * 1e-6:.1f} ms: residual windows restart"
                )
                self.restart()
        repeated = self._intervals >= 0 and bool((x == self._states[-1]).all())
        self._repeats = self._repeats + 1 if repeated else 0
        if repeated:
            period.notes.append(
                f"the estimate repeats bit for bit ({self._repeats + 1} periods): this proves "
                "nothing, look at the estimator"
            )
        for history, value in ((self._states, x), (self._stamps, stamp_ns)):
            history[:-1] = history[1:]
            history[-1] = value
        self._leeway[:-1] = self._leeway[1:]
        self._leeway[-1] = math.nan
        self._intervals = min(self._intervals + 1, WINDOWS[-1])

    def _test_windows(self, period: _Period) -> None:
        for row, window in enumerate(WINDOWS):
            if window > self._intervals:
                break
            residual, bound = self._residual(window)
            if bound is None:
                period.notes.append(
                    f"window {window} not tested: the open-loop tube leaves the domain of the "
                    "certificate"
                )
                continue
            size = np.abs(residual)
            ratios = period.ratios[row] = size / bound
            i = int(ratios.argmax())
            if not ratios[i] <= period.worst:
                period.worst = float(ratios[i])
                period.worst_window, period.worst_channel = window, self._names[i]
            if window == 1:
                self._leeway[-1] = size + bound - self._certificate.disturbance
            if period.finding is None and not (size <= bound).all():
                period.finding = self._finding(window, residual, bound)

    def _residual(self, window: int) -> tuple[Array, Array | None]:
        """r (k,) and the bound of |r|; None where the tube is not valid."""
        start, inputs = self._states[-window - 1], self._inputs[-window:]
        zeta = start
        for u in inputs:
            zeta = self._compiled("step", zeta, u)
        residual = self._compiled("difference", self._states[-1], zeta)
        certificate = self._certificate
        tube = self._open_tube(start, inputs, certificate.estimate_error)
        if not (tube <= certificate.error_domain).all():
            return residual, None
        size, reach = np.abs(residual), certificate.tracking_error
        if (size <= certificate.base.extent).all():  # where shift_remainder holds
            reach = np.minimum(reach, self._fixed + self._turn @ size)
        return residual, tube + reach + EPS

    def _finding(self, window: int, residual: Array, bound: Array) -> Finding:
        excess = np.nan_to_num(np.abs(residual) / bound, nan=math.inf)
        i = int(np.argmax(excess))
        fault = Fault.JUMP if window == 1 else Fault.DRIFT
        if 2 * self._repeats >= window:
            fault = Fault.FROZEN
        return Finding(
            fault=fault,
            premise="A1, A2 or A3",
            stamp_ns=int(self._stamps[-1]),
            void_from_ns=int(self._stamps[-window - 1]),
            window=window,
            channel=self._names[i],
            unit=self._certificate.error_units[i],
            observed=float(residual[i]),
            bound=float(bound[i]),
        )

    def _result(self, stamp_ns: int, usable: bool, period: _Period) -> MonitorResult:
        if period.worst > SOFT:
            period.notes.append(
                f"{period.worst_channel} reaches {100 * period.worst:.0f} % of its bound over "
                f"{period.worst_window} periods: a hint that proves nothing"
            )
        status = Status.WARN if period.notes else Status.OK
        note = "; ".join(period.notes)
        if self._broken is not None:
            status, note = Status.BROKEN, self._broken.text()
        recent = self._leeway[-max(self._intervals, 1) :]
        return MonitorResult(
            stamp_ns=stamp_ns,
            status=status,
            ratios=period.ratios,
            worst=period.worst,
            worst_window=period.worst_window,
            worst_channel=period.worst_channel,
            disturbance=recent.max(axis=0),
            estimate_usable=usable,
            broken=self._broken,
            note=note,
        )


def certified(bundle: Bundle) -> Certificate:
    """The certificate; CertificateError says what to do for a bundle without one."""
    if bundle.robust is None:
        raise CertificateError(
            f"{bundle.name} is nominal: it assumes no bounds, so there is nothing to monitor; "
            f"use a robust bundle, or run safe-rl verify {bundle.path} if it states assumptions"
        )
    return bundle.robust


def _vector(value: Array, names: tuple[str, ...], what: str) -> Array:
    vector = np.asarray(value, np.float64)
    if vector.shape != (len(names),):
        raise ModelError(
            f"{what} must have shape ({len(names)},) = ({', '.join(names)}), got {vector.shape}"
        )
    return vector
