"""The program: a hand-worked case, its text form, its derivative, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safe_rl_core import Bundle
from safe_rl_core.errors import ProgramError
from safe_rl_core.program import Function, Instruction, Program, parse

HAND = """safe_rl_program 1
function f(x:2, u:1)
v0 = input x 0
v1 = input x 1
v2 = input u 0
v3 = const 0.5
v4 = mul v0 v1
v5 = lt v4 v3
v6 = sub v2 v4
v7 = sqrt v4
v8 = where v5 v6 v7
return v8 v4
"""


LAYER = (Instruction("input", name="x"), Instruction("dense", (0,), name="l"))


def test_hand_worked_values() -> None:
    program = Program(parse(HAND), {})
    x, u = np.array([[1.0, 0.25], [2.0, 8.0]]), np.array([[1.0], [1.0]])
    assert program("f", x, u).tolist() == [[0.75, 0.25], [4.0, 16.0]]


def test_hand_worked_derivative() -> None:
    program = Program(parse(HAND), {})
    point = (np.array([2.0, 8.0]), np.array([1.0]))
    slope = program.jvp("f", point, (np.array([1.0, 0.0]), np.array([5.0])))
    assert slope.tolist() == [8.0 * 0.5 / 4.0, 8.0]


def test_dense_layer_by_hand() -> None:
    weights = {"l.weight": np.array([[1.0, -1.0]]), "l.bias": np.array([0.5])}
    body = (
        Instruction("input", name="x", index=0),
        Instruction("input", name="x", index=1),
        Instruction("dense", (0, 1), name="l", activation="relu"),
        Instruction("element", (2,), index=0),
    )
    program = Program({"f": Function("f", (("x", 2),), body, (3,))}, weights)
    assert program("f", np.array([[2.0, 1.0], [0.0, 1.0]])).tolist() == [[1.5], [0.0]]


def test_text_round_trip_keeps_every_bit(bundle: Bundle, tmp_path: Path) -> None:
    bundle.program.save(tmp_path / "p.txt")
    again = Program.load(tmp_path / "p.txt")
    assert again.hash == bundle.program.hash
    assert again.text() == bundle.program.text()


def test_weights_are_part_of_the_hash() -> None:
    body = (
        Instruction("input", name="x"),
        Instruction("dense", (0,), name="l"),
        Instruction("element", (1,)),
    )
    functions = {"f": Function("f", (("x", 1),), body, (2,))}
    one = Program(functions, {"l.weight": np.ones((1, 1)), "l.bias": np.zeros(1)})
    two = Program(functions, {"l.weight": np.full((1, 1), 1.0 + 1e-16 * 4), "l.bias": np.zeros(1)})
    assert one.hash != two.hash


def test_jvp_agrees_with_finite_differences(bundle: Bundle) -> None:
    rng = np.random.default_rng(3)
    w = rng.uniform(-1, 1, (200, bundle.program.functions["operating_state"].inputs[0][1]))
    x = bundle.program("operating_state", w)
    u = rng.uniform(bundle.input_low, bundle.input_high, (200, len(bundle.inputs)))
    d_x, d_u = rng.normal(size=x.shape), rng.normal(size=u.shape)
    step = 1e-6
    ahead = bundle.program("step", x + step * d_x, u + step * d_u)
    behind = bundle.program("step", x - step * d_x, u - step * d_u)
    slope = bundle.program.jvp("step", (x, u), (d_x, d_u))
    assert np.allclose((ahead - behind) / (2 * step), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("safe_rl_program 1", "safe_rl_program 9"), "first line"),
        (("mul v0 v1", "frobnicate v0 v1"), "unknown operation 'frobnicate'"),
        (("mul v0 v1", "mul v0 v9"), "cannot read"),
        (("input x 1", "input x 7"), "no component 7"),
        (("sub v2 v4", "sub v2"), "needs 2 arguments, got 1"),
        (("function f(x:2, u:1)", "# nothing"), "outside of a function"),
    ],
)
def test_malformed_files_are_refused(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        Program(parse(HAND.replace(*change), "here"), {})


def test_missing_weights_and_wrong_shapes_are_refused() -> None:
    body = (
        Instruction("input", name="x"),
        Instruction("dense", (0,), name="l"),
        Instruction("element", (1,)),
    )
    functions = {"f": Function("f", (("x", 1),), body, (2,))}
    with pytest.raises(ProgramError, match="weights of layer 'l' are missing"):
        Program(functions, {})
    with pytest.raises(ProgramError, match=r"expected \(rows, 1\)"):
        Program(functions, {"l.weight": np.ones((1, 2)), "l.bias": np.zeros(1)})


@pytest.mark.parametrize(
    ("body", "outputs", "message"),
    [
        ((Instruction("magic"),), (0,), "unknown operation"),
        ((Instruction("neg", (0,)),), (0,), "not defined before it"),
        ((*LAYER, Instruction("neg", (1,))), (2,), "must be taken apart"),
        ((*LAYER, Instruction("element", (1,), index=5)), (2,), "no component 5 of layer"),
        ((*LAYER,), (1,), "returns a value that is not a number"),
        ((Instruction("input", name="x"),), (4,), "returns a value that is not a number"),
        (
            (
                Instruction("input", name="x"),
                Instruction("dense", (0,), name="l", activation="wow"),
            ),
            (0,),
            "activation 'wow'",
        ),
    ],
)
def test_malformed_functions_are_refused(body: tuple, outputs: tuple, message: str) -> None:
    weights = {"l.weight": np.ones((2, 1)), "l.bias": np.zeros(2)}
    with pytest.raises(ProgramError, match=message):
        Program({"f": Function("f", (("x", 1),), body, outputs)}, weights)


def test_weights_survive_the_file(tmp_path: Path) -> None:
    body = (*LAYER, Instruction("element", (1,), index=1))
    weights = {"l.weight": np.array([[0.1], [0.2]]), "l.bias": np.array([0.3, 0.4])}
    program = Program({"f": Function("f", (("x", 1),), body, (2,))}, weights)
    program.save(tmp_path / "p.txt")
    again = Program.load(tmp_path / "p.txt")
    assert again.hash == program.hash
    assert again("f", np.array([2.0])).tolist() == [0.2 * 2.0 + 0.4]


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ProgramError, match="got 'an empty file'"):
        parse("")


def test_calls_with_wrong_arrays_say_what_was_expected() -> None:
    program = Program(parse(HAND), {})
    with pytest.raises(ProgramError, match="no function 'g'; it has f"):
        program("g", np.zeros(2))
    with pytest.raises(ProgramError, match="takes 2 arrays"):
        program("f", np.zeros(2))
    with pytest.raises(ProgramError, match=r"'x' must have shape \(..., 2\), got \(3,\)"):
        program("f", np.zeros(3), np.zeros(1))
