"""The kernel as Python sees it: load the library, check it against the program, call it.

All arrays that C writes to are allocated once here; a returned array is a view that the next call
of the same method overwrites. One Kernel serves one thread.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.errors import KernelError
from safe_rl_core.kernel import build
from safe_rl_core.program import Program

Array = NDArray[np.float64]

#: States on which a freshly loaded library must agree with the program.
SELF_TEST_STATES = 1024
#: Largest accepted difference, relative to 1 + |value|.
SELF_TEST_TOLERANCE = 1e-11


@dataclass(frozen=True)
class Rows:
    """The backup rollout from one state and the projection's rows A v >= b, v = u / scale.

    Shapes: states (N+1, n) psi_0..psi_N; inputs (N+1, m) u_b and the policy along psi; h (M,) row
    values without margins; a (m, stride) and b (stride,), the first M columns being the rows, then
    2 m box rows; timing (M,) d h / d(lateness) per s; least = min(h - margin) at row `worst`.
    """

    states: Array
    inputs: Array
    h: Array
    a: Array
    b: Array
    timing: Array
    least: float
    worst: int


@dataclass(frozen=True)
class Rollout:
    """A plan rolled out from x under a first input: see `Rows` for shapes."""

    states: Array
    inputs: Array
    h: Array
    least: float
    worst: int


class Compiled:
    """A program's functions as compiled code, one evaluation at a time, checked when loaded."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.library = ctypes.CDLL(str(build.library(program)))
        self._values = {name: _Value(self.library, program, name) for name in program.functions}
        self.self_test()

    def __call__(self, name: str, *inputs: Array) -> Array:
        """Evaluate a function: (n_i,) each -> a new (outputs,) array."""
        return self._values[name](*inputs)

    def self_test(self) -> None:
        """Compare every function with the program's interpreter; KernelError if they differ."""
        for name, inputs in self_test_points(self.program).items():
            fast = np.array([self(name, *point) for point in zip(*inputs, strict=True)])
            compare(name, fast, self.program(name, *inputs))
        for name, (varied, directions, width) in build.tangent_lanes(self.program).items():
            self._compare_tangents(name, varied, directions, width)

    def _compare_tangents(
        self, name: str, varied: tuple[str, ...], directions: int, width: int
    ) -> None:
        rng, inputs = np.random.default_rng(1), self_test_points(self.program)[name]
        function = self.program.functions[name]
        call = getattr(self.library, f"safe_rl_tangent_{name}")
        moves = [1.0 if key in varied else 0.0 for key, _ in function.inputs]
        seeds = [
            aligned(move * rng.normal(size=(*array.shape, width)))
            for move, array in zip(moves, inputs, strict=True)
        ]
        out, d_out = zeros(function.output_size), zeros(function.output_size, width)
        fast = np.zeros((len(inputs[0]), function.output_size, width))
        for k in range(len(inputs[0])):
            arrays = []
            for move, array, seed in zip(moves, inputs, seeds, strict=True):
                arrays += [aligned(array[k]), seed[k]] if move else [aligned(array[k])]
            call(*(pointer(array) for array in (*arrays, out, d_out)))
            fast[k] = d_out
        for lane in range(directions):
            slow = self.program.jvp(name, inputs, tuple(s[..., lane] for s in seeds))
            compare(f"derivative of {name}", fast[..., lane], slow)


