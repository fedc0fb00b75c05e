"""How fast are other ways to do the same, in the same process?

Rollout: the backup rollout, its sensitivities (m + 1 directions) and the rows of the projection,
by our kernel, by JAX (scan + linearize + vmap under jit), by numba, and by CasADi's generated C.
Safety step: from a state and a proposal that must be corrected to a safe action. Ours is the
kernel called from Python, with its exact active-set projection; beside it the same with OSQP on
generated rows and exact repair, and the whole Shield.step. Others: OSQP given all of our rows at
once; JAX with qpax on our rows; JAX with qpax as PS2-RL's released code does it
(peer/jax_paper.py).
Everybody's states, sensitivities and rows are compared with the program's interpreter before the
clock starts (to 1e-8 relative, float64). One thread, one core, in turns; no compilation is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolbox import machine

machine.one_thread()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from peer import casadi_rollout, jax_paper, jax_rollout, numba_rollout, osqp_rows  # noqa: E402
from peer.jax_robots import jax_robot  # noqa: E402
from safe_rl_core.loop import recoverable_state  # noqa: E402
from safe_rl_core.projection import Projection  # noqa: E402
from safe_rl_core.shield import Shield  # noqa: E402
from toolbox.cases import EPISODE, Case, cases, episodes, training_steps, without_delay  # noqa: E402
from toolbox.report import Cell, Report, Table, Target, run_script, say, text  # noqa: E402
from toolbox.timing import quantiles, round_robin  # noqa: E402
from toolbox.twin import TOLERANCE, Answer, difference, kernel_difference, twin  # noqa: E402

Array = NDArray[np.float64]
Call = Callable[[int], object]
PACKAGES = ("safe_rl_core", "numpy", "osqp", "torch", "jax", "qpax", "numba", "casadi")
OURS = "ours"
#: States that the rollouts are timed on, and pairs of state and proposal for the safety step.
STATES, PAIRS = 8, 100
REPETITIONS = 40
#: Problems of the safety step that one contestant solves in a row.
BLOCK = 10


class Disagreement(Exception):
    """A contestant does not compute what it is compared for."""


def check(name: str, got: tuple[Any, ...], expected: Answer) -> None:
    """Raise unless states, sensitivities and rows agree with the interpreter."""
    parts = (expected.states, expected.tangents, expected.a, expected.b)
    error = max(difference(g, e) for g, e in zip(got, parts, strict=True))
    if not error <= TOLERANCE:
        raise Disagreement(
            f"{name} differs from the interpreter by {error:.1e} (allowed {TOLERANCE})"
        )


def rollouts(
    case: Case, folder: Path, quick: bool
) -> dict[str, Callable[[Array], tuple[Any, ...]]]:
    """Everybody who computes rollout, sensitivities and rows, ready to be called."""
    bundle, robot = case.bundle, jax_robot(case.robot, jnp.float64)

    def waited(call: Callable[[Any], Any]) -> Callable[[Array], tuple[Any, ...]]:
        return lambda x: jax.block_until_ready(call(x))

    found = {"JAX jit": waited(jax_rollout.rows(robot, bundle, jnp.float64))}
    if not quick:
        former = jax_rollout.rows(robot, bundle, jnp.float64, jax_rollout.WHOLE_LOOP)
        found["JAX jit, XLA's former CPU runtime"] = waited(former)
        found["numba, fastmath"] = numba_rollout.rows(bundle)
    return found | {"CasADi, generated C": casadi_rollout.rows(bundle, folder)}


def race_rollouts(case: Case, folder: Path, quick: bool) -> dict[str, Array]:
    """Times in µs per contestant, after the comparison with the interpreter."""
    bundle, rng = case.bundle, np.random.default_rng(3)
    states = [recoverable_state(bundle, rng) for _ in range(2 if quick else STATES)]
    others = rollouts(case, folder, quick)
    for x in states[:3]:
        expected = twin(bundle, x)
        error = kernel_difference(bundle, x, expected)
        if not error <= TOLERANCE:
            raise Disagreement(f"our kernel differs from the interpreter by {error:.1e}")
        for name, call in others.items():
            check(f"{case.label}: {name}", call(x), expected)
    kernel = bundle.kernel()
    calls: dict[str, Call] = {OURS: lambda i: kernel.rows(states[i])}
    for name, call in others.items():
        calls[name] = lambda i, call=call: call(states[i])
    return round_robin(calls, range(len(states)), 3 if quick else REPETITIONS, STATES)


def pairs(case: Case, count: int) -> list[tuple[Array, Array]]:
    """States of the closed loop with proposals (m,) that have to be projected, and can be."""
    bundle, found = case.bundle, []
    shield = Shield(bundle)
    for plant, propose, x in episodes(bundle, seed=2):
        shield.reset()
        for step in range(EPISODE):
            proposal = propose(x, plant.time)
            result = shield.step(x, proposal)
            if result.qp_used and proposal is not None and step % 3 == 0:
                proposal = np.clip(proposal, 2 * bundle.input_low, 2 * bundle.input_high)
                shield.kernel.rows(x)
                if shield.kernel.project(proposal / bundle.input_scale)[0] is not None:
                    found.append((x.copy(), proposal))
            if len(found) == count:
                return found
            x = plant.step(result.action)
    raise AssertionError("episodes never end")


def safety_steps(case: Case, problems: list[tuple[Array, Array]], quick: bool) -> dict[str, Call]:
    """Everybody who turns problem i into an action (m,) in SI units."""
    bundle, scale = case.bundle, case.bundle.input_scale
    low, high = bundle.input_low, bundle.input_high
    kernel, shield = bundle.kernel(), Shield(bundle)
    ours = Projection(kernel, low / scale, high / scale)

    def generated(i: int) -> Array:
        rows = kernel.rows(problems[i][0])
        v_d = problems[i][1] / scale
        row, _ = kernel.scan(v_d)
        v = ours(rows, v_d, row)
        return problems[i][1] if v is None else v * scale

    def exact(i: int) -> Array:
        kernel.rows(problems[i][0])
        v, _ = kernel.project(problems[i][1] / scale)
        return problems[i][1] if v is None else v * scale

    calls: dict[str, Call] = {
        OURS: exact,
        "ours with OSQP, as the shield does it": generated,
        "ours, whole Shield.step (verified)": lambda i: shield.step(*problems[i]).action,
    }
    for eps in (1e-3, 1e-6):
        solve = osqp_rows.projection(bundle, eps)
        calls[f"our rows, OSQP on all of them, eps {eps:.0e}"] = lambda i, solve=solve: (
            solve(kernel.rows(problems[i][0]), problems[i][1] / scale) * scale
        )
    robot = jax_robot(case.robot, jnp.float64)
    same = jax_paper.same_projection(robot, bundle, jnp.float64)
    calls["JAX + qpax, our rows, no slack, f64"] = lambda i: np.asarray(same(*problems[i]))
    for dtype in (jnp.float64,) if quick else (jnp.float64, jnp.float32):
        layer = jax_paper.safety_layer(jax_robot(case.robot, dtype), bundle, dtype)
        inputs = [tuple(jnp.asarray(part, dtype) for part in problem) for problem in problems]
        name = f"JAX + qpax as published, {'f64' if dtype == jnp.float64 else 'f32'}"
        calls[name] = lambda i, layer=layer, inputs=inputs: np.asarray(layer(*inputs[i])[0])
    return calls


def check_published(case: Case, x: Array) -> None:
    """The published sensitivities against the interpreter's Jacobians and scipy's exponential."""
    robot = jax_robot(case.robot, jnp.float64)
    got = jax.jit(lambda y: jax_paper.sensitivities(robot, case.bundle, y))(x)
    for part, expected in zip(got, jax_paper.twin_sensitivities(case.bundle, x), strict=True):
        error = difference(part, expected)
        if not error <= TOLERANCE:
            raise Disagreement(f"{case.label}: published sensitivities differ by {error:.1e}")


def judge(case: Case, problems: list[tuple[Array, Array]], call: Call) -> tuple[float, float]:
    """Worst violation of our rows and the box, and the share of answers whose plan is unsafe."""
    kernel, worst, broken = case.bundle.kernel(), 0.0, 0
    for i, (x, _) in enumerate(problems):
        u = np.asarray(call(i), np.float64)
        kernel.rows(x)
        worst = max(worst, -kernel.scan(u / case.bundle.input_scale)[1])
        broken += bool((kernel.verify(x, u).h < -1e-9).any())
    return worst, broken / len(problems)


def race_safety_steps(
    case: Case, quick: bool
) -> tuple[dict[str, Array], dict[str, tuple[float, float]]]:
    """Per contestant the fastest of some repetitions per problem in µs, and its quality."""
    case = without_delay(case)
    problems = pairs(case, 10 if quick else PAIRS)
    check_published(case, problems[0][0])
    calls = safety_steps(case, problems, quick)
    quality = {name: judge(case, problems, call) for name, call in calls.items()}
    times = round_robin(calls, range(len(problems)), 2 if quick else 4, BLOCK)
    return {name: values.min(axis=0) for name, values in times.items()}, quality


def measure(args: argparse.Namespace) -> Report:
    """All cases."""
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    report = Report("peers", (__doc__ or "").split("\n")[0], machine.describe(PACKAGES))
    everyone = cases(training_steps(args.quick), say)
    chosen = [c for c in everyone if c.bundle.horizon == 50] if args.quick else everyone
    raced: list[tuple[Case, dict[str, Array]]] = []
    for case in chosen:
        say(f"{case.label}: compiling, comparing and timing the rollouts …")
        with tempfile.TemporaryDirectory() as folder:
            raced.append((case, race_rollouts(case, Path(folder), args.quick)))
    _rollout_table(report, raced)
    for case in [c for c in chosen if c.bundle.horizon <= 100]:
        say(f"{case.label}: compiling and timing the safety steps …")
        _step_table(report, case, *race_safety_steps(case, args.quick))
    report.notes.append(
        "Rollouts: fastest / median over all calls, in brackets how many times slower than ours "
        "(fastest over fastest); ours also writes d row / d lateness and finds the worst row. "
        "Safety steps: per problem the fastest of four, then the median and p99 over problems. "
        "Violation: of our rows or the box, in units of v = u / input_scale, where the answer "
        "rests on the same rows. Unsafe plan: share of answers after which the backup rollout "
        "from the next state leaves the safe set or misses the base set."
    )
    return report


def _rollout_table(report: Report, raced: list[tuple[Case, dict[str, Array]]]) -> None:
    names = list(raced[0][1])
    table = Table(
        "Rollout, sensitivities and rows, f64, µs: fastest / median (times ours)",
        ("by", *(case.label for case, _ in raced)),
    )
    for name in names:
        cells: list[Cell] = [name]
        for case, times in raced:
            fastest, median = float(times[name].min()), float(np.median(times[name]))
            ratio = fastest / float(times[OURS].min())
            cells.append(f"{text(fastest)} / {text(median)} ({text(ratio)}×)")
            numbers = report.numbers.setdefault(f"rollout_{case.key}", {})
            numbers[name] = {"min_us": fastest, "median_us": median, "ratio": ratio}
            if name == "JAX jit":
                report.targets.append(Target(f"JAX jit: {case.label}", ratio, ">=", 4.0, "× ours"))
        table.rows.append(cells)
    report.tables.append(table)


def _step_table(
    report: Report, case: Case, times: dict[str, Array], quality: dict[str, tuple[float, float]]
) -> None:
    table = Table(
        f"Safety step where the proposal must be corrected, µs: {case.label}",
        ("by", "median", "p99", "times ours", "worst violation", "unsafe plan"),
    )
    ours = float(np.median(times[OURS]))
    for name, values in times.items():
        q, (worst, broken) = quantiles(values), quality[name]
        ratio = q["p50"] / ours
        same_rows = "published" not in name and "verified" not in name
        table.rows.append(
            [
                name,
                q["p50"],
                q["p99"],
                ratio,
                worst if same_rows else "other rows",
                f"{100 * broken:.0f} %",
            ]
        )
        numbers = report.numbers.setdefault(f"step_{case.key}", {})
        numbers[name] = {"us": q, "ratio": ratio, "violation": worst, "unsafe_plans": broken}
        if name.endswith("published, f64"):
            target = Target(f"JAX + qpax as published: {case.label}", ratio, ">=", 20.0, "× ours")
            report.targets.append(target)
    report.tables.append(table)


if __name__ == "__main__":
    raise SystemExit(run_script("peers", __doc__ or "", measure))
