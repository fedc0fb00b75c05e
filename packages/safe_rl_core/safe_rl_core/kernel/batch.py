"""Many states at once: what training and large evaluations call instead of `Kernel` and `Shield`.

The states are cut into contiguous pieces, one C call each (batch.c), which run on several threads:
C holds no lock of Python's, every piece has its own work area, and no state's answer depends on
the piece that it lies in. So the results are the same bits for any number of threads.

`decide` is `Shield._decide` for a predicted state, without memory. It differs in three ways. There
is no committed plan: where the backup's own plan does not hold (outside of the implicit set), the
answer is the backup action with its negative margin. The projection is the exact active-set method
alone, without OSQP before it. And a state that is not finite has no answer: its action, backup and
margin are nan, its verdict is BACKUP. Callers must not pass such states, nor send such actions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_core.kernel.kernel import Compiled, Kernel, aligned
from safe_rl_core.projection import TOLERANCE
from safe_rl_core.shield import ROUNDING
from safe_rl_core.shield_base import BLENDS

Array = NDArray[np.float64]

#: Verdicts of `decide`, in its coding.
PASSED, PROJECTED, BACKUP = 0, 1, 2
#: Least work in a piece of its own, some 100 us: nodes of rollouts, evaluations of a function.
NODES, EVALUATIONS = 2000, 2048
#: Pieces per thread: a state costs more where a proposal is projected, so pieces are not equal.
PIECES = 4


@dataclass(frozen=True)
class BatchRows:
    """The projection's rows A v >= b, v = u / scale, of B states; see `kernel.Rows`.

    normals (B, R, m) and offsets (B, R) without the box; backup (B, m) the backup action in SI
    units; least (B,) the smallest h - margin of its plan, at row worst (B,).
    """

    normals: Array
    offsets: Array
    backup: Array
    least: Array
    worst: NDArray[np.int32]


@dataclass(frozen=True)
class Decisions:
    """What the nominal shield sends in B states.

    action (B, m) in SI units; slope (B, m, m): d action / d proposal with the rows, the blend and
    the backup action held: 1 where the proposal passed, 0 for a backup, the derivative of the
    projection onto the active rows between (where two cases meet, that of one side). verdict (B,):
    PASSED, PROJECTED or BACKUP; blend (B,): share of the candidate in the action, 0 for the
    backup; backup (B, m); margin (B,) of the plan sent.
    normals (B, R, m), offsets (B, R): what `rows` gives there, if it was asked for, else R is 0.
    """

    action: Array
    slope: Array
    verdict: NDArray[np.int8]
    blend: Array
    backup: Array
    margin: Array
    normals: Array
    offsets: Array


class _Rules(ctypes.Structure):
    _fields_ = (
        ("tolerance", ctypes.c_double),
        ("rounding", ctypes.c_double),
        ("blends", ctypes.c_int),
        ("blend", ctypes.c_double * 8),
    )


class BatchKernel:
    """`Kernel` for many states; several threads may call one instance. Sizes as in `Kernel`.

    With `threads` > 1 fork no process after the first call: the child would lack the threads.
    """

    def __init__(self, compiled: Compiled, theorem: Array, horizon: int, threads: int = 1) -> None:
        if threads < 1:
            raise ModelError(f"threads must be >= 1, got {threads}")
        kernel = Kernel(compiled, theorem, horizon)
        self.compiled, self.horizon, self.threads = compiled, horizon, threads
        self.n, self.m, self.num_rows = kernel.n, kernel.m, kernel.num_rows
        self.theorem = kernel.theorem
        self._library = compiled.library
        self._library.safe_rl_area_size.restype = ctypes.c_long
        self._shape = (ctypes.c_int(horizon), ctypes.c_int(kernel.stride))
        self._area_size = self._library.safe_rl_area_size(*self._shape)
        blends = (1.0, *BLENDS)
        self._rules = _Rules(TOLERANCE, ROUNDING, len(blends), blends)
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None

    @property
    def required(self) -> Array:
        """What every row of the safe set must be at least (n_h,): the theorem's margins."""
        return self.theorem[2 + 3 * self.m :].copy()

    @classmethod
    def of(cls, bundle: Bundle, threads: int = 1) -> BatchKernel:
        """The kernel of a bundle, checked against its program."""
        kernel = bundle.kernel()
        return cls(kernel.compiled, kernel.theorem, kernel.horizon, threads)

    def evaluate(self, name: str, *inputs: Array) -> Array:
        """A function of the program on (B, n_i) each -> (B, outputs)."""
        function = self.compiled.program.functions.get(name)
        if function is None:
            known = ", ".join(self.compiled.program.functions)
            raise ModelError(f"the program has no function '{name}'; it has {known}")
        sizes = [size for _, size in function.inputs]
        arrays = self._arrays(f"the inputs of {name}", inputs, sizes)
        out = np.empty((len(arrays[0]), function.output_size))
        call = getattr(self._library, f"safe_rl_many_{name}")

        def piece(begin: int, end: int) -> None:
            pointers = (_at(array, begin) for array in (*arrays, out))
            call(ctypes.c_long(end - begin), *pointers)

        self._run(piece, len(out), EVALUATIONS)
        return out

    def rows(self, x: Array) -> BatchRows:
        """The rows of the projection in the states x (B, n)."""
        (x,) = self._arrays("x", (x,), [self.n])
        size = len(x)
        out = BatchRows(
            normals=np.empty((size, self.num_rows, self.m)),
            offsets=np.empty((size, self.num_rows)),
            backup=np.empty((size, self.m)),
            least=np.empty(size),
            worst=np.empty(size, np.int32),
        )
        written = (out.normals, out.offsets, out.backup, out.least, out.worst)
        self._roll("rows", size, (), (x, *written))
        return out

    def way_out(self, x: Array) -> Array:
        """The smallest h - margin (B,) of the backup policy's plans from x (B, n)."""
        (x,) = self._arrays("x", (x,), [self.n])
        least = np.empty(len(x))
        self._roll("way_out", len(x), (), (x, least))
        return least

    def decide(self, x: Array, proposed: Array, with_rows: bool = False) -> Decisions:
        """The shield's decision in the predicted states x (B, n) for proposals (B, m).

        A proposal with an entry that is not finite is none. `with_rows`: return the rows, too.
        """
        x, proposed = self._arrays("x and the proposals", (x, proposed), [self.n, self.m])
        size, rows = len(x), self.num_rows if with_rows else 0
        out = Decisions(
            action=np.empty((size, self.m)),
            slope=np.empty((size, self.m, self.m)),
            verdict=np.empty(size, np.int8),
            blend=np.empty(size),
            backup=np.empty((size, self.m)),
            margin=np.empty(size),
            normals=np.empty((size, rows, self.m)),
            offsets=np.empty((size, rows)),
        )
        written = (out.action, out.slope, out.backup, out.blend, out.margin, out.verdict)
        arrays = (x, proposed, *written, out.normals, out.offsets)
        self._roll("decide", size, (ctypes.byref(self._rules), ctypes.c_int(with_rows)), arrays)
        return out

    def _roll(
        self, name: str, size: int, options: tuple[object, ...], arrays: tuple[NDArray, ...]
    ) -> None:
        """One C function of batch.c on the pieces of `arrays`, each with its own work area."""
        call = getattr(self._library, f"safe_rl_batch_{name}")

        def piece(begin: int, end: int) -> None:
            area = aligned(np.zeros(self._area_size))
            pointers = (_at(array, begin) for array in arrays)
            count = ctypes.c_long(end - begin)
            call(_at(self.theorem), *self._shape, _at(area), count, *options, *pointers)

        self._run(piece, size, -(-NODES // (self.horizon + 1)))

    def _run(self, piece: Callable[[int, int], None], size: int, least: int) -> None:
        """`piece(begin, end)` over 0..size, on the threads if there is enough to do."""
        count = min(PIECES * self.threads, size // least)
        if self._executor is None or count < 2:
            if size > 0:
                piece(0, size)
            return
        ends = [size * k // count for k in range(count + 1)]
        list(self._executor.map(piece, ends[:-1], ends[1:]))

    def _arrays(self, what: str, arrays: tuple[Array, ...], sizes: list[int]) -> tuple[Array, ...]:
        """The arrays as C reads them; ModelError unless their shapes are (B, size) each."""
        found = tuple(np.ascontiguousarray(array, np.float64) for array in arrays)
        shapes = [array.shape for array in found]
        count = shapes[0][0] if shapes and shapes[0] else 0
        if shapes != [(count, size) for size in sizes]:
            expected = ", ".join(f"(B, {size})" for size in sizes)
            raise ModelError(f"{what} must have shapes {expected}, got {shapes}")
        return found


def _at(array: NDArray, begin: int = 0) -> ctypes.c_void_p:
    """Where the numbers of array[begin] are; the array must outlive the call that gets it."""
    return ctypes.c_void_p(array.ctypes.data + begin * array.strides[0])
