"""Hand-made bundles and flights: the report is tested without shield, plant and ROS."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import numpy as np
from safe_rl_core.record import FlightLog

Channel = namedtuple("Channel", "name unit low high")
INF = float("inf")


def _quadrotor_safe_set(x: np.ndarray) -> np.ndarray:
    px, py, pz = x[..., 0], x[..., 1], x[..., 2]
    return np.stack([3.0 - pz, pz - 0.1, 4.0 - px, px + 4.0, 4.0 - py, py + 4.0], axis=-1)


def _quadrotor_reference(t: np.ndarray) -> np.ndarray:
    phase = 3.0 * t[..., 0]
    zero = np.zeros_like(phase)
    px, pz = -1.5 * np.sin(phase), 2.0 - 1.5 * np.cos(phase)
    vx, vz = -4.5 * np.cos(phase), 4.5 * np.sin(phase)
    qw, qy = np.cos(phase / 2.0), np.sin(phase / 2.0)
    return np.stack([px, zero, pz, vx, zero, vz, qw, zero, qy, zero], axis=-1)


def _unicycle_safe_set(x: np.ndarray) -> np.ndarray:
    y, theta, v = x[..., 1], x[..., 2], x[..., 3]
    third = np.pi / 3.0
    return np.stack([1.8 - y, y + 1.8, third - theta, theta + third, v, 12.0 - v], axis=-1)


def _unicycle_reference(t: np.ndarray) -> np.ndarray:
    phase = 2.0 * np.pi * t[..., 0] / 10.0
    rate = 2.5 * 2.0 * np.pi / 10.0 * np.cos(phase)
    speed = np.full_like(phase, 5.0)
    return np.stack([5.0 * t[..., 0], 2.5 * np.sin(phase), np.arcsin(rate / 5.0), speed], axis=-1)


def _bundle(name: str, robot: str, functions: dict, **fields: object) -> SimpleNamespace:
    def program(function: str, *args: np.ndarray) -> np.ndarray:
        return functions[function](*(np.asarray(a, dtype=float) for a in args))

    low = np.array([channel.low for channel in fields["inputs"]])
    high = np.array([channel.high for channel in fields["inputs"]])
    return SimpleNamespace(
        name=name, robot=robot, variant="model", program=program, path=f"models/{name}",
        input_low=low, input_high=high, input_scale=0.5 * (high - low), class_k=4.0,
        base_class_k=2.0, certificate="none (nominal)", hash="5afe" * 16,
        margin=np.full(len(fields["safe_set_names"]), 0.02),
        hashes={"policy.onnx": "ab" * 32}, **fields,
    )  # fmt: skip


def quadrotor_bundle() -> SimpleNamespace:
    """A stand-in for the quadrotor's bundle: the same channels, rows and reference circle."""
    units = {"p": "m", "v": "m/s", "q": "1"}
    names = ("px", "py", "pz", "vx", "vy", "vz", "qw", "qx", "qy", "qz")
    return _bundle(
        "quadrotor_powerloop",
        "quadrotor",
        {
            "safe_set": _quadrotor_safe_set,
            "reference": _quadrotor_reference,
            "reward": lambda x, u, t: (
                -np.sum((x - _quadrotor_reference(t))[..., :3] ** 2, -1, keepdims=True)
            ),
        },
        states=tuple(Channel(name, units[name[0]], -INF, INF) for name in names),
        inputs=(
            Channel("thrust", "m/s^2", 0.0, 39.24),
            Channel("rate_x", "rad/s", -18.0, 18.0),
            Channel("rate_y", "rad/s", -18.0, 18.0),
            Channel("rate_z", "rad/s", -18.0, 18.0),
        ),
        safe_set_names=("ceiling", "floor", "x_high", "x_low", "y_high", "y_low"),
        period=0.02,
        horizon=100,
        task=SimpleNamespace(
            name="powerloop",
            duration_s=2.12,
            lap_s=2.0943951023931953,
            laps_default=5,
            tracked=("px", "py", "pz"),
        ),
    )


