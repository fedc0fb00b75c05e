"""A committed plan of each robot, its tube, and flights that follow it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from common import BASE, TUBE, Array, label
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from safe_rl.report import style
from safe_rl.report.geometry import boundaries, channel_index
from safe_rl_core.assumed import AssumedPlant, displaced
from safe_rl_core.audit.plans import growth, linearised
from safe_rl_core.audit.slopes import jacobian
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import KernelError
from safe_rl_core.kernel.robust import RobustKernel
from safe_rl_core.loop import operating_state
from safe_rl_core.robust_shield import RobustShield

#: Starts among which the plan with the least room at a wall is drawn; flights that follow it.
STARTS, FLIGHTS = 300, 40
#: How long the base controller is shown after the end of a plan, as a share of the plan.
TAIL = 0.4
#: Two channels that are drawn themselves; these and a third as deviations from the plan.
SHOWN = {"unicycle": ("py", "theta", "v"), "quadrotor": ("pz", "vz", "px")}


@dataclass(frozen=True)
class Plan:
    """A committed plan: estimate at the decision (n,), z_j (N+1, n), inputs, generators G_j."""

    start: Array
    states: Array
    inputs: Array
    generators: list[Array]
    base_point: Array


def _tight_plan(bundle: Bundle) -> Plan:
    """Of the backup plans from random states, the VALID one with the least room at a wall."""
    shield, rng, best = RobustShield(bundle), np.random.default_rng(1), None
    for _ in range(STARTS):
        x = operating_state(bundle, rng)
        shield.reset()
        result = shield.step(x, None)
        at_wall = result.critical_row.split("@")[0] in bundle.safe_set_names
        if result.margin >= 0.0 and at_wall and (best is None or result.margin < best[0]):
            best = result.margin, x, result.plan_states.copy(), result.plan_inputs.copy()
    if best is None:
        raise SystemExit(
            f"none of {STARTS} starts of {bundle.name} has a plan that ends at a wall"
        )
    _, start, states, inputs = best
    point = bundle.program("base_point", states[-1])
    return Plan(start, states, inputs, _generators(bundle, states, inputs), point)


def _generators(bundle: Bundle, z: Array, u: Array) -> list[Array]:
    """The tube's G_0 .. G_N of a plan, by the audit's formulas; the kernel must agree."""
    c = bundle.robust
    known = SimpleNamespace(program=bundle.program, c=c)
    _, cell, a, b = linearised(known, z[:-1], u[:-1])
    g, found = np.diag(c.prediction_error), []
    for j in range(len(z)):
        found.append(g)
        if j == len(z) - 1:
            break
        gain = c.tracking_gain * (j > 0)
        v = np.abs(gain @ g).sum(1) + np.abs(gain) @ c.tracking_error
        w = growth(known, cell[j : j + 1], np.abs(g).sum(1)[None], v[None], np.ones(1))[0]
        w += np.abs(b[j] @ gain) @ c.tracking_error
        g = np.hstack(((a[j] + b[j] @ gain) @ g, np.diag(w)))
    compiled = RobustKernel.of(bundle).replay(z[0], u).errors
    if not np.allclose([np.abs(g).sum(1) for g in found], compiled, rtol=1e-6):
        raise KernelError(f"{bundle.name}: the tube that is drawn is not the kernel's")
    return found


def _drawn_corners(bundle: Bundle, plan: Plan, seed: int, steps: int) -> Array:
    """True states (steps, n) from where the plan takes effect, at random corners of all bounds."""
    plant, shield = AssumedPlant(bundle, "corner"), RobustShield(bundle)
    eta = bundle.compiled("difference", plan.start, plant.reset(seed, plan.start)).copy()
    x = plant.reset(seed, bundle.compiled("retract", plan.start, eta))  # estimated: plan.start
    result, seen = shield.step(x, None), []
    for _ in range(bundle.delay_steps + steps):
        seen.append(plant.state)
        result = shield.continue_plan(plant.step(result.action))
    _check_same(result.plan_states, plan)
    return np.array(seen[bundle.delay_steps :])


def _worst_corners(bundle: Bundle, plan: Plan, row: Array, steps: int) -> Array:
    """The same with the corners that, to first order, move row @ e furthest at the plan's end."""
    c, delay, last = bundle.robust, bundle.delay_steps, bundle.horizon
    _, _, a, b = linearised(
        SimpleNamespace(program=bundle.program, c=c), plan.states[:-1], plan.inputs[:-1]
    )
    pull = np.tile(row, (last + steps, 1))  # what an error at node j does to the end
    read = np.zeros((last + steps, len(row)))  # what an error of the estimate used at j does
    for j in reversed(range(last)):
        held = b[j] @ c.tracking_gain * (j > 0)
        pull[j], read[j] = pull[j + 1] @ (a[j] + held), pull[j + 1] @ held
        for i in range(max(j - delay, 0), j):
            read[j] = read[j] @ a[i]
    shield = RobustShield(bundle)
    x = bundle.compiled("retract", plan.start, c.estimate_error * np.sign(pull[0] @ a[0]))
    result = shield.step(plan.start, None)
    pending, seen = [bundle.stop_action] * delay, []
    for k in range(delay + steps):
        seen.append(x.copy())
        acting, *pending = [*pending, result.action]
        moved = bundle.compiled("step", x, acting)
        w = c.disturbance * np.sign(pull[max(k + 1 - delay, 0)])
        x = bundle.compiled("retract", moved, w).copy()
        eta = -c.estimate_error * np.sign(read[k + 1])
        result = shield.continue_plan(displaced(bundle, x, eta))
    _check_same(result.plan_states, plan)
    return np.array(seen[delay:])


