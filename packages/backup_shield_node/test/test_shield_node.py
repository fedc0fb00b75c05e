"""The shield node as a process: the test is simulation and policy, and speaks real ROS."""

import math
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install the wheels or source a setup file")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from safe_rl_core.bundle import Bundle
from safe_rl_core.shield import Shield
from safe_rl_ros import qos
from safe_rl_ros.convert import codecs
from safe_rl_ros.stamps import SECOND, to_ns
from safe_rl_ros.testing import Stack
from safe_rl_ros.wire import odometry_wire, twist_numbers, twist_wire
from visualization_msgs.msg import MarkerArray

pytestmark = pytest.mark.ros

BUNDLE = Path(__file__).resolve().parents[3] / "models" / "quadrotor_powerloop"
PERIOD_NS = 20_000_000
HOVER = np.array([0.0, 0, 1.5, 0, 0, 0, 1, 0, 0, 0])
THRUST = [0.0, 0.0, 9.81, 0.0, 0.0, 0.0]


class Bench:
    """A shield process between a test's states and proposals."""

    def __init__(self, stack, **params):
        self.stack, self.states = stack, codecs(Bundle.load(BUNDLE))[0]
        self.odometry, self.twist = odometry_wire("odom", "base_link"), twist_wire("base_link")
        self.commands = stack.listen(TwistStamped, "cmd_ctbr")
        self.status = stack.listen(DiagnosticArray, "shield/status")
        self.diagnostics = stack.listen(DiagnosticArray, "/diagnostics")
        self.odom = stack.publisher(Odometry, "odom")
        self.nominal = stack.publisher(TwistStamped, "cmd_ctbr_nominal")
        self.process = stack.start("backup_shield_node.node", bundle=BUNDLE, **params)
        stack.connected(self.odom)
        stack.connected(self.nominal)
        own = stack.node
        topics = ("cmd_ctbr", "shield/status", "/diagnostics")
        stack.until(lambda: all(map(own.count_publishers, topics)))
        stack.spin(0.5)

    def state(self, stamp, x=HOVER):
        self.odom.publish(self.odometry.pack(stamp, self.states.numbers(x)))

    def propose(self, stamp, numbers=THRUST):
        self.nominal.publish(self.twist.pack(stamp, numbers))

    def answer(self, count=1):
        """Verdict, reason and numbers of the newest answer, once there are `count` of them."""
        self.stack.until(lambda: len(self.commands) >= count and len(self.status) >= count, 5.0)
        values = {item.key: item.value for item in self.status[count - 1][1].status[0].values}
        message = self.commands[count - 1][1]
        return values, to_ns(message.header.stamp), twist_numbers(message)

    def counter(self, name):
        """Newest value of a counter in /diagnostics, or None."""
        for _, array in reversed(self.diagnostics):
            for item in array.status[0].values:
                if item.key == name:
                    return int(item.value)
        return None


@pytest.fixture(scope="module")
def lockstep():
    """One shield in lockstep for all tests that need no particular past; yields fresh stamps."""
    with Stack() as stack:
        yield Bench(stack, lockstep=True)


@pytest.fixture
def bench(lockstep):
    """The shared bench with empty lists and a stamp base behind everything before."""
    lockstep.commands.clear()
    lockstep.status.clear()
    lockstep.base = getattr(lockstep, "base", 0) + SECOND
    return lockstep


def test_a_safe_proposal_passes_bit_for_bit(bench):
    numbers = [0.0, 0.0, 9.81 + 1e-13, 0.1 + 0.2, -0.0, 1e-300]
    bench.state(bench.base)
    bench.propose(bench.base, numbers)
    values, stamp, sent = bench.answer()
    assert values["verdict"] == "PASSED" and stamp == bench.base
    assert np.array(sent).tobytes() == np.array(numbers).tobytes()


def test_fields_of_no_meaning_are_not_passed_on(bench):
    bench.state(bench.base)
    bench.propose(bench.base, [math.nan, 5.0, 9.81, 0.0, 0.0, 0.0])
    values, _, sent = bench.answer()
    assert values["verdict"] == "PASSED" and sent == (0.0, 0.0, 9.81, 0.0, 0.0, 0.0)


