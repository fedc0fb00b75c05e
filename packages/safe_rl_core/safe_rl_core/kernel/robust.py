"""VALID as Python sees it: the tube of a plan, its conditions, and how much they leave over.

`RobustKernel` is a `Kernel` whose program has error functions, together with the certificate that
was derived from them; robust.c does the work. Returned arrays are views that the next call of any
method overwrites.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.certificate import EPS, SIGMA_MAX, Certificate
from safe_rl_core.errors import CertificateError, KernelError
from safe_rl_core.kernel.kernel import (
    Kernel,
    Rows,
    aligned,
    compare,
    pointer,
    self_test_points,
    zeros,
)
from safe_rl_core.kernel.tables import bounds_vector, sparse_tables

if TYPE_CHECKING:
    from safe_rl_core.bundle import Bundle

Array = NDArray[np.float64]

#: Generators of the tube that are kept apart (about); more are boxed.
GENERATORS = 1024
_CHUNK = 32
#: `sigma` is found to this relative accuracy.
SIGMA_ACCURACY = 0.01


@dataclass(frozen=True)
class Valid:
    """A plan under VALID.

    states (N+1, n) z_0..z_N; inputs (N+1, m); errors E (N+1, k) and deviations V (N+1, m): bounds
    of the error and of the tracking input, infinite behind a node where the derived bounds end.
    `slack`: the least room of all conditions, reached at `critical` ("ceiling@37",
    "input thrust_low@12", "domain p_x@4", "base@100"). The plan is valid where slack >= 0.
    """

    states: Array
    inputs: Array
    slack: float
    critical: str
    errors: Array
    deviations: Array

    @property
    def holds(self) -> bool:
        """False as well where a number is missing."""
        return self.slack >= 0.0


_WORK = (
    *("states", "inputs", "h", "slope", "closed", "noise", "outside", "cell", "outside_row"),
    *("terminal", "errors", "deviations", "need", "kept", "g", "g_next", "score"),
)


class _Work(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _WORK),
        ("capacity", ctypes.c_int64),
    ]


class RobustKernel(Kernel):
    """VALID and what rests on it, for one robot with its certificate.

    `nominal` is the bundle's own kernel, whose library and theorem parameters are shared; names
    and `input_scale` (m,) are the bundle's. `generators` bounds the tube's columns.
    """

    def __init__(
        self,
        nominal: Kernel,
        certificate: Certificate,
        *,
        safe_names: Sequence[str],
        input_names: Sequence[str],
        input_scale: Array,
        generators: int = GENERATORS,
    ) -> None:
        super().__init__(nominal.compiled, nominal.theorem, nominal.horizon)
        self.certificate = certificate
        self.k = len(certificate.error_names)
        self._check_sizes()
        self._conditions = _condition_names(certificate, safe_names, input_names)
        self._num_end = 2 + self.k + self.num_safe
        self._bounds = bounds_vector(certificate, input_scale)
        self._tables, self._kept = sparse_tables(certificate)
        self._allocate_work(generators)
        self._bind_robust()
        self.rows(np.zeros(self.n))  # writes the rows of the box, which stay

    @staticmethod
    def of(bundle: Bundle) -> RobustKernel:
        """A new kernel of a robust bundle; CertificateError for a nominal one."""
        if bundle.robust is None:
            raise CertificateError(
                f"{bundle.name} has no certificate (certificate: {bundle.certificate}); "
                f"run safe-rl verify {bundle.path}, or use the nominal shield"
            )
        kernel = RobustKernel(
            bundle.kernel(),
            bundle.robust,
            safe_names=bundle.safe_set_names,
            input_names=[channel.name for channel in bundle.inputs],
            input_scale=bundle.input_scale,
        )
        kernel.check_tube()
        return kernel

    def _check_sizes(self) -> None:
        sizes = dict(self.compiled.program.functions["error_map"].inputs)
        got = {"s": len(self.certificate.schedule_low), "e": self.k, "w": self.k}
        got["v"] = len(self.certificate.input_low)
        safe = len(self.certificate.sampling_margin)
        if got != sizes or safe != self.num_safe:
            raise KernelError(
                f"the certificate speaks of sizes {got} and {safe} safe rows, the program of "
                f"{sizes} and {self.num_safe}; run safe-rl verify again"
            )

    def _allocate_work(self, generators: int) -> None:
        nodes, k, n, m, h = self.horizon + 1, self.k, self.n, self.m, self.num_safe
        most = max(min(generators, (nodes + 1) * k), 4 * k)
        capacity = (-(-most // _CHUNK) | 1) * _CHUNK  # odd: rows lie in different cache sets
        arrays = {
            "states": zeros(nodes, n),
            "inputs": zeros(nodes, m),
            "h": zeros(nodes, h),
            "slope": zeros(nodes, h, k),
            "closed": zeros(nodes, k, k),
            "noise": zeros(nodes, k),
            "outside": zeros(nodes),
            "cell": np.zeros(nodes, np.int32),
            "outside_row": np.zeros(nodes, np.int32),
            "terminal": zeros(2 + k + k * k + h),
            "errors": zeros(nodes, k),
            "deviations": zeros(nodes, m),
            "need": zeros(nodes * h + 1),
            "kept": zeros(nodes * (h + m) + 1),
            "g": zeros(k, capacity),
            "g_next": zeros(k, capacity),
            "score": zeros(2, capacity),
        }
        self._arrays = arrays
        self._workspace = _Work(*(pointer(arrays[name]) for name in _WORK), capacity)

    def _bind_robust(self) -> None:
        lib, number = self._library, ctypes.c_int(self.horizon)
        lib.safe_rl_valid.restype = lib.safe_rl_tube.restype = ctypes.c_double
        self._errors, self._start, self._rooms = zeros(self.k), zeros(self.k), zeros(2)
        bounds, work = pointer(self._bounds), ctypes.byref(self._workspace)
        common = (bounds, ctypes.byref(self._tables), work)
        worst = ctypes.byref(self._int)
        x, u = pointer(self._x), pointer(self._u)
        self._valid_args = (*common, number, x, u, worst)
        self._replay_args = (*common, number, x, None, worst)
        self._tube_args = (*common, number)
        self._open_args = common
        self._screen_args = (bounds, work, number, x, u, pointer(self._rooms))
        rows = [pointer(array) for array in self._rows]
        a, b, timing = pointer(self._a), pointer(self._b), pointer(self._timing)
        stride = ctypes.c_int(self.stride)
        self._tight_args = (pointer(self.theorem), work, x, u, number, stride, *rows, a, b, timing)

    def valid(self, x: Array, u: Array) -> Valid:
        """The plan [u, then the backup policy] from the predicted state x (n,), u (m,)."""
        self._x[:] = x
        self._u[:] = u
        return self._judged(self._library.safe_rl_valid(*self._valid_args))

    def replay(self, x: Array, inputs: Array) -> Valid:
        """The plan of given inputs (N+1, m) from its first state x (n,)."""
        self._x[:] = x
        self._arrays["inputs"][:] = inputs
        return self._judged(self._library.safe_rl_valid(*self._replay_args))

    @property
    def needed(self) -> tuple[Array, float]:
        """What the plan that was judged last must keep, from all safe rows and from the base set.

        (N+1, safe rows) in the rows' units, a copy, and a length in the base set's norm. Wrong
        behind a node where the plan's `errors` are infinite: its tube ends there.
        """
        *rows, base = self._arrays["need"]
        return np.reshape(rows, (self.horizon + 1, self.num_safe)), float(base)

    def _judged(self, slack: float) -> Valid:
        arrays = self._arrays
        return Valid(
            arrays["states"],
            arrays["inputs"],
            slack,
            self._name(self._int.value),
            arrays["errors"],
            arrays["deviations"],
        )

    def _name(self, row: int) -> str:
        node, index = divmod(row, len(self._conditions) - self._num_end)
        if node <= self.horizon:
            return f"{self._conditions[index]}@{node}"
        index = row - (self.horizon + 1) * (len(self._conditions) - self._num_end)
        return f"{self._conditions[index - self._num_end]}@{self.horizon}"

    def sigma(self) -> float:
        """Margin of the plan that was judged last, as a factor.

        The largest factor on disturbance, prediction error and tracking error for which that plan
        is still valid, from below to SIGMA_ACCURACY; 0 if there is none, at most SIGMA_MAX.
        Takes some six tubes' time and is nothing that a control period waits for.
        """
        low, room = 0.0, self.slack_at(0.0)
        if not room >= 0.0:
            return 0.0
        high, over, at, secant = math.inf, math.nan, 1.0, True
        while low < SIGMA_MAX and (math.isinf(high) or high - low > SIGMA_ACCURACY * high):
            slack = self.slack_at(at)
            if slack >= 0.0:
                low, room = at, slack
            else:
                high, over = at, slack
            if math.isinf(high):
                at = min(2.0 * low, SIGMA_MAX)
                continue
            share = room / (room - over) if secant and math.isfinite(over) else 0.5
            at = low + min(max(share, 0.02), 0.98) * (high - low)
            secant = not secant
        return low

    def slack_at(self, factor: float) -> float:
        """Slack of the plan that was judged last under `factor` times all assumed bounds.

        -inf above SIGMA_MAX, where the derived bounds end.
        """
        if factor > SIGMA_MAX:
            return -math.inf
        return self._library.safe_rl_tube(
            *self._tube_args, ctypes.c_double(factor), ctypes.byref(self._int)
        )

    def open_tube(self, x: Array, inputs: Array, start: Array) -> Array:
        """Bound of the error (k,) after the inputs (M, m) from x (n,), without tracking.

        The error is at first at most `start` (k,). Infinite where the plan leaves the domain in
        which the certificate bounds the error map.
        """
        self._x[:] = x
        self._start[:] = start
        inputs = aligned(inputs)
        self._library.safe_rl_open_tube(
            *self._open_args,
            ctypes.c_int(len(inputs)),
            pointer(self._x),
            pointer(inputs),
            pointer(self._start),
            pointer(self._errors),
        )
        return self._errors.copy()

    def screen(self, x: Array, u: Array) -> tuple[float, float]:
        """A cheap look at the plan of u (m,) from x (n,): rooms without its tube.

        The first is negative or nan only if `valid` refuses the plan. The second guesses the
        plan's slack, with what the last tube that went all the way needed.
        """
        self._x[:] = x
        self._u[:] = u
        self._library.safe_rl_screen(*self._screen_args)
        possible, likely = self._rooms.tolist()
        return possible, likely

    def tightened_rows(self, x: Array, u: Array) -> Rows:
        """Rows for the projection, linear about the plan of u (m,) from x (n,): nodes z_0..z_N.

        Every row keeps what the last tube that went all the way needed of it: a guess, which only
        `valid` turns into more.
        """
        self._x[:] = x
        self._u[:] = u
        self._library.safe_rl_tightened_rows(*self._tight_args)
        states, inputs, h = self._rows
        return Rows(states, inputs, h, self._a, self._b, self._timing, np.nan, -1)

    def check_tube(self) -> None:
        """Compare the compiled tube with a numpy one on the same derivatives; KernelError.

        The errors are scaled down, so that tubes stay where the derived bounds hold.
        """
        c, arrays, scale = self.certificate, self._arrays, 1e-3
        for x in self_test_points(self.compiled.program)["step"][0][:4]:
            self.valid(x, self.compiled("backup_policy", x))
            self.slack_at(scale)
            g, tracking = np.diag(scale * c.prediction_error), scale * c.tracking_error
            for j in range(self.horizon + 1):
                if not np.isfinite(arrays["errors"][j]).all():
                    break
                v = np.abs(c.tracking_gain @ g).sum(1) + np.abs(c.tracking_gain) @ tracking
                v, e = v * (j > 0), np.abs(g).sum(1)
                compare("tube", arrays["errors"][j], e)
                compare("input deviation", arrays["deviations"][j], v)
                xi = np.concatenate((e, v, scale * c.disturbance))
                w = scale * (c.disturbance + arrays["noise"][j]) + EPS
                w += 0.5 * (c.remainder[max(arrays["cell"][j], 0)] @ xi) @ xi
                g = np.hstack((arrays["closed"][j] @ g, np.diag(w)))


def _condition_names(
    certificate: Certificate, safe_names: Sequence[str], input_names: Sequence[str]
) -> list[str]:
    """Names of robust.c's conditions: those of a node, then those of the end."""
    errors = certificate.error_names
    return [
        *safe_names,
        *(f"input {name}_low" for name in input_names),
        *(f"input {name}_high" for name in input_names),
        *(f"domain {name}" for name in errors),
        *(f"domain {name}" for name in input_names),
        *(f"domain s_{i}" for i in range(len(certificate.schedule_low))),
        *(f"domain x_{i}" for i in range(len(certificate.state_low))),
        "base",
        *(f"base_extent {name}" for name in errors),
        *(f"base {name}" for name in safe_names),
        "base equilibrium",
    ]
