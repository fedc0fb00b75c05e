"""The published safety layer: JAX rollout with continuous rows, and its QP by qpax.

As PS2-RL's released code does it, on our robots: sensitivities Q_{k+1} = expm(dt J_k) Q_k of the
continuous closed loop, rows with the relative-time term

    grad h_j(x_k) . [Q_k (f(x) + g(x) u) - f_cl(x_k)] >= -alpha h_j(x_k)          k = 0..N
    grad h_B(x_N) . Q_N (f(x) + g(x) u)              >= -alpha_B h_B(x_N),

each divided by max(1, its largest entry), the QP over (u, delta) with one slack delta of weight w,
inputs in physical units, solved by qpax's interior point to the published tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qpax
import scipy.linalg
from safe_rl_core.bundle import Bundle

from peer.jax_robots import JaxRobot
from peer.jax_rollout import rows

Array = jax.Array
TARGET_KAPPA = 1e-2


@dataclass(frozen=True)
class Published:
    """Slack weight and solver tolerance of one robot in the released configuration."""

    slack_weight: float
    tolerance: float


PUBLISHED = {"unicycle": Published(1e5, 1e-4), "quadrotor": Published(1e6, 5e-4)}


def sensitivities(robot: JaxRobot, bundle: Bundle, x: Array) -> tuple[Array, Array]:
    """x_0..x_N (N+1, n) and Q_0..Q_N (N+1, n, n)."""

    def field(y: Array) -> Array:
        return robot.dynamics(y, robot.backup(y))

    def advance(
        carry: tuple[Array, Array], _: None
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        y, q = carry
        grown = jax.scipy.linalg.expm(bundle.period * jax.jacfwd(field)(y)) @ q
        size = jnp.sqrt((grown * grown).sum())
        grown = jnp.where(size > 1e6, grown * (1e6 / size), grown)
        return (robot.closed_loop(y), grown), carry

    start = (x, jnp.eye(len(x), dtype=x.dtype))
    last, before = jax.lax.scan(advance, start, None, length=bundle.horizon)
    return jnp.concatenate((before[0], last[0][None])), jnp.concatenate((before[1], last[1][None]))


def safety_layer(
    robot: JaxRobot, bundle: Bundle, dtype: Any, options: dict[str, Any] | None = None
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(x, u_proposed) -> (u safe (m,), slack); one jitted function."""
    m, published = len(bundle.inputs), PUBLISHED[bundle.robot]
    low, high = jnp.array(bundle.input_low, dtype), jnp.array(bundle.input_high, dtype)
    weight = jnp.array([1.0] * m + [published.slack_weight], dtype)
    no_rows, no_bounds = jnp.zeros((0, m + 1), dtype), jnp.zeros(0, dtype)
    box = jnp.concatenate((jnp.eye(m + 1, dtype=dtype)[:m], -jnp.eye(m + 1, dtype=dtype)))
    box_bounds = jnp.concatenate((high, -low, jnp.zeros(1, dtype)))

    def field(y: Array) -> Array:
        return robot.dynamics(y, robot.backup(y))

    def run(x: Array, proposed: Array) -> tuple[Array, Array]:
        states, q = sensitivities(robot, bundle, x)
        drift = robot.dynamics(x, jnp.zeros(m, dtype))
        effect = jax.jacfwd(robot.dynamics, argnums=1)(x, jnp.zeros(m, dtype))
        h, slope = jax.vmap(robot.safe_set)(states), jax.vmap(jax.jacfwd(robot.safe_set))(states)
        pull = slope @ q
        safe_a = -(pull @ effect).reshape(-1, m)
        flow = jax.vmap(field)(states)
        relative = pull @ drift - jnp.einsum("kji,ki->kj", slope, flow)
        safe_b = (bundle.class_k * h + relative).reshape(-1)
        base, base_slope = robot.base_set(states[-1]), jax.jacfwd(robot.base_set)(states[-1])
        base_a = -(base_slope @ q[-1] @ effect)
        base_b = bundle.base_class_k * base + base_slope @ q[-1] @ drift
        a, b = jnp.concatenate((safe_a, base_a)), jnp.concatenate((safe_b, base_b))
        size = jnp.maximum(1.0, jnp.abs(a).max(-1))
        a, b = jnp.clip(a / size[:, None], -1e6, 1e6), jnp.clip(b / size, -1e6, 1e6)
        g = jnp.concatenate((jnp.concatenate((a, -jnp.ones((len(a), 1), dtype)), -1), box))
        bounds = jnp.concatenate((b, box_bounds))
        linear = -jnp.concatenate((proposed, jnp.zeros(1, dtype)))
        v = qpax.solve_qp_primal(
            jnp.diag(weight), linear, no_rows, no_bounds, g, bounds,
            solver_tol=published.tolerance, target_kappa=TARGET_KAPPA,
        )  # fmt: skip
        good = jnp.isfinite(v).all()
        safe = jnp.where(good, v[:m], robot.backup(x))
        return jnp.clip(safe, low, high), jnp.where(good, v[m], 0.0)

    return jax.jit(run, compiler_options=options)


def same_projection(
    robot: JaxRobot, bundle: Bundle, dtype: Any
) -> Callable[[Array, Array], Array]:
    """(x, u_proposed) -> u by qpax on the rows of our kernel: no slack, inputs in units of v."""
    m, tolerance = len(bundle.inputs), 1e-6
    scale = jnp.array(bundle.input_scale, dtype)
    low, high = jnp.array(bundle.input_low, dtype), jnp.array(bundle.input_high, dtype)
    same_rows = rows(robot, bundle, dtype)
    no_rows, no_bounds, eye = (
        jnp.zeros((0, m), dtype),
        jnp.zeros(0, dtype),
        jnp.eye(m, dtype=dtype),
    )

    def run(x: Array, proposed: Array) -> Array:
        _, _, a, b = same_rows(x)
        g = jnp.concatenate((-a, eye, -eye))
        bounds = jnp.concatenate((-b, high / scale, -low / scale))
        v = qpax.solve_qp_primal(
            eye, -proposed / scale, no_rows, no_bounds, g, bounds, solver_tol=tolerance
        )
        return v * scale

    return jax.jit(run)


def twin_sensitivities(bundle: Bundle, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by the program's interpreter and scipy's matrix exponential."""
    program, n = bundle.program, len(x)
    states, q = [x], [np.eye(n)]
    for _ in range(bundle.horizon):
        y = np.broadcast_to(states[-1], (n, n))
        u = program("backup_policy", states[-1])
        turn = program.jvp("backup_policy", (y,), (np.eye(n),))
        wide = np.broadcast_to(u, turn.shape)
        jacobian = program.jvp("dynamics", (y, wide), (np.eye(n), turn)).T
        grown = scipy.linalg.expm(bundle.period * jacobian) @ q[-1]
        size = np.linalg.norm(grown)
        q.append(grown * (1e6 / size) if size > 1e6 else grown)
        states.append(program("step", states[-1], u))
    return np.array(states), np.array(q)
