"""The kernel: equal to the interpreter, right derivatives of the whole rollout, loud failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safe_rl_core import Bundle
from safe_rl_core.errors import KernelError
from safe_rl_core.kernel import Compiled, build
from safe_rl_core.kernel.kernel import compare, self_test_points
from safe_rl_core.loop import recoverable_state
from shipped import load


def test_values_equal_the_interpreter(bundle: Bundle) -> None:
    for name, inputs in self_test_points(bundle.program).items():
        fast = np.array([bundle.compiled(name, *p) for p in zip(*inputs, strict=True)])
        slow = bundle.program(name, *inputs)
        assert np.all(np.abs(fast - slow) <= 1e-11 * (1.0 + np.abs(slow))), name


def test_rollout_equals_a_numpy_rollout(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    x, kernel = recoverable_state(bundle, rng), bundle.kernel()
    u = rng.uniform(bundle.input_low, bundle.input_high)
    plan = kernel.verify(x, u)
    state, nodes = bundle.program("step", x, u), []
    for _ in range(bundle.horizon + 1):
        nodes.append(state)
        state = bundle.program("step", state, bundle.program("backup_policy", state))
    nodes = np.array(nodes)
    rows = [*bundle.program("safe_set", nodes).reshape(-1), *bundle.program("base_set", nodes[-1])]
    assert np.allclose(plan.states, nodes, rtol=0, atol=1e-9)
    assert np.allclose(plan.h, rows, rtol=0, atol=1e-9)
    margins = np.concatenate(
        (np.tile(bundle.margin, bundle.horizon + 1), 0 * plan.h[-len(bundle.base_set_names) :])
    )
    assert plan.least == pytest.approx(np.min(rows - margins), abs=1e-9)
    assert plan.worst == np.argmin(plan.h - margins)


def test_rows_are_the_derivatives_of_the_rollout(bundle: Bundle) -> None:
    """Differences of the plan's rows in u at u_b, where the plan has no kink there."""
    rng, step = np.random.default_rng(5), 1e-6
    kernel, compared = bundle.kernel(), 0
    for _ in range(8):
        x = recoverable_state(bundle, rng)
        rows = kernel.rows(x)
        u_b, h = rows.inputs[0].copy(), rows.h.copy()
        a, b = rows.a[:, : kernel.num_rows].copy(), rows.b[: kernel.num_rows].copy()
        units = np.eye(kernel.m) * step
        ahead = np.array([kernel.verify(x, u_b + e).h.copy() for e in units]) - h
        behind = h - np.array([kernel.verify(x, u_b - e).h.copy() for e in units])
        slope = (ahead + behind) / (2 * step) * bundle.input_scale[:, None]
        length = np.linalg.norm(slope, axis=0)
        smooth = np.all(np.abs(ahead - behind) <= 1e-3 * np.abs(ahead) + 1e-9, axis=0)
        usable = smooth & (length > 1e-3)
        compared += int(np.sum(usable))
        assert np.allclose((a * length)[:, usable], slope[:, usable], rtol=1e-3, atol=1e-3)
        share = np.full(kernel.num_rows, bundle.class_k * bundle.period)
        share[-kernel.num_base :] = bundle.base_class_k * bundle.period
        margin = np.concatenate(
            (np.tile(bundle.margin, bundle.horizon + 1), np.zeros(kernel.num_base))
        )
        slack = (a.T @ (u_b / bundle.input_scale) - b) * length
        expected = share * (h - margin)
        assert np.allclose(slack[usable], expected[usable], rtol=1e-2, atol=1e-3)
    assert compared > 100


def test_timing_is_the_derivative_in_the_moment_of_actuation(unicycle: Bundle) -> None:
    kernel, x = unicycle.kernel(), np.array([0.0, 0.9, 0.2, 6.0])
    rows = kernel.rows(x)
    u_b, timing = rows.inputs[0].copy(), rows.timing.copy()
    later = 1e-6 * unicycle.program("dynamics", x, u_b)
    ahead = kernel.verify(x + later, u_b).h.copy()
    behind = kernel.verify(x - later, u_b).h.copy()
    assert np.allclose((ahead - behind) / 2e-6, timing, rtol=1e-5, atol=1e-5)


def test_a_library_of_another_program_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    good = load("unicycle_lane").program
    text = good.text().replace("const 0.05", "const 0.0501")
    assert text != good.text()
    monkeypatch.setattr(build, "library", lambda program: _library_of(text, good.weights))
    with pytest.raises(KernelError, match="self-test: the compiled .* differs"):
        Compiled(good)


def _library_of(text: str, weights: dict[str, np.ndarray]) -> Path:
    from safe_rl_core.program import Program, parse

    source = build.source(Program(parse(text), weights))
    folder = build.cache_folder()
    path = folder / "test_other.so"
    build._compile(source, (*build.compiler(), *build._FLAGS, *build._machine_flags()), path)
    return path


def test_compare_treats_nan_as_a_difference_unless_both_are() -> None:
    compare("x", np.array([np.nan, 1.0]), np.array([np.nan, 1.0]))
    with pytest.raises(KernelError):
        compare("x", np.array([np.nan]), np.array([1.0]))


def test_no_compiler_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KernelError, match="pip install ziglang"):
        build.compiler()


def test_a_failing_compiler_shows_its_message(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="could not compile"):
        build._compile("this is not C", build.compiler(), tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()


def test_wrong_number_of_theorem_parameters(unicycle: Bundle) -> None:
    from safe_rl_core.kernel import Kernel

    with pytest.raises(KernelError, match="theorem parameters"):
        Kernel(unicycle.compiled, np.zeros(3), 10)


def test_a_new_program_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program, calls = load("unicycle_lane").program, []
    compiled = build._compile
    monkeypatch.setattr(build, "_compile", lambda *a: (calls.append(a), compiled(*a)))
    assert build.library(program) == build.library(program)
    assert len(calls) == 1
    assert build.library(program).is_relative_to(tmp_path / "safe_rl" / "kernels")


def test_the_ziglang_wheel_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: name)
    assert build.compiler()[1:] == ("-m", "ziglang", "cc")


def test_a_machine_that_does_not_tell_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> str:
        raise OSError

    build._cpu_flags.cache_clear()
    monkeypatch.setattr(build.Path, "read_text", fail)
    assert build._cpu_flags() == frozenset()
    build._cpu_flags.cache_clear()
