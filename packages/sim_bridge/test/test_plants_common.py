"""What holds for every PyBullet plant: seeds, noise, delay, pictures, errors, imports."""

import subprocess
import sys

import numpy as np
import pytest
from safe_rl_core.errors import PlantError
from sim_bridge.plants import BulletPlant, make_plant

pytestmark = pytest.mark.sim

ROBOTS = ("quadrotor", "unicycle")
BUSY = {"quadrotor": [11.0, 0.5, -1.0, 0.3], "unicycle": [1.0, 0.4]}


def fly(plant: BulletPlant, seed: int, steps: int = 25) -> np.ndarray:
    """Measured states (steps + 1, n) under a constant, busy input."""
    rows = [plant.reset(seed)]
    rows += [plant.step(BUSY[plant.robot]) for _ in range(steps)]
    return np.array(rows)


@pytest.mark.parametrize("robot", ROBOTS)
def test_same_seed_same_flight_bit_for_bit(robot: str) -> None:
    with make_plant(robot, noise=1.0, delay_steps=1) as plant:
        first, other, again = fly(plant, 7), fly(plant, 8), fly(plant, 7)
    with make_plant(robot, noise=1.0, delay_steps=1) as fresh:
        anew = fly(fresh, 7)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, anew)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("robot", ROBOTS)
