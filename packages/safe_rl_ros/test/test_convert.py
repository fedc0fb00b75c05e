"""Conversion between message numbers and arrays: both directions, every robot, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safe_rl_ros.convert import ConversionError, InputCodec, MessageFault, StateCodec

QUADROTOR = ("px", "py", "pz", "vx", "vy", "vz", "qw", "qx", "qy", "qz")
UNICYCLE = ("px", "py", "theta", "v")
LANE = ("py", "v", "theta")  # the published order
RATES = ("thrust", "rate_x", "rate_y", "rate_z")
DRIVE = ("accel", "turn_rate")

number = st.floats(-50.0, 50.0)
angle = st.floats(-math.pi + 1e-9, math.pi)


@st.composite
def quadrotor_states(draw):
    q = np.array(draw(st.tuples(*[st.floats(-1.0, 1.0)] * 4)))
    q = q / np.linalg.norm(q) if np.linalg.norm(q) > 1e-3 else np.array([1.0, 0.0, 0.0, 0.0])
    return np.array([*draw(st.tuples(*[number] * 6)), *q])


def rotate(q, v):
    """Slow twin: the vector part of q v q*, by quaternion products."""

    def product(a, b):
        aw, av, bw, bv = a[0], np.array(a[1:]), b[0], np.array(b[1:])
        return np.array([aw * bw - av @ bv, *(aw * bv + bw * av + np.cross(av, bv))])

    return product(product(q, [0.0, *v]), [q[0], -q[1], -q[2], -q[3]])[1:]


@given(quadrotor_states())
def test_quadrotor_state_comes_back(x):
    codec = StateCodec(QUADROTOR)
    np.testing.assert_allclose(codec.state(codec.numbers(x)), x, rtol=0, atol=1e-12)


@given(quadrotor_states())
def test_velocity_in_the_message_is_in_body_axes(x):
    numbers = StateCodec(QUADROTOR).numbers(x)
    np.testing.assert_allclose(rotate(x[6:10], numbers[7:10]), x[3:6], rtol=0, atol=1e-11)


def test_a_hand_worked_quadrotor():
    # Nose up by 90 degrees: body x points to world z, so 2 m/s up is 2 m/s forward.
    half = math.sqrt(0.5)
    numbers = StateCodec(QUADROTOR).numbers([1, 2, 3, 0, 0, 2, half, 0, -half, 0])
    np.testing.assert_allclose(numbers[:3], [1, 2, 3])
    np.testing.assert_allclose(numbers[3:7], [0, -half, 0, half])
    np.testing.assert_allclose(numbers[7:], [2, 0, 0], atol=1e-15)


@given(st.tuples(number, number, angle, number))
def test_unicycle_state_comes_back(values):
    codec = StateCodec(UNICYCLE)
    np.testing.assert_allclose(codec.state(codec.numbers(values)), values, rtol=0, atol=1e-12)


@given(st.tuples(number, number, angle))
def test_the_order_of_the_names_is_the_order_of_the_state(values):
    codec = StateCodec(LANE)
    numbers = codec.numbers(values)
    assert numbers[1] == values[0] and numbers[7] == values[1]
    np.testing.assert_allclose(codec.state(numbers), values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", range(10))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(place, bad):
    codec = StateCodec(QUADROTOR)
    numbers = codec.numbers([0, 0, 1, 1, 2, 3, 1, 0, 0, 0])
    numbers[place] = bad
    with pytest.raises(MessageFault) as caught:
        codec.state(numbers)
    assert caught.value.reason == "not_finite"


@pytest.mark.parametrize("scale", [0.0, 0.9, 1.1, 57.3])
def test_a_quaternion_that_is_none_is_refused(scale):
    numbers = StateCodec(QUADROTOR).numbers([0, 0, 1, 0, 0, 0, 1, 0, 0, 0])
    numbers[6] *= scale
    with pytest.raises(MessageFault) as caught:
        StateCodec(QUADROTOR).state(numbers)
    assert caught.value.reason == "quaternion_norm"


def test_a_slightly_long_quaternion_does_not_stretch_the_velocity():
    codec = StateCodec(QUADROTOR)
    x = np.array([0, 0, 1, 3.0, -2.0, 1.0, 0.5, 0.5, -0.5, 0.5])
    long = codec.numbers(x * np.repeat([1.0, 1.005], [6, 4]))
    np.testing.assert_allclose(codec.state(long), x, rtol=0, atol=1e-12)


@given(st.tuples(*[number] * 4))
def test_quadrotor_input_comes_back_bit_for_bit(u):
    codec = InputCodec(RATES, QUADROTOR, 0.02)
    x = np.zeros(10)
    numbers = codec.numbers(u, x)
    assert numbers[:2] == [0.0, 0.0] and numbers[2:] == list(u)
    assert codec.input(numbers, x).tolist() == list(u)


@given(st.tuples(number, number), st.floats(0.0, 12.0))
def test_acceleration_travels_as_the_speed_at_the_end_of_the_period(u, speed):
    codec = InputCodec(DRIVE, UNICYCLE, 0.05)
    x = np.array([0.0, 0.0, 0.0, speed])
    numbers = codec.numbers(u, x)
    assert numbers[0] == pytest.approx(speed + 0.05 * u[0]) and numbers[5] == u[1]
    np.testing.assert_allclose(codec.input(numbers, x), u, rtol=0, atol=1e-12)


def test_a_proposal_that_is_not_a_number_reaches_the_shield_as_such():
    codec = InputCodec(RATES, QUADROTOR, 0.02)
    u = codec.input([0, 0, math.nan, 1, 2, 3], np.zeros(10))
    assert math.isnan(u[0]) and u[1:].tolist() == [1, 2, 3]


def test_own_keeps_the_bits_and_drops_what_is_not_ours():
    own = InputCodec(RATES, QUADROTOR, 0.02).own([7.0, 8.0, 0.1 + 0.2, -0.0, 5.0, 6.0])
    assert own == [0.0, 0.0, 0.1 + 0.2, -0.0, 5.0, 6.0]
    assert math.copysign(1.0, own[3]) == -1.0


@pytest.mark.parametrize(
    ("speed", "expected"), [(5.0, -5.0), (0.1, -2.0), (0.0, 0.0), (-0.1, 2.0), (-0.5, 5.0)]
)
def test_a_stop_brakes_to_standstill_and_not_beyond(speed, expected):
    codec = InputCodec(DRIVE, UNICYCLE, 0.05)
    u = codec.stop([-5.0, 0.0], np.array([0.0, 0.0, 0.0, speed]))
    assert u.tolist() == pytest.approx([expected, 0.0])


def test_a_quaternion_that_is_rounded_keeps_its_bits():
    codec = StateCodec(QUADROTOR)
    numbers = codec.numbers([0.1, 0.2, 1.0, 0.5, -0.4, 0.3, 0.6, 0.0, 0.8, 0.0])
    numbers[3:7] = (float(np.float32(q)) for q in numbers[3:7])
    numbers[3] += 1e-12
    assert codec.state(numbers)[6:].tolist() != [numbers[6], *numbers[3:6]]  # 1e-8 is not rounding
    numbers[3:7] = (0.0, 0.8 + 1e-16, 0.0, 0.6)
    assert codec.state(numbers)[6:].tolist() == [numbers[6], *numbers[3:6]]


def test_the_stop_of_a_quadrotor_is_its_stop_action():
    codec = InputCodec(RATES, QUADROTOR, 0.02)
    assert codec.stop([9.81, 0, 0, 0], np.zeros(10)).tolist() == [9.81, 0, 0, 0]


@given(quadrotor_states())
def test_float32_and_int_leave_as_plain_floats(x):
    state, action = StateCodec(QUADROTOR), InputCodec(RATES, QUADROTOR, 0.02)
    for values in (x.astype(np.float32), x.tolist()):
        assert all(type(v) is float for v in state.numbers(values))
    for u in (np.array([1.5, 1, 2, 3], np.float32), [1, 2, 3, 4]):
        numbers = action.numbers(u, x.astype(np.float32))
        assert all(type(v) is float for v in numbers) and numbers[2:] == [float(v) for v in u]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StateCodec(("px", "altitude")), "'altitude'.*pz"),
        (lambda: StateCodec(("px", "px")), "differ"),
        (lambda: StateCodec(("qw", "qx")), "all of qw"),
        (lambda: StateCodec((*QUADROTOR, "theta")), "all of qw"),
        (lambda: StateCodec(("v", "vx")), "either v or"),
        (lambda: InputCodec(("throttle",), QUADROTOR, 0.02), "'throttle'.*thrust"),
        (lambda: InputCodec(DRIVE, QUADROTOR, 0.02), "needs the state v"),
    ],
)
def test_channels_without_a_place_are_named(make, words):
    with pytest.raises(ConversionError, match=words):
        make()
