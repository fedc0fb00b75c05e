"""The PyBullet quadrotor: what its docstring claims, and that it is not the model."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from sim_bridge.plants import QuadrotorPlant, make_plant
from sim_bridge.plants.autopilot import (
    LEVER,
    REACTION,
    ROTOR_IDLE_FORCE,
    ROTOR_MAX_FORCE,
    mix,
)

pytestmark = pytest.mark.sim

HOVER = np.array([9.81, 0.0, 0.0, 0.0])
SLACK = 1e-9  # N, rounding


@pytest.fixture
def nominal() -> Iterator[QuadrotorPlant]:
    with make_plant("quadrotor", variation=0.0) as plant:
        plant.reset(0)
        yield plant


def delay_of_step(plant: QuadrotorPlant, channel: int, size: float, seconds: float) -> float:
    """Mean delay (s) of a step on top of hover: elapsed time minus response integral / size."""
    plant.reset(0)
    steps = round(seconds / plant.period)
    u = HOVER.copy()
    u[channel] += size
    for _ in range(steps):
        plant.step(u)
    if channel == 0:
        return seconds - plant.state[5] / size
    w, *vector = plant.state[6:]
    return seconds - 2.0 * math.atan2(np.linalg.norm(vector), w) / abs(size)


@pytest.mark.parametrize(("channel", "expected"), [(1, 0.030), (2, 0.030), (3, 0.029), (0, 0.031)])
def test_small_steps_have_the_documented_delay(
    nominal: QuadrotorPlant, channel: int, expected: float
) -> None:
    assert delay_of_step(nominal, channel, 0.15, 0.4) == pytest.approx(expected, abs=0.001)


def test_rates_settle_without_much_overshoot(nominal: QuadrotorPlant) -> None:
    rates = []
    for _ in range(20):
        nominal.step([9.81, 0.0, 2.0, 0.0])
        rates.append(nominal.angular_velocity[1])
    assert rates[0] == pytest.approx(2.0 * (1.0 - math.exp(-0.02 / 0.030)), abs=0.35)
    assert max(rates) < 2.0 * 1.02
    assert rates[-1] == pytest.approx(2.0, abs=1e-3)


def test_hover_at_nominal_thrust_stays_put(nominal: QuadrotorPlant) -> None:
    for _ in range(500):
        nominal.step(HOVER)
    np.testing.assert_allclose(nominal.state, nominal.rest_state, atol=1e-6)


def test_another_vehicle_hovers_within_its_mass_and_thrust_error() -> None:
    accelerations = []
    with make_plant("quadrotor") as plant:
        for seed in range(12):
            plant.reset(seed)
            for _ in range(50):
                plant.step(HOVER)
            accelerations.append(plant.state[5])  # after 1 s
            expected = plant.vehicle["thrust_curve"] / plant.vehicle["mass"] * 9.81 - 9.81
            assert plant.state[5] == pytest.approx(expected, abs=0.01)
            assert abs(plant.vehicle["mass"] - 1.0) <= 0.05
            assert abs(plant.vehicle["thrust_curve"] - 1.0) <= 0.10
    assert np.ptp(accelerations) > 0.5, "seeds must differ"


def ideal_slope(s: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ten-state model, written out by hand: thrust and body rates act at once."""
    w, a, b, c = s[6:]
    p, q, r = u[1:]
    up = np.array([2 * (a * c + w * b), 2 * (b * c - w * a), 1 - 2 * (a * a + b * b)])
    turn = [
        -a * p - b * q - c * r,
        w * p + b * r - c * q,
        w * q + c * p - a * r,
        w * r + a * q - b * p,
    ]
    return np.concatenate([s[3:6], u[0] * up - [0, 0, 9.81], 0.5 * np.array(turn)])


