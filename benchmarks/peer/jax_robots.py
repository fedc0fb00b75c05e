"""The two robots as a JAX user would write them: whole vectors, no loops. Constants are ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from safe_rl_systems.backup import CascadeBackup, SwitchedBackup
from safe_rl_systems.robot import Robot
from safe_rl_systems.systems.quadrotor import GRAVITY
from toolbox.neural import NeuralRecovery

Array = jax.Array


@dataclass(frozen=True)
class JaxRobot:
    """Unbatched functions of one state (n,) and input (m,)."""

    dynamics: Callable[[Array, Array], Array]
    step: Callable[[Array, Array], Array]
    backup: Callable[[Array], Array]
    safe_set: Callable[[Array], Array]
    base_set: Callable[[Array], Array]

    def closed_loop(self, x: Array) -> Array:
        """One period under the backup policy."""
        return self.step(x, self.backup(x))


def jax_robot(robot: Robot, dtype: Any) -> JaxRobot:
    """The JAX twin of a robot of ours; its constants in `dtype`."""
    if robot.robot == "unicycle":
        return _unicycle(robot, dtype)
    return _quadrotor(robot, dtype)


def _box(robot: Robot, dtype: Any) -> tuple[Array, Array]:
    inputs = robot.system.inputs
    return jnp.array([c.low for c in inputs], dtype), jnp.array([c.high for c in inputs], dtype)


def _rows(robot: Any, dtype: Any) -> Callable[[Array], Array]:
    """Limits on single components as one affine map."""
    rows = robot.safe_set.rows
    sign = jnp.array([-1.0 if r.side == "upper" else 1.0 for r in rows], dtype)
    limit = jnp.array([r.limit for r in rows], dtype)
    index = jnp.array([r.index for r in rows])
    return lambda x: sign * (x[index] - limit)


def _rk4(dynamics: Callable[[Array, Array], Array], dt: float) -> Callable[[Array, Array], Array]:
    def step(x: Array, u: Array) -> Array:
        k1 = dynamics(x, u)
        k2 = dynamics(x + 0.5 * dt * k1, u)
        k3 = dynamics(x + 0.5 * dt * k2, u)
        k4 = dynamics(x + dt * k3, u)
        return x + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    return step


def _network(
    policy: NeuralRecovery, box: tuple[Array, Array], dtype: Any
) -> Callable[[Array], Array]:
    layers = [(jnp.array(w.numpy(), dtype), jnp.array(b.numpy(), dtype)) for w, b in policy.layers]
    centre, half = 0.5 * (box[0] + box[1]), 0.5 * (box[1] - box[0])

    def act(x: Array) -> Array:
        for weight, bias in layers:
            x = jnp.tanh(weight @ x + bias)
        return centre + half * x

    return act


def _composed(
    robot: Any, error: Callable[[Array], Array], box: tuple[Array, Array], dtype: Any
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The backup policy and the Lyapunov function V of the base controller."""
    feedback = robot.base_controller
    gain, value = jnp.array(feedback.gain, dtype), jnp.array(feedback.value, dtype)
    rest = jnp.array(feedback.equilibrium_input, dtype)

    def level(x: Array) -> Array:
        e = error(x)
        return e @ value @ e

    def base(x: Array) -> Array:
        return jnp.clip(rest - gain @ error(x), *box)

    policy = robot.backup_policy
    if not isinstance(policy, SwitchedBackup):
        return base, level
    if isinstance(policy.recovery, NeuralRecovery):
        recovery = _network(policy.recovery, box, dtype)
    else:
        assert isinstance(policy.recovery, CascadeBackup)
        recovery = _cascade(policy.recovery, box)
    return lambda x: jnp.where(level(x) <= policy.level, base(x), recovery(x)), level


def _unicycle(robot: Any, dtype: Any) -> JaxRobot:
    speed = robot.base_controller.error.cruise_speed

    def dynamics(x: Array, u: Array) -> Array:
        return jnp.stack((x[3] * jnp.cos(x[2]), x[3] * jnp.sin(x[2]), u[1], u[0]))

    def error(x: Array) -> Array:
        return jnp.stack((x[1], x[3] - speed, x[2]))

    backup, level = _composed(robot, error, _box(robot, dtype), dtype)
    return JaxRobot(
        dynamics,
        _rk4(dynamics, robot.system.period),
        backup,
        _rows(robot, dtype),
        lambda x: jnp.stack((robot.base_set.level - level(x),)),
    )