def test_same_seed_same_flight_in_another_process(robot: str) -> None:
    with make_plant(robot, noise=1.0) as plant:
        here = fly(plant, 3)[-1].tobytes().hex()
    code = (
        "from sim_bridge.plants import make_plant\n"
        f"p = make_plant({robot!r}, noise=1.0); p.reset(3)\n"
        f"for _ in range(25): x = p.step({BUSY[robot]!r})\n"
        "print(x.tobytes().hex())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert there.stdout.split()[-1] == here


@pytest.mark.parametrize("robot", ROBOTS)
def test_noise_has_the_stated_deviation(robot: str) -> None:
    with make_plant(robot, noise=2.0) as plant:
        plant.reset(0)
        samples = []
        for _ in range(1500):
            # Small inputs keep the vehicle moving without leaving the scene.
            measured = plant.step(plant.neutral)
            samples.append(measured - plant.state)
        errors = np.array(samples)
        std = plant.NOISE_STD
    if robot == "quadrotor":
        # A small rotation θ moves q by about θ/2 per axis; near hover that is the vector part.
        expected = [std["position"]] * 3 + [std["velocity"]] * 3
        vector = 2.0 * errors[:, 7:]
        np.testing.assert_allclose(vector.std(axis=0), 2.0 * std["attitude"], rtol=0.1)
        errors = errors[:, :6]
    else:
        expected = [std["position"]] * 2 + [std["heading"], std["speed"]]
    np.testing.assert_allclose(errors.std(axis=0), 2.0 * np.array(expected), rtol=0.1)
    np.testing.assert_allclose(errors.mean(axis=0), 0.0, atol=0.3 * max(expected))


@pytest.mark.parametrize("robot", ROBOTS)
def test_noise_does_not_touch_the_vehicle_itself(robot: str) -> None:
    ends = []
    for noise in (0.0, 1.0):
        with make_plant(robot, noise=noise) as plant:
            plant.reset(4)
            command = BUSY[robot]
            for _ in range(10):
                if robot == "unicycle":
                    plant.step_cmd_vel(1.0, 0.3)  # step() would measure the speed first
                else:
                    plant.step(command)
            ends.append(plant.state)
    np.testing.assert_array_equal(ends[0], ends[1])


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("delay", [1, 3])
def test_delay_shifts_the_response_by_whole_periods(robot: str, delay: int) -> None:
    responses = []
    for steps in (0, delay):
        with make_plant(robot, variation=0.0, delay_steps=steps) as plant:
            plant.reset(0)
            rows = [plant.state]
            for _ in range(20):
                if robot == "unicycle":
                    plant.step_cmd_vel(1.0, 0.3)
                else:
                    plant.step(BUSY[robot])
                rows.append(plant.state)
            responses.append(np.array(rows))
    prompt, late = responses
    # At rest until the command arrives, then the same response, whatever the vehicle.
    np.testing.assert_allclose(late[: delay + 1], np.tile(prompt[0], (delay + 1, 1)), atol=1e-4)
    np.testing.assert_allclose(late[delay:], prompt[: 21 - delay], atol=1e-4)
    assert np.abs(late[delay + 1] - prompt[0]).max() > 1e-3


@pytest.mark.parametrize("robot", ROBOTS)
def test_time_counts_periods_and_states_are_copies(robot: str) -> None:
    with make_plant(robot) as plant:
        x = plant.reset(0)
        assert plant.time == 0.0
        x[:] = 99.0
        measured = plant.step(plant.neutral)
        assert plant.time == plant.period
        measured[:] = 99.0
        plant.state[:] = 99.0
        assert np.abs(plant.state).max() < 10.0
        assert x.dtype == np.float64 and x.shape == (len(plant.state_names),)


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("view", ["scene", "chase"])
def test_pictures_show_something_and_leave_no_trace(robot: str, view: str) -> None:
    with make_plant(robot) as plant:
        plain = fly(plant, 1, 10)[-1]
        plant.draw_path([[-1.0, 0.0, 1.0], [1.0, 0.0, 2.0], [30.0, 0.0, 2.0]])
        plant.reset(1)
        for _ in range(10):
            picture = plant.render(160, 90, view)
            last = plant.step(BUSY[robot])
        np.testing.assert_array_equal(last, plain)
        assert picture.shape == (90, 160, 3) and picture.dtype == np.uint8
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 300
        with_path = plant.render(160, 90, view)
        plant.clear_paths()
        without = plant.render(160, 90, view)
        assert (with_path != without).any(), "the path must be visible"


def test_the_robot_is_in_its_picture() -> None:
    with make_plant("quadrotor") as plant:
        plant.reset(0)
        orange = plant.render(320, 180).reshape(-1, 3).astype(int)
        seen = (orange[:, 0] > 150) & (orange[:, 2] < 80) & (orange[:, 1] < 130)
        assert seen.sum() > 20, "front rotors are orange and nothing else here is"


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("bad", ["nan", "inf", "short", "long", "matrix", "text"])
def test_a_bad_command_is_refused_and_changes_nothing(robot: str, bad: str) -> None:
    with make_plant(robot) as plant:
        plant.reset(0)
        m = len(plant.input_names)
        good = plant.neutral
        commands = {
            "nan": np.full(m, np.nan),
            "inf": np.full(m, np.inf),
            "short": good[:-1],
            "long": np.append(good, 0.0),
            "matrix": good[None],
            "text": "hover",
        }
        before = plant.state
        with pytest.raises(PlantError, match="must"):
            plant.step(commands[bad])
        np.testing.assert_array_equal(plant.state, before)
        assert plant.time == 0.0


def test_misuse_is_explained() -> None:
    with pytest.raises(PlantError, match="expected one of quadrotor, unicycle"):
        make_plant("submarine")
    with pytest.raises(PlantError, match="noise must be"):
        make_plant("quadrotor", noise=-1.0)
    with pytest.raises(PlantError, match="delay_steps must be"):
        make_plant("quadrotor", delay_steps=-1)
    with pytest.raises(PlantError, match="seed must be"):
        make_plant("quadrotor", seed=-1)
    with make_plant("quadrotor") as plant:
        with pytest.raises(PlantError, match=r"call reset\(\)"):
            plant.step(plant.neutral)
        with pytest.raises(PlantError, match="unit quaternion"):
            plant.reset(0, x0=np.ones(10))
        with pytest.raises(PlantError, match="x0 must have shape"):
            plant.reset(0, x0=np.ones(4))
        plant.reset(0)
        with pytest.raises(PlantError, match="view must be"):
            plant.render(64, 64, "side")
        with pytest.raises(PlantError, match="shape"):
            plant.draw_path(np.zeros((3, 4)))
    with pytest.raises(PlantError, match="closed"):
        plant.step([9.81, 0.0, 0.0, 0.0])
    plant.close()


def test_gui_without_display_is_refused_before_pybullet_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(PlantError, match="display"):
        make_plant("quadrotor", gui=True)


def test_plants_need_neither_ros_nor_torch() -> None:
    code = (
        "import sys, sim_bridge.plants\n"
        "sys.exit(','.join(m for m in ('rclpy', 'torch') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
