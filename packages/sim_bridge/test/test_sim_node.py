"""The whole stack as processes: determinism, start order, dead nodes, ageing commands."""

import signal
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install the wheels or source a setup file")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.srv import GetState
from nav_msgs.msg import Odometry
from safe_rl_core.bundle import Bundle
from safe_rl_ros.stamps import SECOND, to_ns
from safe_rl_ros.testing import Stack
from safe_rl_ros.wire import odometry_numbers, twist_numbers, twist_wire

pytestmark = [pytest.mark.ros, pytest.mark.sim]

MODELS = Path(__file__).resolve().parents[3] / "models"
QUADROTOR, UNICYCLE = MODELS / "quadrotor_powerloop", MODELS / "unicycle_lane"
PERIOD_NS = 20_000_000
NODES = {
    "policy": ("safe_policy_node.node", {"use_sim_time": True}),
    "shield": ("backup_shield_node.node", {"use_sim_time": True, "proposal_timeout": 2.0}),
    "sim": ("sim_bridge.node", {"seed": 3}),
}


def start(stack, order=("policy", "shield", "sim"), *, bundle=QUADROTOR, lockstep=True, **sim):
    """Start the nodes; parameters on top are the simulation's. Returns them by name."""
    processes = {}
    for name in order:
        module, params = NODES[name]
        if not lockstep:
            params = {k: v for k, v in params.items() if k != "proposal_timeout"}
        more = {"plant": "model", "laps": 1, **sim} if name == "sim" else {}
        processes[name] = stack.start(module, bundle=bundle, lockstep=lockstep, **params, **more)
    return processes


def values(array):
    return {item.key: item.value for item in array.status[0].values}


def flight(command="cmd_ctbr", **how):
    """Commands and true states of one run, by stamp, with the exit code. Nothing is missed:
    the simulation waits for this test, which listens for states only when all know it.
    """
    with Stack() as stack:
        commands = stack.listen(TwistStamped, command)
        truth = stack.listen(Odometry, "ground_truth/odom")
        sim = start(stack, wait_for="[policy, shield, probe]", **how)["sim"]
        stack.known_to("shield", "sim")
        stack.listen(Odometry, "odom")
        stack.until(lambda: not sim.running, 40.0)
        stack.spin(0.2)
        return (
            {to_ns(m.header.stamp): twist_numbers(m) for _, m in commands},
            {to_ns(m.header.stamp): odometry_numbers(m) for _, m in truth},
            sim.ends(),
            sim.text,
        )


@pytest.mark.parametrize("plant", ["model", "bullet"])
def test_two_lockstep_runs_are_the_same_bit_for_bit_whoever_starts_first(plant):
    first = flight(plant=plant)
    second = flight(plant=plant, order=("sim", "shield", "policy"))
    assert first[2] == second[2] == 0, first[3]
    stamps = [k * PERIOD_NS for k in range(106)]
    for commands, truth in (first[:2], second[:2]):
        assert sorted(commands) == sorted(truth) == stamps
    assert first[:2] == second[:2]
    assert "lap 1/1" in first[3] and "no violation" in first[3]


def test_the_unicycle_drives_on_speed_set_points():
    commands, truth, code, text = flight("cmd_vel", bundle=UNICYCLE)
    assert code == 0, text
    bundle = Bundle.load(UNICYCLE)
    v = [numbers[7] for _, numbers in sorted(truth.items())]
    speeds = [numbers[0] for _, numbers in sorted(commands.items())]
    assert len(v) == len(speeds) > 100
    for k in range(len(speeds) - bundle.delay_steps - 1):
        gained = v[k + bundle.delay_steps + 1] - v[k + bundle.delay_steps]
        assert speeds[k] - v[k] == pytest.approx(gained, abs=1e-9)


def test_lockstep_a_killed_policy_is_replaced_in_the_next_period_and_nothing_breaks():
    with Stack() as stack:
        status = stack.listen(DiagnosticArray, "shield/status")
        nodes = start(stack, laps=2, realtime=True)
        stack.until(lambda: len(status) > 30)
        nodes["policy"].send(signal.SIGKILL)
        assert nodes["policy"].ends() == -signal.SIGKILL
        stack.until(lambda: not nodes["sim"].running, 30.0)
        assert nodes["sim"].ends() == 0, nodes["sim"].text
        stack.spin(0.2)
        reasons = [values(array)["reason"] for _, array in status]
        dead = reasons.index("no_proposal")
        assert 30 <= dead < 200 and set(reasons[dead:]) == {"no_proposal"}
        stamps = [array.header.stamp for _, array in status]
        answered = [stamp.sec * 10**9 + stamp.nanosec for stamp in stamps]
        # Each state once, up to the last; how early this test came to listen is up to discovery.
        assert answered == list(range(answered[0], 211 * PERIOD_NS, PERIOD_NS))


