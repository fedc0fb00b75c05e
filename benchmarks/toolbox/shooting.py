"""The best safe trajectory of a robot by direct multiple shooting on its traced program.

    maximise    sum of reward(x_{k+1}, u_k, t_{k+1})        k = 0 .. K - 1, as `metrics` counts it
    subject to  x_{k+1} = F(x_k, u_{k-d})                   its own step, d periods of delay
                h(x_k) >= margin                            every row at every sample, k = 1 .. K
                u_low <= u_k <= u_high

from a given start. Before the first own input the stop action acts, as in a flight. CasADi
differentiates the program, IPOPT solves; what counts is the rollout of the inputs by the compiled
kernel (`fly`), from which return and margins are taken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import NDArray
from peer.casadi_rollout import casadi_function
from safe_rl_core import Bundle, Policy, Shield
from safe_rl_core.bundle import NUMERICAL_MARGIN
from safe_rl_core.kernel import Compiled
from safe_rl_core.loop import ModelPlant, run_episode
from safe_rl_systems.build import robot_program
from safe_rl_systems.robot import Robot

from toolbox.machine import ROOT

Array = NDArray[np.float64]
#: Kept beyond the margins by the solver, so that rounding of the rollout costs nothing.
SPARE = 1e-7
#: Disturbed guesses differ from the reference by up to this share of its own spread.
DISTURBANCE = 0.3
OPTIONS = {
    "ipopt.print_level": 0, "print_time": False, "ipopt.sb": "yes", "error_on_fail": False,
    "ipopt.tol": 1e-7, "ipopt.constr_viol_tol": 1e-10, "ipopt.mu_strategy": "adaptive",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is optimised: a robot for `steps` periods with `margin` (n_h,) kept from each row.

    `margin` -inf: that row does not hold. `recovery`: periods at the end without reward, after
    which the state must lie in the base set; 0: the end is free.
    """

    robot: Robot
    compiled: Compiled
    steps: int
    margin: Array
    recovery: int = 0

    @property
    def times(self) -> Array:
        """Task time after each rewarded period: (K, 1)."""
        return self.robot.system.period * np.arange(1, self.steps + 1)[:, None]

    @property
    def box(self) -> tuple[Array, Array]:
        """Lower and upper input bounds (m,)."""
        inputs = self.robot.system.inputs
        return np.array([c.low for c in inputs]), np.array([c.high for c in inputs])


@dataclass(frozen=True)
class Flight:
    """A rollout: states (K+1, n), inputs as sent (K, m), `rewards` (K,).

    `worst`: the least h - margin after the start.
    """

    label: str
    states: Array
    inputs: Array
    rewards: Array
    worst: float

    @property
    def total(self) -> float:
        """The return."""
        return float(self.rewards.sum())


@dataclass(frozen=True)
class Best:
    """The best of several local optima from one start; `found`: the return from each guess.

    nan: what IPOPT left there does not keep the margins.
    """

    flight: Flight
    found: dict[str, float]
    seconds: float


def setting(robot: Robot, steps: int, margins: str, recoverable: bool = False) -> Setting:
    """`margins`: "none" (only the numerical one), "bundle" (the robot's own), "off" (no rows)."""
    kept = {
        "none": dict.fromkeys(robot.safe_set.names, NUMERICAL_MARGIN),
        "bundle": dict.fromkeys(robot.safe_set.names, NUMERICAL_MARGIN) | robot.margins,
        "off": dict.fromkeys(robot.safe_set.names, -np.inf),
    }[margins]
    margin = np.array([kept[row] for row in robot.safe_set.names])
    recovery = robot.horizon if recoverable else 0
    return Setting(robot, Compiled(robot_program(robot)), steps, margin, recovery)