def _check_same(states: Array, plan: Plan) -> None:
    if not np.allclose(states, plan.states, atol=1e-9):
        raise KernelError("a flight follows another plan than the one that is drawn")


def tubes(name: str) -> Figure:
    """A plan with its tube, the flights that follow it, and the base set that receives them."""
    bundle = Bundle.load(name)
    plan = _tight_plan(bundle)
    steps = bundle.horizon + 1 + int(TAIL * bundle.horizon)
    flights = [_drawn_corners(bundle, plan, seed, steps) for seed in range(FLIGHTS)]
    for channel in SHOWN[bundle.robot]:
        row = _rows(bundle, plan.states[-1:], channel)[0]
        flights += [_worst_corners(bundle, plan, sign * row, steps) for sign in (1.0, -1.0)]
    flights = np.array(flights)
    with style.figure_style():
        figure = Figure(figsize=(7.6, 5.4), layout="constrained")
        above, below = figure.subplots(2, 3, sharex=True)
        for axes, channel in zip(above, SHOWN[bundle.robot][:2], strict=False):
            _course(axes, bundle, plan, flights, channel)
        _distance_to_base(above[2], bundle, plan, flights)
        for axes, channel in zip(below, SHOWN[bundle.robot], strict=True):
            _deviation(axes, bundle, plan, flights, channel)
            axes.set_xlabel("time (s)")
        for axes in (*above, *below):
            axes.axvline(bundle.horizon * bundle.period, color=style.MUTED, linewidth=0.9)
            axes.set_xlim(0.0, (steps - 1) * bundle.period)
        above[0].set_title(name)
        handles = [
            Line2D([], [], color=style.INK, linewidth=1.4, label="plan"),
            Patch(color=TUBE, alpha=0.45, linewidth=0, label="tube"),
            Line2D(
                [], [], color=style.SAFE_ACTION, linewidth=0.8, label=f"{len(flights)} flights"
            ),
            Patch(color=BASE, alpha=0.3, linewidth=0, label="base set"),
            Line2D([], [], color=style.DANGER, label="end of the safe set"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8.5)
    return figure


def _rows(bundle: Bundle, states: Array, channel: str) -> Array:
    """d channel of (z [+] e) / d e at each state z: (N, k)."""
    none = np.zeros((len(states), len(bundle.robust.disturbance)))
    return jacobian(bundle.program, "retract", (states, none), (1,))[
        :, channel_index(bundle, channel)
    ]


def _half_widths(bundle: Bundle, plan: Plan, channel: str) -> tuple[Array, float]:
    """Of the tube along one state channel (N+1,), and of the base set."""
    rows = _rows(bundle, plan.states, channel)
    widths = [np.abs(row @ g).sum() for row, g in zip(rows, plan.generators, strict=True)]
    at_rest = _rows(bundle, plan.base_point[None], channel)[0]
    base = np.linalg.norm(np.linalg.solve(bundle.robust.base.factor, at_rest))
    return np.array(widths), float(base)


def _course(axes: Axes, bundle: Bundle, plan: Plan, flights: Array, channel: str) -> None:
    """One channel with the walls near it."""
    column, period = channel_index(bundle, channel), bundle.period
    half, reach = _half_widths(bundle, plan, channel)
    middle, rest = plan.states[:, column], plan.base_point[column]
    times = period * np.arange(flights.shape[1])
    own = times[: len(middle)]
    axes.fill_between(own, middle - half, middle + half, color=TUBE, alpha=0.45, linewidth=0)
    axes.fill_between(
        times[len(middle) - 1 :], rest - reach, rest + reach, color=BASE, alpha=0.3, linewidth=0
    )
    axes.plot(times, flights[..., column].T, color=style.SAFE_ACTION, linewidth=0.5, alpha=0.6)
    axes.plot(own, middle, color=style.INK, linewidth=1.2)
    ends = [*(middle - half), *(middle + half), rest - reach, rest + reach]
    span = max(ends) - min(ends)
    for wall in boundaries(bundle, channel, -15.0, 15.0, plan.base_point):
        if min(ends) - 0.6 * span < wall.value < max(ends) + 0.6 * span:
            axes.axhline(wall.value, color=style.DANGER, linewidth=1.4)
            ends.append(wall.value)
    room = 0.05 * (max(ends) - min(ends))
    axes.set_ylim(min(ends) - room, max(ends) + room)
    axes.set_ylabel(label(channel, bundle.states[column].unit))


def _deviation(axes: Axes, bundle: Bundle, plan: Plan, flights: Array, channel: str) -> None:
    """How far the flights are from the plan along one channel, inside of the tube."""
    column, count = channel_index(bundle, channel), len(plan.states)
    half, _ = _half_widths(bundle, plan, channel)
    times = bundle.period * np.arange(count)
    off = flights[:, :count, column] - plan.states[:, column]
    axes.fill_between(times, -half, half, color=TUBE, alpha=0.45, linewidth=0)
    axes.plot(times, off.T, color=style.SAFE_ACTION, linewidth=0.5, alpha=0.6)
    axes.axhline(0.0, color=style.INK, linewidth=1.2)
    axes.set_ylabel(label(channel, bundle.states[column].unit, " − plan"))


def _distance_to_base(axes: Axes, bundle: Bundle, plan: Plan, flights: Array) -> None:
    """|L'(x [-] x*)|, which V4 brings below 1 at the end of the plan."""
    c = bundle.robust

    def size(states: Array) -> Array:
        e = bundle.program("difference", states, np.broadcast_to(plan.base_point, states.shape))
        return np.linalg.norm(e @ c.base.factor, axis=-1)

    period, k = bundle.period, len(c.disturbance)
    times, own = period * np.arange(flights.shape[1]), size(plan.states)
    axes.plot(times, size(flights).T, color=style.SAFE_ACTION, linewidth=0.5, alpha=0.6)
    axes.plot(times[: len(own)], own, color=style.INK, linewidth=1.2)
    off = bundle.program("difference", plan.states[-1], plan.base_point)
    turn = jacobian(bundle.program, "shifted", (off, 0.0 * off), (1,))
    g = plan.generators[-1]
    box = np.abs(g).sum(1)
    rest = 0.5 * np.einsum("i,rij,j->r", box, c.shift_remainder[:, k:, k:], box)
    spread = np.linalg.norm(np.abs(c.base.factor.T @ turn @ g).sum(1))
    spread += np.linalg.norm(np.abs(c.base.factor.T) @ rest)
    end = period * (len(own) - 1)
    axes.plot([end, end], [own[-1], own[-1] + spread], color=TUBE, linewidth=4.0, zorder=5)
    axes.axhspan(0.0, 1.0, color=BASE, alpha=0.3, linewidth=0)
    axes.annotate("V4", (end, own[-1] + spread), (4, 2), textcoords="offset points", fontsize=9)
    axes.set_ylim(0.0, 2.0)  # what is above 1 is no matter of the base set
    axes.set_ylabel("‖Lᵀ(x ⊟ x*)‖")
