"""The backup rollout, its sensitivities and the rows by JAX: scan + linearize + vmap, jitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from safe_rl_core.bundle import Bundle

from peer.jax_robots import JaxRobot

Array = jax.Array

#: XLA's CPU backend before its present runtime: it compiles the whole loop into one function.
WHOLE_LOOP = {"xla_cpu_use_thunk_runtime": False}


def rows(
    robot: JaxRobot, bundle: Bundle, dtype: Any, options: dict[str, Any] | None = None
) -> Callable[[Array], tuple[Array, ...]]:
    """x (n,) -> psi (N+1, n), tangents (N+1, m+1, n), A (M, m), b (M,), as `Kernel.rows` does."""
    m, horizon = len(bundle.inputs), bundle.horizon
    scale, margin = jnp.array(bundle.input_scale, dtype), jnp.array(bundle.margin, dtype)
    keep_safe, keep_base = bundle.class_k * bundle.period, bundle.base_class_k * bundle.period

    def values(h: Callable[[Array], Array], y: Array, tangents: Array) -> tuple[Array, Array]:
        value, slope = jax.linearize(h, y)
        return value, jax.vmap(slope)(tangents).T

    def written(slope: Array, room: Array, keep: float, u_b: Array) -> tuple[Array, Array]:
        a = slope[:, :m] * scale
        norm = jnp.sqrt((a * a).sum(-1))
        moved = norm > 1e-12
        inverse = jnp.where(moved, 1.0 / jnp.where(moved, norm, 1.0), 0.0)
        b = jnp.where(moved, (slope[:, :m] @ u_b - keep * room) * inverse, -1.0)
        return a * inverse[:, None], b

    def run(x: Array) -> tuple[Array, ...]:
        u_b = robot.backup(x)
        late = robot.dynamics(x, u_b)
        d_x = jnp.concatenate((jnp.zeros((m, len(x)), dtype), late[None]))
        d_u = jnp.eye(m + 1, m, dtype=dtype)
        y, slope = jax.linearize(robot.step, x, u_b)

        def advance(
            carry: tuple[Array, Array], _: None
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            state, tangents = carry
            following, move = jax.linearize(robot.closed_loop, state)
            return (following, jax.vmap(move)(tangents)), carry

        start = (y, jax.vmap(slope)(d_x, d_u))
        last, before = jax.lax.scan(advance, start, None, length=horizon)
        states = jnp.concatenate((before[0], last[0][None]))
        tangents = jnp.concatenate((before[1], last[1][None]))
        h, dh = jax.vmap(lambda y, d: values(robot.safe_set, y, d))(states, tangents)
        base, d_base = values(robot.base_set, *last)
        safe_a, safe_b = written(dh.reshape(-1, m + 1), (h - margin).reshape(-1), keep_safe, u_b)
        base_a, base_b = written(d_base, base, keep_base, u_b)
        a, b = jnp.concatenate((safe_a, base_a)), jnp.concatenate((safe_b, base_b))
        return states, tangents, a, b

    return jax.jit(run, compiler_options=options)