class Problem:
    """The nonlinear programme of one setting; the start is its parameter."""

    def __init__(self, case: Setting, iterations: int) -> None:
        self.case, robot, program = case, case.robot, case.compiled.program
        n, m, total = (
            len(robot.system.states),
            len(robot.system.inputs),
            case.steps + case.recovery,
        )
        self.n, self.m, self.total = n, m, total
        start, x, u = ca.MX.sym("start", n), ca.MX.sym("x", n, total), ca.MX.sym("u", m, total)
        step, safe = casadi_function(program, "step"), casadi_function(program, "safe_set")
        before = ca.horzcat(start, x[:, :-1])
        pending = ca.repmat(ca.DM(robot.stop_action), 1, robot.delay_steps)
        acting = ca.horzcat(pending, u[:, : total - robot.delay_steps])
        rows = np.flatnonzero(np.isfinite(case.margin))
        constraints = [ca.vec(x - step.map(total)(before, acting))]
        low, high = [np.zeros(n * total)], [np.zeros(n * total)]
        if len(rows):
            constraints.append(ca.vec(safe.map(total)(x)[rows.tolist(), :]))
            low.append(np.tile(case.margin[rows] + SPARE, total))
            high.append(np.full(len(rows) * total, np.inf))
        if case.recovery:
            constraints.append(casadi_function(program, "base_set")(x[:, -1]))
            low.append(np.full(len(robot.base_set.names), SPARE))
            high.append(np.full(len(robot.base_set.names), np.inf))
        reward = casadi_function(program, "reward").map(case.steps)
        scored = slice(0, case.steps)
        cost = -ca.sum2(reward(x[:, scored], u[:, scored], ca.DM(case.times.T)))
        variables, rows_g = ca.vertcat(ca.vec(x), ca.vec(u)), ca.vertcat(*constraints)
        programme = {"x": variables, "p": start, "f": cost, "g": rows_g}
        options = OPTIONS | {"ipopt.max_iter": iterations}
        self._solver = ca.nlpsol("best", "ipopt", programme, options)
        self._bounds = {"lbg": np.concatenate(low), "ubg": np.concatenate(high)}

    def solve(self, start: Array, states: Array, inputs: Array) -> Array:
        """Inputs (K, m) found from a guess: states after each period (K, n), inputs (K, m)."""
        extra = self.total - len(states)
        x, u = (np.concatenate((a, np.repeat(a[-1:], extra, 0))) for a in (states, inputs))
        low, high = self.case.box
        free = np.full(self.n * self.total, np.inf)
        found = self._solver(
            x0=np.concatenate((x.ravel(), u.ravel())),
            p=start,
            lbx=np.concatenate((-free, np.tile(low, self.total))),
            ubx=np.concatenate((free, np.tile(high, self.total))),
            **self._bounds,
        )
        flat = np.asarray(found["x"]).ravel()[self.n * self.total :]
        return np.clip(flat.reshape(-1, self.m), low, high)[: self.case.steps]


def best(
    problem: Problem, start: Array, seed: int, count: int, say: Callable[[str], None]
) -> Best:
    """Solve from every guess; the best rollout that keeps every margin."""
    case, begin, flights = problem.case, time.monotonic(), []
    tried: dict[str, float] = {}
    for label, states, inputs in guesses(case, start, seed, count):
        flown = fly(case, start, problem.solve(start, states, inputs), label)
        tried[label] = flown.total if flown.worst >= 0.0 else float("nan")
        if flown.worst >= 0.0:
            flights.append(flown)
        say(
            f"  {case.robot.name}: {label}: {flown.total:.3f}, beyond the margin {flown.worst:.1e}"
        )
    if not flights:
        raise ValueError(
            f"{case.robot.name}: from none of {len(tried)} guesses did IPOPT keep the margins; "
            "allow more iterations or give more guesses"
        )
    chosen = max(flights, key=lambda flight: flight.total)
    return Best(chosen, tried, time.monotonic() - begin)


def fly(case: Setting, start: Array, inputs: Array, label: str) -> Flight:
    """The kernel's rollout of sent inputs (K, m), scored."""
    pending = [np.array(case.robot.stop_action)] * case.robot.delay_steps
    states = [start]
    for acting in (*pending, *inputs)[: case.steps]:
        states.append(case.compiled("step", states[-1], acting))
    path = np.array(states)
    program = case.compiled.program
    rewards = program("reward", path[1:], inputs, case.times)[:, 0]
    worst = float((program("safe_set", path[1:]) - case.margin).min())
    return Flight(label, path, inputs, rewards, worst)


def starts(case: Setting, count: int, seed: int) -> list[Array]:
    """The nominal start of the task (w = 0), then `count` drawn ones."""
    size = case.robot.task.start_dimension
    draws = np.random.default_rng(seed).uniform(-1.0, 1.0, (count, size))
    return [case.compiled("initial_state", w) for w in (np.zeros(size), *draws)]