def test_real_time_the_shield_is_deactivated_before_it_misses_a_state():
    with Stack() as stack:
        status = stack.listen(DiagnosticArray, "shield/status")
        nodes = start(stack, lockstep=False)
        stack.until(lambda: not nodes["sim"].running, 30.0)
        assert nodes["sim"].ends() == 0, nodes["sim"].text
        answer = stack.call(GetState, "shield/get_state", GetState.Request())
        assert answer.current_state.label == "inactive"
        stack.spin(0.2)
        assert len(status) > 100
        assert values(status[-1][1])["reason"] != "state_unknown"


def test_real_time_a_killed_policy_is_replaced_within_two_periods():
    with Stack() as stack:
        status = stack.listen(DiagnosticArray, "shield/status")
        proposals = stack.listen(TwistStamped, "cmd_ctbr_nominal")
        nodes = start(stack, lockstep=False, laps=2)
        stack.until(lambda: len(proposals) > 60)
        nodes["policy"].send(signal.SIGKILL)
        stack.until(lambda: not nodes["sim"].running, 30.0)
        assert nodes["sim"].ends() == 0, nodes["sim"].text
        last = max(to_ns(message.header.stamp) for _, message in proposals)
        assert last < 3 * SECOND, "the policy was to die in the middle of the flight"
        answers = {to_ns(array.header.stamp): values(array) for _, array in status}
        for stamp, answer in answers.items():
            if stamp >= last + 2 * PERIOD_NS:
                assert answer["verdict"] == "BACKUP", stamp
        assert sum(stamp >= last + 2 * PERIOD_NS for stamp in answers) > 50


def test_real_time_commands_of_a_killed_shield_age_out():
    with Stack() as stack:
        truth = stack.listen(Odometry, "ground_truth/odom")
        nodes = start(stack, lockstep=False, laps=1)
        stack.until(lambda: len(truth) > 50)
        nodes["shield"].send(signal.SIGKILL)
        nodes["sim"].says("command_aged_out")
        stack.until(lambda: not nodes["sim"].running, 20.0)
        assert "command_aged_out" in nodes["sim"].text.splitlines()[-1]
        # The plant went on without commands, and on the stop action: no more rotation.
        attitudes = [odometry_numbers(message)[3:7] for _, message in truth[-20:]]
        assert to_ns(truth[-1][1].header.stamp) == 105 * PERIOD_NS
        assert all(q == pytest.approx(attitudes[0], abs=1e-9) for q in attitudes)


def test_missing_nodes_are_named_and_the_run_is_not_a_success():
    with Stack() as stack:
        sim = start(stack, order=("sim",), wait_limit=2.0)["sim"]
        assert sim.ends() == 3
        assert "policy, shield not listening to /odom" in sim.text


def test_a_silent_shield_ends_the_run_and_a_command_for_another_state_does_not_count():
    with Stack() as stack:
        states = stack.listen(Odometry, "odom")
        commands = stack.publisher(TwistStamped, "cmd_ctbr")
        sim = start(stack, order=("sim",), wait_for="[probe]", wait_limit=3.0)["sim"]
        stack.until(lambda: states)
        wire = twist_wire("base_link")
        for stamp in (PERIOD_NS, 5 * PERIOD_NS):
            commands.publish(wire.pack(stamp, [0, 0, 9.81, 0, 0, 0]))
        commands.publish(twist_wire("base_link_ned").pack(0, [0, 0, 9.81, 0, 0, 0]))
        sim.says("command_wrong_frame")
        sim.says("command_wrong_stamp")
        commands.publish(wire.pack(0, [0, 0, float("nan"), 0, 0, 0]))
        sim.says("command_not_finite")  # and the stop action flies
        stack.until(lambda: to_ns(states[-1][1].header.stamp) == PERIOD_NS)
        assert len(states) >= 2
        assert sim.ends(20.0) == 3
        assert "no command on cmd_ctbr for 3 s" in sim.text
        stack.spin(0.2)
        # Every half second the unanswered state was sent again.
        assert len(states) >= 5