def ideal_step(s: NDArray[np.float64], u: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    """One control period of the model by Euler (order 1) or Runge-Kutta (order 4)."""
    dt = 0.02
    k1 = ideal_slope(s, u)
    if order == 1:
        s = s + dt * k1
    else:
        k2 = ideal_slope(s + dt / 2 * k1, u)
        k3 = ideal_slope(s + dt / 2 * k2, u)
        k4 = ideal_slope(s + dt * k3, u)
        s = s + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    s[6:] /= np.linalg.norm(s[6:])
    return s


@pytest.mark.parametrize("order", [1, 4])
def test_it_is_not_the_model(nominal: QuadrotorPlant, order: int) -> None:
    """Fails if someone puts the model behind the plant's name, and if the plant is another robot.

    Even the nominal vehicle without noise has rotors to spin up and inertia to turn.
    """
    ideal, gap = nominal.state, []
    for k in range(50):
        u = np.array([12.0, 1.5 * math.sin(0.3 * k), 2.0 * math.cos(0.3 * k), 0.2])
        nominal.step(u)
        ideal = ideal_step(ideal, u, order)
        gap.append(np.abs(nominal.state - ideal).max())
    assert min(gap) > 1e-4
    assert gap[-1] > 0.01
    moved = np.abs(nominal.state - nominal.rest_state).max()
    assert gap[-1] < 0.5 * moved, "the model must still describe this vehicle"


def test_start_state_and_trim(nominal: QuadrotorPlant) -> None:
    x0 = [-1.0, 0.5, 1.5, -4.5, 0.0, 0.2, 0.6, 0.0, -0.8, 0.0]
    measured = nominal.reset(3, x0=x0, u0=[23.3, 0.0, 3.0, 0.0])
    np.testing.assert_allclose(measured, x0, atol=1e-12)
    np.testing.assert_allclose(nominal.angular_velocity, [0.0, 3.0, 0.0], atol=1e-12)
    curve = ROTOR_MAX_FORCE / 900.0**2
    assert 4 * curve * nominal.rotor_speeds[0] ** 2 == pytest.approx(23.3)
    before = nominal.state
    nominal.step([23.3, 0.0, 3.0, 0.0])
    # No drop-out: the speed along the thrust axis grows by the commanded thrust from t = 0 on.
    axis = np.array([2 * 0.6 * -0.8, 0.0, 1 - 2 * 0.64])
    gained = (nominal.state[3:6] - before[3:6] + [0, 0, 9.81 * 0.02]) @ axis
    assert gained == pytest.approx(23.3 * 0.02, rel=0.01)


def test_quaternion_sign_is_continuous_through_a_flip(nominal: QuadrotorPlant) -> None:
    last, jumps, lowest = nominal.state[6:], 0.0, 1.0
    for _ in range(100):
        nominal.step([9.81, 0.0, 8.0, 0.0])
        q = nominal.state[6:]
        jumps, last, lowest = max(jumps, np.abs(q - last).max()), q, min(lowest, q[0])
    assert jumps < 0.1
    assert lowest < -0.9, "two turns must pass through -q"


def test_commands_outside_the_box_are_clipped(nominal: QuadrotorPlant) -> None:
    inside, outside = [39.24, 18.0, -18.0, 0.0], [100.0, 90.0, -40.0, 0.0]
    ends = []
    for u in (inside, outside):
        nominal.reset(0)
        for _ in range(10):
            nominal.step(u)
        ends.append(nominal.state)
    np.testing.assert_array_equal(ends[0], ends[1])


def test_mixer_by_hand_and_its_priorities() -> None:
    # 8 N collective, 0.1 N m about x: ±0.1 / (4 · LEVER) N on the left and right rotors.
    tilt = 0.1 / (4 * LEVER)
    expected = (2 + tilt, 2 + tilt, 2 - tilt, 2 - tilt)
    np.testing.assert_allclose(mix(8.0, 0.1, 0.0, 0.0), expected, rtol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        collective, tx, ty, tz = rng.uniform([-5, -4, -4, -1], [50, 4, 4, 1])
        f0, f1, f2, f3 = mix(collective, tx, ty, tz)
        assert min(f0, f1, f2, f3) >= ROTOR_IDLE_FORCE - SLACK
        assert max(f0, f1, f2, f3) <= ROTOR_MAX_FORCE + SLACK
        got_x, got_y = LEVER * (f0 + f1 - f2 - f3), LEVER * (-f0 + f1 + f2 - f3)
        got_z = REACTION * (f0 - f1 + f2 - f3)
        assert got_x * ty == pytest.approx(got_y * tx, abs=1e-9), "tilt keeps its direction"
        if abs(tx) + abs(ty) < 2 * LEVER * (ROTOR_MAX_FORCE - ROTOR_IDLE_FORCE) - SLACK:
            assert (got_x, got_y) == pytest.approx((tx, ty), abs=1e-9), "tilt comes first"
        assert abs(got_z) <= abs(tz) + SLACK and got_z * tz >= -SLACK, "yaw gives way, never flips"
