"""Every operation and layer in C, value and tangent: the self-test of `Compiled` is the check."""

from __future__ import annotations

import numpy as np
import pytest
from safe_rl_core.errors import KernelError
from safe_rl_core.kernel import Compiled, Kernel
from safe_rl_core.kernel.emit import emit_tangents, emit_values
from safe_rl_core.program import ACTIVATIONS, BINARY, UNARY, Program, parse

PLAIN = """function dynamics(x:2, u:1)
v0 = input x 0
v1 = input u 0
return v1 v0
function safe_set(x:2)
v0 = input x 0
return v0
function base_set(x:2)
v0 = const 1.0
return v0
function operating_state(w:2)
v0 = input w 0
v1 = input w 1
return v0 v1
"""


def zoo() -> str:
    """A `step` that uses every scalar operation on values inside of its domain."""
    lines = ["function step(x:2, u:1)", "v0 = input x 0", "v1 = input x 1", "v2 = input u 0"]
    lines += [
        "v3 = const 0.4",
        "v4 = mul v0 v3",
        "v5 = const 2.5",
        "v6 = add v1 v5",
        "v7 = mul v2 v3",
    ]
    lines += ["v8 = const inf", "v9 = const -inf", "v10 = const 3.0", "v11 = sub v10 v6"]
    total, count = "v7", 12

    def emit(text: str) -> str:
        nonlocal count
        lines.append(f"v{count} = {text}")
        count += 1
        return f"v{count - 1}"

    def accumulate(name: str) -> None:
        nonlocal total
        total = emit(f"add {total} {name}")

    for op in UNARY:
        for argument in ("v6",) if op in ("sqrt", "log") else ("v4", "v3"):
            accumulate(emit(f"{op} {argument}"))
    for op in BINARY:
        for a, b in (("v4", "v6"), ("v6", "v4"), ("v4", "v5"), ("v5", "v6")):
            if op == "div" and b == "v4":
                continue
            accumulate(emit(f"{op} {a} {b}"))
    accumulate(emit("mul v4 v4"))
    accumulate(emit("div v4 v5"))
    condition = emit("lt v4 v11")
    for a, b in (("v4", "v6"), ("v4", "v3"), ("v3", "v6"), ("v3", "v5")):
        accumulate(emit(f"where {condition} {a} {b}"))
    accumulate(emit("min v4 v8"))
    accumulate(emit("max v4 v9"))
    return "\n".join((*lines, f"return {total} v0", ""))


def layers() -> tuple[str, dict[str, np.ndarray]]:
    """A backup policy of three layers: whole outputs passed on, and single elements used."""
    rng, weights = np.random.default_rng(0), {}
    sizes = {"a": (70, 2), "b": (9, 70), "c": (3, 4)}
    for name, shape in sizes.items():
        weights[f"{name}.weight"] = rng.normal(size=shape) / np.sqrt(shape[1])
        weights[f"{name}.bias"] = rng.normal(size=shape[0])
    elements = [f"v{3 + k} = element d2 {k}" for k in range(70)]
    names = " ".join(f"v{3 + k}" for k in range(70))
    body = [
        "function backup_policy(x:2)",
        "v0 = input x 0",
        "v1 = input x 1",
        "d2 = dense a tanh v0 v1",
        *elements,
        f"d73 = dense b relu {names}",
        "v74 = element d73 0",
        "v75 = element d73 8",
        "v76 = const 0.5",
        "d77 = dense c none v74 v75 v76 v0",
        "v78 = element d77 2",
        "v79 = add v78 v5",
        "d80 = dense c tanh v76 v76 v76 v76",
        "v81 = element d80 1",
        "v82 = add v79 v81",
        "return v82",
    ]
    return "\n".join((*body, "")), weights


def test_every_operation_compiles_to_what_it_means() -> None:
    policy, weights = layers()
    text = "safe_rl_program 1\n" + PLAIN + zoo() + policy
    program = Program(parse(text), weights)
    used = {i.op for f in program.functions.values() for i in f.instructions}
    assert set(UNARY) | set(BINARY) | {"where", "dense", "element", "const", "input"} <= used
    activations = {i.activation for i in program.functions["backup_policy"].instructions}
    assert activations == set(ACTIVATIONS)
    compiled = Compiled(program)
    with np.errstate(all="ignore"):
        for x in ([np.nan, 0.1], [np.inf, 0.1], [0.3, -0.2]):
            point = np.array(x), np.array([0.2])
            fast, slow = compiled("step", *point), program("step", *point)
            assert np.array_equal(np.isnan(fast), np.isnan(slow))


def test_not_a_number_passes_through_a_layer() -> None:
    policy, weights = layers()
    program = Program(parse("safe_rl_program 1\n" + PLAIN + zoo() + policy), weights)
    assert np.isnan(Compiled(program)("backup_policy", np.array([np.nan, 0.0]))).all()


def test_what_does_not_depend_on_a_seed_has_no_tangent() -> None:
    function = parse("safe_rl_program 1\n" + PLAIN)["dynamics"]
    assert "(lanes){0}" in emit_tangents(function, ("u",))
    assert "lanes" not in emit_values(function)


def test_a_broken_emission_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong derivative rule must not survive the self-test."""
    from safe_rl_core.kernel import emit

    monkeypatch.setitem(emit._UNARY_SLOPES, "sin", "sin({0})")
    policy, weights = layers()
    with pytest.raises(KernelError, match="derivative of step"):
        Compiled(Program(parse("safe_rl_program 1\n" + PLAIN + zoo() + policy), weights))


BLIND_SPOT = """safe_rl_program 1
function dynamics(x:1, u:1)
v0 = input u 0
return v0
function step(x:1, u:1)
v0 = input x 0
v1 = input u 0
v2 = add v0 v1
return v2
function safe_set(x:1)
v0 = input x 0
v1 = mul v0 v0
v2 = const 0.25
v3 = sub v1 v2
v4 = sqrt v3
return v4
function base_set(x:1)
v0 = const 1.0
return v0
function backup_policy(x:1)
v0 = const -1.0
return v0
function operating_state(w:1)
v0 = const 5.0
v1 = input w 0
v2 = add v0 v1
return v2
"""


def test_one_row_that_is_not_a_number_spoils_the_whole_plan() -> None:
    """x goes 0.2, -0.8, -1.8, ...: only at 0.2 the row is the root of a negative number."""
    compiled = Compiled(Program(parse(BLIND_SPOT), {}))
    kernel = Kernel(compiled, np.array([0.1, 0.1, -2.0, 2.0, 1.0, 0.0]), 4)
    with np.errstate(invalid="ignore"):
        plan = kernel.verify(np.array([1.2]), np.array([-1.0]))
    assert [bool(np.isnan(h)) for h in plan.h] == [True, False, False, False, False, False]
    assert np.isnan(plan.least)
    assert plan.worst == 0
    rows = kernel.rows(np.array([1.2]))
    assert np.isnan(rows.least)
