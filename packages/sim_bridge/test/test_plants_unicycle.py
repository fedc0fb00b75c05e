"""The PyBullet unicycle: reaches, turns, brakes and lags as its docstring claims."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from sim_bridge.plants import UnicyclePlant, make_plant

pytestmark = pytest.mark.sim


@pytest.fixture
def nominal() -> Iterator[UnicyclePlant]:
    with make_plant("unicycle", variation=0.0) as plant:
        plant.reset(0)
        yield plant


def drive(plant: UnicyclePlant, u: tuple[float, float], steps: int) -> NDArray[np.float64]:
    """True states (steps + 1, 4) under a constant input."""
    states = [plant.state]
    for _ in range(steps):
        plant.step(u)
        states.append(plant.state)
    return np.array(states)


def test_reaches_five_metres_per_second_and_brakes_to_rest(nominal: UnicyclePlant) -> None:
    speed = drive(nominal, (2.5, 0.0), 40)[:, 3]
    assert speed[-1] == pytest.approx(5.0, abs=0.2)
    braking = drive(nominal, (-5.0, 0.0), 40)[:, 3]
    assert braking[20] == pytest.approx(0.0, abs=0.15)  # 1 s at 5 m/s²
    assert abs(braking[-1]) < 0.01
    assert braking.min() > -0.1, "it must not drive backwards"


def test_turns_at_one_radian_per_second_at_speed(nominal: UnicyclePlant) -> None:
    nominal.reset(0, x0=[0.0, 0.0, 0.0, 5.0])
    states = drive(nominal, (0.0, 1.0), 40)
    assert nominal.angular_velocity[2] == pytest.approx(1.0, abs=0.01)
    radius = np.hypot(*(states[-1, :2] - [0.0, 5.0]))
    assert radius == pytest.approx(5.0, abs=0.3), "a circle of v / turn_rate"
    assert states[-1, 3] == pytest.approx(5.0, abs=0.2)


def test_full_braking_in_a_full_turn_holds(nominal: UnicyclePlant) -> None:
    nominal.reset(0, x0=[0.0, 0.0, 0.0, 5.0], u0=[0.0, 1.0])
    states = drive(nominal, (-5.0, 1.0), 16)
    assert states[-1, 3] == pytest.approx(1.0, abs=0.25)
    assert states[-1, 2] == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("turn_rate", [0.1, -0.5, 1.0])
def test_turn_rate_delay(nominal: UnicyclePlant, turn_rate: float) -> None:
    nominal.reset(0, x0=[0.0, 0.0, 0.0, 5.0])
    heading = drive(nominal, (0.0, turn_rate), 20)[-1, 2]
    assert 1.0 - heading / turn_rate == pytest.approx(0.043, abs=0.003)


@pytest.mark.parametrize("accel", [1.0, -2.0, 4.0])
def test_accel_gain_and_delay(nominal: UnicyclePlant, accel: float) -> None:
    nominal.reset(0, x0=[0.0, 0.0, 0.0, 5.0])
    speed = drive(nominal, (accel, 0.0), 12)[:, 3] - 5.0
    slope = (speed[12] - speed[6]) / 0.3
    assert slope / accel == pytest.approx(1.03, abs=0.04)
    assert 0.6 - speed[12] / slope == pytest.approx(0.015, abs=0.002)


def test_velocity_command_is_followed_and_equals_step(nominal: UnicyclePlant) -> None:
    nominal.reset(0, x0=[0.0, 0.0, 0.0, 3.0])
    speed = [nominal.step_cmd_vel(3.2, 0.0)[3] for _ in range(20)]
    assert speed[1] > 3.18
    assert max(speed) < 3.2 + 0.3 * 0.2
    assert speed[-1] == pytest.approx(3.2, abs=0.01)
    ends = []
    for by_step in (True, False):
        x = nominal.reset(5, x0=[0.0, 0.5, 0.1, 4.0])
        for k in range(30):
            accel, turn = math.sin(0.4 * k), 0.5 * math.cos(0.2 * k)
            if by_step:
                x = nominal.step([accel, turn])
            else:
                x = nominal.step_cmd_vel(x[3] + accel * nominal.period, turn)
        ends.append(x)
    np.testing.assert_array_equal(ends[0], ends[1])


def test_it_is_not_the_model(nominal: UnicyclePlant) -> None:
    """Fails if the plant integrates the model, and if it is another robot than the model."""
    x0 = np.array([0.0, 0.0, 0.0, 5.0])
    nominal.reset(0, x0=x0)

    def slope(s: NDArray[np.float64], u: tuple[float, float]) -> NDArray[np.float64]:
        return np.array([s[3] * math.cos(s[2]), s[3] * math.sin(s[2]), u[1], u[0]])

    ideal, gap, dt = x0, [], nominal.period
    for k in range(60):
        u = (1.5 * math.cos(0.15 * k), 0.6 * math.cos(0.2 * k))
        nominal.step(u)
        k1 = slope(ideal, u)
        k2 = slope(ideal + dt / 2 * k1, u)
        k3 = slope(ideal + dt / 2 * k2, u)
        k4 = slope(ideal + dt * k3, u)
        ideal = ideal + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        gap.append(np.abs(nominal.state - ideal).max())
    assert min(gap) > 1e-4
    assert max(gap) > 0.02
    assert gap[-1] < 1.5, "about 15 m further on the model must still describe this vehicle"


def test_stays_on_its_wheels_through_a_lane_drive() -> None:
    with make_plant("unicycle") as plant:
        x = plant.reset(2, x0=[0.0, 0.0, 0.0, 5.0])
        error = []
        omega = 2 * math.pi / 10.0
        for _ in range(200):
            t = plant.time
            lateral, slope = 2.0 * math.sin(omega * t), 2.0 * omega * math.cos(omega * t)
            heading = math.asin(slope / 5.0) + 0.5 * (lateral - x[1])
            x = plant.step([2.0 * (5.0 - x[3]), 3.0 * (heading - x[2])])
            error.append(x[1] - 2.0 * math.sin(omega * plant.time))
        assert np.sqrt(np.mean(np.square(error))) < 0.15
        assert x[3] == pytest.approx(5.0, abs=0.1)
        assert np.abs(plant.angular_velocity[:2]).max() < 0.05