def test_a_dangerous_proposal_is_what_the_core_makes_of_it(bench):
    x = np.array([0.0, 0, 2.7, 0, 0, 1.0, 1, 0, 0, 0])
    bench.state(bench.base, x)
    bench.propose(bench.base, [0, 0, 39.0, 0, 0, 0])
    values, _, sent = bench.answer()
    states, inputs = codecs(Bundle.load(BUNDLE))
    seen = states.state(bench.odometry.unpack(bench.odometry.pack(0, states.numbers(x)))[1])
    expected = Shield(Bundle.load(BUNDLE)).step(seen, np.array([39.0, 0, 0, 0]))
    assert values["verdict"] == expected.verdict.value != "PASSED"
    assert sent == tuple(inputs.numbers(expected.action, seen))
    assert float(values["margin"]) == expected.margin


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_proposal_that_is_no_number_is_refused_by_name(bench, bad):
    bench.state(bench.base)
    bench.propose(bench.base, [0, 0, bad, 0, 0, 0])
    values, _, sent = bench.answer()
    assert (values["verdict"], values["reason"]) == ("BACKUP", "proposal_not_finite")
    assert all(map(math.isfinite, sent))


def test_a_silent_policy_gets_the_backup(bench):
    bench.state(bench.base)
    values, _, _ = bench.answer()
    assert (values["verdict"], values["reason"]) == ("BACKUP", "no_proposal")


def test_a_repeated_state_gets_the_same_command_and_no_second_step(bench):
    for _ in range(2):
        bench.state(bench.base)
        bench.propose(bench.base)
    bench.stack.until(lambda: len(bench.commands) == 2, 5.0)
    bench.stack.spin(0.3)
    first, second = (message for _, message in bench.commands)
    assert first == second and len(bench.status) == 1


@pytest.mark.parametrize(
    ("counter", "x", "frames"),
    [
        ("state_not_finite", HOVER + [0, math.nan, 0, 0, 0, 0, 0, 0, 0, 0], None),
        ("state_quaternion_norm", HOVER * 1.5, None),
        ("state_wrong_frame", HOVER, ("odom_ned", "base_link")),
    ],
)
def test_a_bad_state_stops_at_the_door_and_is_counted(bench, counter, x, frames):
    before = bench.counter(counter) or 0
    wire = odometry_wire(*frames) if frames else bench.odometry
    with np.errstate(invalid="ignore"):
        numbers = bench.states.numbers(x)
    bench.odom.publish(wire.pack(bench.base, numbers))
    bench.propose(bench.base)
    bench.stack.until(lambda: (bench.counter(counter) or 0) > before, 5.0)
    assert not bench.commands
    bench.state(bench.base)
    assert bench.answer()[0]["verdict"] == "PASSED"


def test_an_older_state_is_not_answered(bench):
    bench.state(bench.base)
    bench.propose(bench.base)
    bench.answer()
    bench.state(bench.base - PERIOD_NS)
    bench.propose(bench.base - PERIOD_NS)
    bench.stack.spin(0.4)
    assert len(bench.commands) == 1


def test_markers_show_plan_and_planes_to_who_asks(bench):
    arrays = bench.stack.listen(MarkerArray, "shield/markers")
    bench.stack.until(lambda: bench.stack.node.count_subscribers("shield/markers"))
    bench.stack.spin(0.5)
    for k in range(10):
        bench.state(bench.base + k * PERIOD_NS)
        bench.propose(bench.base + k * PERIOD_NS)
        bench.answer(k + 1)
    bench.stack.until(lambda: arrays, 5.0)
    assert len(arrays) <= 2  # 0.2 s of stamps at no more than 10 Hz
    markers = {marker.ns: marker for marker in arrays[0][1].markers}
    assert len(markers["backup_rollout"].points) >= 25
    assert markers["safe_set/ceiling"].pose.position.z == pytest.approx(3.0)
    assert markers["safe_set/side_x_lower"].pose.position.x == pytest.approx(-4.0)