def unicycle_bundle() -> SimpleNamespace:
    """A stand-in for the unicycle's bundle: lane of half-width 1.8 m, sine reference of 2.5 m."""
    return _bundle(
        "unicycle_lane",
        "unicycle",
        {
            "safe_set": _unicycle_safe_set,
            "reference": _unicycle_reference,
            "reward": lambda x, u, t: (
                -np.sum((x - _unicycle_reference(t))[..., 1:2] ** 2, -1, keepdims=True)
            ),
        },
        states=(
            Channel("px", "m", -INF, INF),
            Channel("py", "m", -1.8, 1.8),
            Channel("theta", "rad", -1.0, 1.0),
            Channel("v", "m/s", 0.0, 12.0),
        ),
        inputs=(
            Channel("accel", "m/s^2", -5.0, 5.0),
            Channel("turn_rate", "rad/s", -1.0, 1.0),
        ),
        safe_set_names=("lane_left", "lane_right", "theta_high", "theta_low", "v_low", "v_high"),
        period=0.05,
        horizon=50,
        task=SimpleNamespace(
            name="lane", duration_s=20.0, lap_s=None, laps_default=1, tracked=("py", "theta", "v")
        ),
    )


def _measured(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With noise; a quaternion stays one."""
    x = states + 0.002 * rng.normal(size=states.shape)
    if x.shape[1] == 10:
        x[:, 6:] /= np.linalg.norm(x[:, 6:], axis=1, keepdims=True)
    return x


def _log(bundle: SimpleNamespace, states: np.ndarray, boundary: np.ndarray) -> FlightLog:
    """A plausible log along given states: the closer to the boundary, the sterner the verdict."""
    steps, inputs = len(states) - 1, len(bundle.inputs)
    rng = np.random.default_rng(7)
    t = np.arange(steps) * bundle.period
    middle = 0.5 * (bundle.input_low + bundle.input_high)
    wave = np.sin(3.0 * t[:, None] + np.arange(inputs))
    proposed = middle + 0.45 * bundle.input_scale * wave
    verdict = np.where(boundary < 0.12, 1, 0)
    verdict[(boundary < 0.055) & (np.arange(steps) % 9 < 3)] = 2
    push = 0.3 * bundle.input_scale * rng.normal(size=(steps, 1))
    moved = np.where(verdict[:, None] > 0, push, 0.0)
    safe = np.clip(proposed + moved, bundle.input_low, bundle.input_high)
    reasons = np.array(["proposal_safe", "projected", "qp_infeasible"])
    return FlightLog(
        t=t,
        x_true=states,
        x_measured=_measured(states[:-1], rng),
        u_proposed=proposed,
        u_safe=safe,
        verdict=verdict.astype(np.int8),
        reason=reasons[verdict],
        margin=np.minimum(boundary, 0.9) * 0.8 - 0.004,
        critical_row=np.array([f"{bundle.safe_set_names[0]}@{k % 40}" for k in range(steps)]),
        intervention=np.linalg.norm((safe - proposed) / bundle.input_scale, axis=-1),
        shield_us=130.0 * rng.lognormal(0.0, 0.25, steps) + 70.0 * (verdict > 0),
        latency_us=1500.0 * rng.lognormal(0.0, 0.2, steps),
        qp_used=verdict > 0,
    )


def quadrotor_log(laps: int = 5, peak: float = 2.95) -> FlightLog:
    """Laps of the circle, flattened smoothly below `peak` m; a peak above 3 breaks the ceiling."""
    bundle = quadrotor_bundle()
    steps = round(laps * bundle.task.lap_s / bundle.period)
    states = _quadrotor_reference(np.arange(steps + 1)[:, None] * bundle.period)
    wobble = 1.0 + 0.03 * np.sin(0.11 * np.arange(steps + 1))
    states[:, 0] *= wobble
    top = peak - 0.04 + 0.04 * np.sin(0.05 * np.arange(steps + 1))
    states[:, 2] = top - np.log1p(np.exp(6.0 * (top - states[:, 2]))) / 6.0
    states[:, 2] = np.maximum(states[:, 2], 0.45)
    return _log(bundle, states, _quadrotor_safe_set(states[:-1]).min(axis=-1))


def unicycle_log(peak: float = 1.75) -> FlightLog:
    """One run along the lane, held below `peak` m to either side; above 1.8 it leaves the lane."""
    bundle = unicycle_bundle()
    steps = round(bundle.task.duration_s / bundle.period)
    states = _unicycle_reference(np.arange(steps + 1)[:, None] * bundle.period)
    states[:, 1] = peak * np.tanh(1.6 * states[:, 1] / peak)
    states[:, 2] *= 0.8
    rows = _unicycle_safe_set(states[:-1])[:, :2]
    return _log(bundle, states, rows.min(axis=-1))