def guesses(
    case: Setting, start: Array, seed: int, count: int
) -> Iterator[tuple[str, Array, Array]]:
    """(label, states (K, n), inputs (K, m)): where the solver begins; `count` disturbed ones."""
    rng = np.random.default_rng(seed)
    reference = _continuous(case, case.compiled.program("reference", case.times))
    knots, size = max(4, case.steps // 15), reference.std(0)
    places, points = np.linspace(0.0, 1.0, case.steps), np.linspace(0.0, 1.0, knots)
    for k in range(count + 1):
        coarse = DISTURBANCE * k / max(count, 1) * size * rng.normal(size=(knots, len(size)))
        noise = np.stack([np.interp(places, points, column) for column in coarse.T], -1)
        path = moved_inside(case, reference + noise)
        label = f"reference, disturbed {k}" if k else "reference"
        yield label, path, inputs_along(case, np.vstack((start, path)))
    for flown in (backed_up(case, start), shielded(case, start)):
        if flown is not None:
            yield flown.label, flown.states[1:], flown.inputs


def shielded(case: Setting, start: Array) -> Flight | None:
    """The shipped policy behind the shield; None for a robot without a bundle."""
    folder = ROOT / "models" / case.robot.name
    if not folder.is_dir():
        return None
    bundle = Bundle.load(folder)
    propose, plant = Policy(bundle).act, ModelPlant(bundle)
    log = run_episode(bundle, plant, propose, Shield(bundle), steps=case.steps, seed=0, x0=start)
    return fly(case, start, log.u_safe, "shipped policy behind the shield")


def backed_up(case: Setting, start: Array) -> Flight:
    """The backup policy alone, asked at the state in which its input acts."""
    x, inputs = start, []
    for _ in range(case.robot.delay_steps):
        x = case.compiled("step", x, np.array(case.robot.stop_action))
    for _ in range(case.steps):
        inputs.append(case.compiled("backup_policy", x))
        x = case.compiled("step", x, inputs[-1])
    return fly(case, start, np.array(inputs), "backup policy")


def moved_inside(case: Setting, states: Array) -> Array:
    """States (K, n) moved along the gradient of each row that they violate, three times round."""
    program, moved = case.compiled.program, states.copy()
    axes = np.eye(states.shape[1])[:, None] + np.zeros((1, *states.shape))
    for _ in range(3):
        for row in np.flatnonzero(np.isfinite(case.margin)):
            slope = [program.jvp("safe_set", (moved,), (axis,))[:, row] for axis in axes]
            short = np.minimum(program("safe_set", moved)[:, row] - case.margin[row], 0.0)
            size = np.maximum(np.square(slope).sum(0), 1e-9)
            moved -= (short / size * slope).T
    return moved


def inputs_along(case: Setting, path: Array) -> Array:
    """Inputs (K, m) that come closest to leading along path (K+1, n): one Gauss-Newton step."""
    program, (low, high) = case.compiled.program, case.box
    before, after = path[:-1], path[1:]
    middle = np.tile(0.5 * (low + high), (len(before), 1))
    still = np.zeros_like(before)
    effect = [
        program.jvp("step", (before, middle), (still, axis + 0.0 * middle))
        for axis in np.eye(len(low))
    ]
    missing = after - program("step", before, middle)
    move = np.einsum("kmn,kn->km", np.linalg.pinv(np.stack(effect, -1)), missing)
    # What is sent acts `delay_steps` later.
    return np.roll(np.clip(middle + move, low, high), -case.robot.delay_steps, axis=0)


def _continuous(case: Setting, states: Array) -> Array:
    """Without jumps of 2 pi, and of q and -q the nearer to the sample before."""
    channels, path = case.robot.system.states, states.copy()
    names, angles = [c.name for c in channels], [c.unit == "rad" for c in channels]
    path[:, angles] = np.unwrap(path[:, angles], axis=0)
    if "qw" in names:
        q = path[:, names.index("qw") :][:, :4]
        q[1:] *= np.cumprod(np.sign((q[1:] * q[:-1]).sum(-1)))[:, None]
    return path


def save(path: Path, case: Setting, answer: Best, about: dict[str, Any]) -> None:
    """Trajectory and provenance as .npz: plain arrays and one JSON text, no pickle needed."""
    flight, robot = answer.flight, case.robot
    provenance = {
        "robot": robot.name,
        "program": case.compiled.program.hash,
        "states": [c.name for c in robot.system.states],
        "inputs": [c.name for c in robot.system.inputs],
        "safe_set": list(robot.safe_set.names),
        "recovery_periods": case.recovery,
        "guess": flight.label,
        "found": answer.found,
        "machine": about,
    }
    np.savez(
        path,
        t=np.append(0.0, case.times[:, 0]),
        states=flight.states,
        inputs=flight.inputs,
        rewards=flight.rewards,
        total=flight.total,
        margin=case.margin,
        provenance=json.dumps(provenance),
    )