def _sign(w: Array) -> Array:
    return jnp.where(w < 0.0, -1.0, 1.0).astype(w.dtype)


def _quadrotor(robot: Any, dtype: Any) -> JaxRobot:
    gravity = jnp.array([0.0, 0.0, -GRAVITY], dtype)
    height = robot.base_controller.error.height

    def dynamics(x: Array, u: Array) -> Array:
        w, a, b, c = x[6], x[7], x[8], x[9]
        up = jnp.stack((2 * (a * c + w * b), 2 * (b * c - w * a), 1 - 2 * (a * a + b * b)))
        xi = jnp.stack(
            (
                jnp.stack((-a, -b, -c)),
                jnp.stack((w, -c, b)),
                jnp.stack((c, w, -a)),
                jnp.stack((-b, a, w)),
            )
        )
        return jnp.concatenate((x[3:6], u[0] * up + gravity, 0.5 * xi @ u[1:4]))

    integrate = _rk4(dynamics, robot.system.period)

    def step(x: Array, u: Array) -> Array:
        y = integrate(x, u)
        q = y[6:10]
        return jnp.concatenate((y[0:6], q / jnp.sqrt(q @ q)))

    def error(x: Array) -> Array:
        return jnp.concatenate((x[2:3] - height, x[3:6], -2.0 * _sign(x[6]) * x[7:10]))

    backup, level = _composed(robot, error, _box(robot, dtype), dtype)
    base = robot.base_set
    weights = jnp.array(base.rest_weights, dtype)
    lateral = base.lateral_limit - base.gap

    def base_set(x: Array) -> Array:
        v = level(x)
        rest = x[0:2] + weights @ error(x)
        room = lateral - base.drift_per_level * v
        return jnp.stack(
            (base.level - v, room - rest[0], room + rest[0], room - rest[1], room + rest[1])
        )

    return JaxRobot(dynamics, step, backup, _rows(robot, dtype), base_set)


def _times(a: Array, b: Array) -> Array:
    """Hamilton product of two quaternions (w, x, y, z)."""
    vector = a[0] * b[1:] + b[0] * a[1:] + jnp.cross(a[1:], b[1:])
    return jnp.concatenate(((a[0] * b[0] - a[1:] @ b[1:])[None], vector))


def _cascade(law: CascadeBackup, box: tuple[Array, Array]) -> Callable[[Array], Array]:
    flip = jnp.array([1.0, -1.0, -1.0, -1.0], box[0].dtype)
    gains = law.rate_gain * jnp.array([1.0, 1.0, 0.35], box[0].dtype)

    def act(x: Array) -> Array:
        z, v, q = x[2], x[3:6], x[6:10]
        near = jnp.clip((law.margin - (law.ceiling - z)) / law.margin, 0.0, 1.0)
        lateral = -law.lateral_gain * (1.0 + 1.5 * near) * v[0:2]
        up = GRAVITY - law.height_gain * (z - law.height) - law.climb_gain * v[2]
        up = up - 32.0 * near - 18.0 * near * jnp.maximum(v[2], 0.0)
        nu = jnp.concatenate((lateral, jnp.maximum(up, 0.0)[None]))
        length = jnp.sqrt(nu @ nu)
        still = length < 1e-9
        d = jnp.where(
            still, jnp.array([0.0, 0.0, 1.0], x.dtype), nu / jnp.where(still, 1.0, length)
        )
        half = jnp.where(
            1.0 + d[2] < 1e-9,
            jnp.array([0.0, 1.0, 0.0, 0.0], x.dtype),
            jnp.stack((1.0 + d[2], -d[1], d[0], jnp.zeros_like(d[0]))),
        )
        wanted = half / jnp.sqrt(half @ half)
        miss = _times(flip * q, wanted) if law.body_error else _times(wanted, flip * q)
        return jnp.clip(jnp.concatenate((length[None], gains * _sign(miss[0]) * miss[1:4])), *box)

    return act
