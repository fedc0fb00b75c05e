"""Lifecycle of the nodes as processes: transitions by service, refusals, signals."""

import shutil
import signal
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install the wheels or source a setup file")

from lifecycle_msgs.srv import ChangeState, GetState
from safe_rl_ros.testing import Stack

pytestmark = pytest.mark.ros

MODELS = Path(__file__).resolve().parents[3] / "models"
BUNDLE = MODELS / "quadrotor_powerloop"
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4


@pytest.fixture
def stack():
    with Stack() as stack:
        yield stack


def test_transitions_by_service_and_a_wrong_one_does_no_harm(stack):
    node = stack.start("backup_shield_node.node", bundle=BUNDLE, autostart=False)

    def change(transition):
        request = ChangeState.Request()
        request.transition.id = transition
        return stack.call(ChangeState, "/shield/change_state", request).success

    def state():
        return stack.call(GetState, "/shield/get_state", GetState.Request()).current_state.label

    def listeners():
        return stack.node.count_subscribers("odom")

    assert state() == "unconfigured"
    with pytest.raises(AssertionError):  # rclpy answers an impossible request with an exception
        request = ChangeState.Request()
        request.transition.id = ACTIVATE
        client = stack.node.create_client(ChangeState, "/shield/change_state")
        stack.until(client.call_async(request).done, 1.0)
    assert state() == "unconfigured"
    assert change(CONFIGURE) and state() == "inactive" and listeners() == 0
    for _ in range(2):
        assert change(ACTIVATE) and state() == "active"
        stack.until(lambda: listeners() == 1)
        assert change(DEACTIVATE) and state() == "inactive"
        stack.until(lambda: listeners() == 0)
    assert change(CLEANUP) and state() == "unconfigured"
    stack.until(lambda: not stack.node.count_publishers("cmd_ctbr"))
    assert change(CONFIGURE) and change(ACTIVATE) and state() == "active"
    assert node.stop() == 0


@pytest.mark.parametrize("module", ["safe_policy_node.node", "backup_shield_node.node"])
def test_a_changed_bundle_is_refused_and_autostart_ends(stack, tmp_path, module):
    shutil.copytree(BUNDLE, tmp_path / "b")
    with (tmp_path / "b" / "program.txt").open("a") as file:
        file.write("# one more line\n")
    node = stack.start(module, bundle=tmp_path / "b")
    assert node.ends() == 1
    assert "not configured" in node.text and "program.txt was changed" in node.text
    assert "Traceback" not in node.text


def test_without_autostart_a_refused_bundle_leaves_the_node_unconfigured(stack):
    node = stack.start("backup_shield_node.node", bundle="no_such_bundle", autostart=False)
    request = ChangeState.Request()
    request.transition.id = CONFIGURE
    assert not stack.call(ChangeState, "/shield/change_state", request).success
    node.says("no bundle 'no_such_bundle'")
    state = stack.call(GetState, "/shield/get_state", GetState.Request()).current_state.label
    assert state == "unconfigured" and node.running
    assert node.stop() == 0


@pytest.mark.parametrize(
    ("module", "params", "words"),
    [
        ("safe_policy_node.node", {}, "parameter bundle is empty"),
        (
            "sim_bridge.node",
            {"bundle": BUNDLE, "plant": "gazebo"},
            "must be bullet, model or assumed",
        ),
        ("sim_bridge.node", {"bundle": BUNDLE, "plant": "model", "noise": 1.0}, "has no noise"),
        ("sim_bridge.node", {"bundle": BUNDLE, "noise": 1}, "noise"),  # an int for a double
        ("sim_bridge.hardware_node", {"bundle": BUNDLE, "command_type": "joy"}, "twist_stamped"),
        ("sim_bridge.hardware_node", {"bundle": BUNDLE, "lockstep": True}, "does not wait"),
        ("safe_rl_ros.recorder", {"bundle": BUNDLE}, "parameter output is empty"),
    ],
)
def test_a_wrong_parameter_ends_the_node_with_the_reason(stack, module, params, words):
    node = stack.start(module, **params)
    assert node.ends() == 1
    assert words in node.text and "Traceback" not in node.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_active_node_cleanly(stack, number):
    node = stack.start("safe_policy_node.node", bundle=BUNDLE)
    node.says("active with")
    node.send(number)
    assert node.ends(5.0) == 0
    assert "Traceback" not in node.text
