"""Floating-point operations of a rollout, counted from the traced program.

The rule, chosen so that the limit computed from it is a lower bound:

- a dense layer costs 2 rows columns for the value and for each direction;
- add, sub, mul, div and every elementary function (sqrt, sin, tanh, …, of a scalar or of a layer's
  element) cost 1 for the value, though a tanh takes some forty instructions' worth of arithmetic;
- a tangent costs, per direction, what the chain rule needs: 0 for a sum with a constant, 1 for a
  sum, for a product with a constant and for an elementary function, 3 for a product or quotient of
  two varying values; and 1 more per elementary function for its slope;
- comparisons, choices, signs, absolute values and the moving of numbers cost nothing;
- what does not depend on a seeded input has no tangent.
"""

from __future__ import annotations

from collections.abc import Sequence

from safe_rl_core.bundle import Bundle
from safe_rl_core.kernel.build import TANGENT_INPUTS
from safe_rl_core.program import Function, Instruction, Program

ELEMENTARY = frozenset({"sqrt", "exp", "log", "sin", "cos", "asin", "atan", "tanh", "atan2"})
ARITHMETIC = frozenset({"add", "sub", "mul", "div"})


def function_flops(
    program: Program, name: str, seeded: Sequence[str] = (), directions: int = 0
) -> int:
    """Operations of one evaluation with `directions` tangents of the seeded inputs."""
    function = program.functions[name]
    varies: list[bool] = []
    total = 0
    for ins in function.instructions:
        moving = sum(varies[k] for k in ins.args)
        varies.append(
            ins.name in seeded if ins.op == "input" else _differentiable(ins) and moving > 0
        )
        tangents = directions if varies[-1] else 0
        total += (
            _dense(program, ins, tangents) if ins.op == "dense" else _scalar(ins, moving, tangents)
        )
    return total


def _differentiable(ins: Instruction) -> bool:
    return ins.op not in ("const", "sign", "floor", "not", "lt", "le", "eq", "and", "or")


def _dense(program: Program, ins: Instruction, tangents: int) -> int:
    rows, columns = program.weights[f"{ins.name}.weight"].shape
    total = 2 * rows * columns * (1 + tangents)
    if ins.activation == "tanh":
        total += rows * (1 + ((2 + tangents) if tangents else 0))
    return total


def _scalar(ins: Instruction, moving: int, tangents: int) -> int:
    if ins.op in ELEMENTARY:
        return 1 + ((1 + tangents) if tangents else 0)
    if ins.op not in ARITHMETIC:
        return 0
    if ins.op in ("add", "sub"):
        return 1 + (moving - 1) * tangents if tangents else 1
    return 1 + (1 if moving == 1 else 3) * tangents


def rows_flops(bundle: Bundle) -> int:
    """`Kernel.rows`: the rollout with m + 1 tangents, and 6 m for each normalised row."""
    program, m, n = bundle.program, len(bundle.inputs), bundle.horizon
    cost = {
        name: function_flops(program, name, seeded, m + 1)
        for name, seeded in TANGENT_INPUTS.items()
    }
    start = function_flops(program, "backup_policy") + function_flops(program, "dynamics")
    nodes = (n + 1) * (cost["step"] + cost["safe_set"]) + n * cost["backup_policy"]
    return start + nodes + cost["base_set"] + 6 * m * num_rows(bundle)


def verify_flops(bundle: Bundle) -> int:
    """`Kernel.verify`: the rollout without tangents."""
    program, n = bundle.program, bundle.horizon
    cost = {name: function_flops(program, name) for name in TANGENT_INPUTS}
    nodes = (n + 1) * (cost["step"] + cost["safe_set"]) + n * cost["backup_policy"]
    return nodes + cost["base_set"]


def scan_flops(bundle: Bundle) -> int:
    """One look at every row and the box: 2 m each."""
    m = len(bundle.inputs)
    return 2 * m * (num_rows(bundle) + 2 * m)


def num_rows(bundle: Bundle) -> int:
    """Rows of the projection without the box."""
    return (bundle.horizon + 1) * len(bundle.safe_set_names) + len(bundle.base_set_names)


def dense_share(bundle: Bundle) -> float:
    """Share of a policy evaluation's operations that lies in dense layers."""
    program = bundle.program
    function: Function = program.functions["backup_policy"]
    dense = sum(_dense(program, ins, 0) for ins in function.instructions if ins.op == "dense")
    return dense / function_flops(program, "backup_policy")