def test_real_time_a_silent_estimator_is_answered_each_period_until_it_stands():
    with Stack() as stack:
        bench = Bench(stack, lockstep=False)
        stack.spin(0.5)
        assert not bench.commands, "nothing may move before the first state"
        start = time.monotonic()
        for k in range(25):
            stamp = stack.node.get_clock().now().nanoseconds
            bench.state(stamp)
            bench.propose(stamp)
            stack.spin(max(0.0, start + (k + 1) * 0.02 - time.monotonic()))
        stack.until(lambda: len(bench.status) >= 20, 5.0)
        last = max(to_ns(array.header.stamp) for _, array in bench.status)
        stack.spin(0.4)
        begin = len(bench.status)
        stack.spin(2.0)
        late = bench.status[begin:]
        # Half a period of slack per second for a machine that is busy with other things.
        assert len(late) == pytest.approx(100, abs=15)
        for _, array in late:
            values = {item.key: item.value for item in array.status[0].values}
            assert (values["verdict"], values["reason"]) == ("BACKUP", "state_unknown")
            assert to_ns(array.header.stamp) == last
        stack.spin(0.3)
        # The plan is over by now: what is sent is the stop action, and it is a number.
        assert twist_numbers(bench.commands[-1][1]) == (0.0, 0.0, 9.81, 0.0, 0.0, 0.0)
        levels = [a.status[0].level for _, a in bench.diagnostics if "shield" in a.status[0].name]
        assert levels[-1] == b"\x03"
        # Stamps of another time base are refused, and the message names the parameter.
        bench.state(5 * SECOND)
        stack.until(lambda: bench.counter("state_late"), 5.0)
        assert "use_sim_time is False" in bench.process.text
        bench.state(stack.node.get_clock().now().nanoseconds + 10 * SECOND)
        stack.until(lambda: bench.counter("state_future"), 5.0)
        # And the estimator is welcome back.
        count = len(bench.status)
        stamp = stack.node.get_clock().now().nanoseconds
        bench.state(stamp)
        bench.propose(stamp)
        stack.until(
            lambda: any(to_ns(a.header.stamp) == stamp for _, a in bench.status[count:]), 5.0
        )


def test_real_time_a_stopped_policy_is_replaced_within_two_periods():
    """A hung process is not a closed one: SIGSTOP, and the shield sees only silence."""
    with Stack() as stack:
        bench = Bench(stack, lockstep=False)
        policy = stack.start("safe_policy_node.node", bundle=BUNDLE, lockstep=False)
        stack.connected(bench.odom, 2)
        stack.until(lambda: bench.stack.node.count_publishers("cmd_ctbr_nominal") == 2)
        stack.spin(0.5)
        proposals = stack.listen(TwistStamped, "cmd_ctbr_nominal")
        stack.spin(0.5)
        start = time.monotonic()
        for k in range(60):
            if k == 30:
                policy.send(signal.SIGSTOP)
            bench.state(stack.node.get_clock().now().nanoseconds)
            stack.spin(max(0.0, start + (k + 1) * 0.02 - time.monotonic()))
        newest = max(to_ns(message.header.stamp) for _, message in proposals)
        # Witness that the fault happened: half of the states have no proposal.
        assert 5 <= len(proposals) <= 35
        stamps = sorted({to_ns(array.header.stamp) for _, array in bench.status})
        after = [stamp for stamp in stamps if stamp > newest]
        assert len(after) >= 20
        verdicts = {
            to_ns(array.header.stamp): {i.key: i.value for i in array.status[0].values}
            for _, array in bench.status
        }
        for stamp in after[1:]:
            assert verdicts[stamp]["verdict"] == "BACKUP"


def test_an_incompatible_publisher_is_named_with_the_remedy():
    with Stack() as stack:
        stack.publisher(Odometry, "odom", qos.best_effort())
        shield = stack.start("backup_shield_node.node", bundle=BUNDLE, lockstep=True)
        shield.says("RELIABILITY")
        assert "(BEST_EFFORT, " in shield.text and "same reliability" in shield.text