class Kernel:
    """The compiled rollout of one robot with its theorem parameters.

    `theorem` is (class_k dt, base_class_k dt, low (m), high (m), scale (m), margin (n_h)) as one
    float64 vector; `horizon` is N.
    """

    def __init__(self, compiled: Compiled, theorem: Array, horizon: int) -> None:
        self.compiled = compiled
        self.horizon = horizon
        program = compiled.program
        step = program.functions["step"]
        self.n, self.m = step.input_size("x"), step.input_size("u")
        self.num_safe = program.functions["safe_set"].output_size
        self.num_base = program.functions["base_set"].output_size
        self.num_rows = (horizon + 1) * self.num_safe + self.num_base
        self.stride = -(-(self.num_rows + 2 * self.m) // 8) * 8
        expected = 2 + 3 * self.m + self.num_safe
        if theorem.shape != (expected,):
            raise KernelError(f"theorem parameters: expected {expected}, got {theorem.shape}")
        self.theorem = aligned(theorem)
        self._library = compiled.library
        self._allocate()
        self._bind()

    def _allocate(self) -> None:
        rows, nodes = self.num_rows, self.horizon + 1
        self._x, self._u = zeros(self.n), zeros(self.m)
        self._v_d, self._v, self._work = zeros(self.m), zeros(self.m), zeros(self.stride)
        self._active = np.zeros(self.m + 1, np.int32)
        self._int, self._double = ctypes.c_int(), ctypes.c_double()
        self._rows = (zeros(nodes, self.n), zeros(nodes, self.m), zeros(rows))
        self._a, self._b, self._timing = (
            zeros(self.m, self.stride),
            zeros(self.stride),
            zeros(rows),
        )
        self._plan = (zeros(nodes, self.n), zeros(nodes, self.m), zeros(rows))

    def _bind(self) -> None:
        """Fix every pointer once, so that a call passes ready-made arguments."""
        lib, integer = self._library, ctypes.c_int
        lib.safe_rl_rows.restype = lib.safe_rl_verify.restype = ctypes.c_double
        theorem, worst = pointer(self.theorem), ctypes.byref(self._int)
        x, u, n = pointer(self._x), pointer(self._u), integer(self.horizon)
        a, b, work = pointer(self._a), pointer(self._b), pointer(self._work)
        v, v_d, active = pointer(self._v), pointer(self._v_d), pointer(self._active)
        stride = integer(self.stride)
        rows = [pointer(array) for array in self._rows]
        plan = [pointer(array) for array in self._plan]
        self._rows_args = (theorem, x, n, stride, *rows, a, b, pointer(self._timing), worst)
        self._verify_args = (theorem, x, u, n, *plan, worst)
        self._scan_args = (stride, a, b, v, work, ctypes.byref(self._double))
        self._project_args = (stride, a, b, v_d, v, active, work)
        self._repair_args = (stride, a, b, v_d, active)
        self._repair_tail = (v, work)

    def rows(self, x: Array) -> Rows:
        """Backup rollout from x (n,), its sensitivities and the rows of the projection."""
        self._x[:] = x
        least = self._library.safe_rl_rows(*self._rows_args)
        states, inputs, h = self._rows
        return Rows(states, inputs, h, self._a, self._b, self._timing, least, self._int.value)

    def verify(self, x: Array, u: Array) -> Rollout:
        """The plan [u, then the backup policy] from x (n,), u (m,)."""
        self._x[:] = x
        self._u[:] = u
        least = self._library.safe_rl_verify(*self._verify_args)
        return Rollout(*self._plan, least, self._int.value)

    def scan(self, v: Array) -> tuple[int, float]:
        """Most violated row of the last `rows` at v (m,), and its slack a.v - b."""
        self._v[:] = v
        row = self._library.safe_rl_scan(*self._scan_args)
        return row, self._double.value

    def repair(self, v_d: Array, active: list[int]) -> Array | None:
        """Exact projection of v_d on a guessed active set; None if the guess is wrong."""
        self._v_d[:] = v_d
        count = min(len(active), self.m)
        self._active[:count] = active[:count]
        done = self._library.safe_rl_repair(
            *self._repair_args, ctypes.c_int(count), *self._repair_tail
        )
        return self._v if done else None

    def project(self, v_d: Array) -> tuple[Array | None, int]:
        """Exact projection of v_d onto all rows; (None, code < 0) if there is none."""
        self._v_d[:] = v_d
        count = self._library.safe_rl_project(*self._project_args)
        return (self._v if count >= 0 else None), count

    def self_test(self) -> None:
        """Check the composed rollout node by node; KernelError if it differs from the program.

        Node by node, because a hard switch in the policy may amplify rounding over the horizon.
        """
        states, actions = self_test_points(self.compiled.program)["step"]
        program = self.compiled.program
        for state, action in zip(states[:16], actions[:16], strict=True):
            plan = self.verify(state, action)
            before = np.vstack((state, plan.states[:-1]))
            compare("rollout", plan.states, program("step", before, plan.inputs))
            policy = program("backup_policy", plan.states[:-1])
            compare("backup inputs", plan.inputs[1:], policy)


def theorem_vector(
    class_k: float,
    base_class_k: float,
    period: float,
    *,
    low: Array,
    high: Array,
    scale: Array,
    margin: Array,
) -> Array:
    """The parameters of rollout.c's Theorem, in its order: see `Kernel`."""
    shares = np.array([class_k * period, base_class_k * period])
    return np.concatenate((shares, low, high, scale, margin))


def self_test_points(program: Program) -> dict[str, tuple[Array, ...]]:
    """Inputs for each function of a program: states of the operating box, inputs of the box."""
    rng = np.random.default_rng(0)

    def unit(size: int) -> Array:
        return rng.uniform(-1.0, 1.0, (SELF_TEST_STATES, size))

    state = program("operating_state", unit(program.functions["operating_state"].inputs[0][1]))
    action = 20.0 * unit(program.functions["step"].input_size("u"))
    fixed = {"x": state, "x_next": state, "u": action, "z": np.roll(state, 1, axis=0)}
    if "schedule" in program.functions:
        fixed["s"] = program("schedule", state, action)
    return {
        name: tuple(fixed[key] if key in fixed else unit(size) for key, size in function.inputs)
        for name, function in program.functions.items()
    }


def compare(what: str, fast: Array, slow: Array) -> None:
    """KernelError unless two results agree to SELF_TEST_TOLERANCE, NaN where the other is NaN."""
    same = (fast == slow) | (np.isnan(fast) & np.isnan(slow))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(fast - slow) / (1.0 + np.abs(slow)))
    worst = float(np.max(np.where(np.isnan(error), np.inf, error), initial=0.0))
    if not worst <= SELF_TEST_TOLERANCE:
        raise KernelError(
            f"self-test: the compiled {what} differs from the program by {worst:.1e} "
            f"(allowed {SELF_TEST_TOLERANCE:.0e}); delete {build.cache_folder()} and try again, "
            "or set CC to another compiler"
        )


class _Value:
    """One compiled function with fixed argument buffers."""

    def __init__(self, library: ctypes.CDLL, program: Program, name: str) -> None:
        function = program.functions[name]
        self._call = getattr(library, f"safe_rl_value_{name}")
        self._inputs = [zeros(size) for _, size in function.inputs]
        self._out = zeros(function.output_size)
        self._args = (*(pointer(array) for array in self._inputs), pointer(self._out))

    def __call__(self, *inputs: Array) -> Array:
        for buffer, array in zip(self._inputs, inputs, strict=True):
            buffer[:] = array
        self._call(*self._args)
        return self._out.copy()


def zeros(*shape: int) -> Array:
    """A C-ordered float64 array of zeros that starts at a multiple of 64 bytes."""
    return aligned(np.zeros(shape))


def aligned(array: Array) -> Array:
    """A C-ordered float64 copy that starts at a multiple of 64 bytes, as vector loads want it."""
    raw = np.zeros(array.size + 8)
    start = (-raw.ctypes.data % 64) // 8
    out = raw[start : start + array.size].reshape(array.shape)
    out[...] = array
    return out


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    """Where an array's numbers are; the array must outlive every call that gets it."""
    return ctypes.c_void_p(array.ctypes.data)
