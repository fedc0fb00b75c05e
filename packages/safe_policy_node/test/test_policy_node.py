"""The policy node as a process: what it proposes is what the core computes."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install the wheels or source a setup file")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from safe_rl_core.bundle import Bundle
from safe_rl_core.policy import Policy
from safe_rl_ros.convert import codecs
from safe_rl_ros.stamps import SECOND, to_ns
from safe_rl_ros.testing import Stack
from safe_rl_ros.wire import odometry_wire, twist_numbers

pytestmark = pytest.mark.ros

MODELS = Path(__file__).resolve().parents[3] / "models"
TOPICS = {"quadrotor_powerloop": "cmd_ctbr_nominal", "unicycle_lane": "cmd_vel_nominal"}


@pytest.mark.parametrize("name", TOPICS)
@pytest.mark.parametrize("shifted", [False, True])
def test_each_state_gets_its_proposal_under_its_own_stamp(name, shifted):
    bundle = Bundle.load(MODELS / name)
    states, inputs = codecs(bundle)
    wire, policy = odometry_wire("odom", "base_link"), Policy(bundle)
    start = 7 * SECOND if shifted else 0
    with Stack() as stack:
        proposals = stack.listen(TwistStamped, TOPICS[name])
        diagnostics = stack.listen(DiagnosticArray, "/diagnostics")
        odom = stack.publisher(Odometry, "odom")
        stack.start(
            "safe_policy_node.node", bundle=MODELS / name, lockstep=True,
            start_at_first_state=shifted,
        )  # fmt: skip
        stack.connected(odom)
        stack.until(lambda: stack.node.count_publishers(TOPICS[name]) == 1)
        stack.spin(0.3)
        for k in range(5):
            t = k * bundle.period
            packed = states.numbers(bundle.program("reference", np.array([t])))
            odom.publish(wire.pack(start + round(t * SECOND), packed))
            stack.until(lambda k=k: len(proposals) > k, 5.0)
            message = proposals[k][1]
            assert to_ns(message.header.stamp) == start + round(t * SECOND)
            assert message.header.frame_id == "base_link"
            x = states.state(packed)
            expected = inputs.numbers(policy.act(x, round(t * SECOND) / SECOND), x)
            assert twist_numbers(message) == tuple(expected)
        # A state that is none gets no proposal, and is counted.
        packed[0 if name.startswith("quad") else 7] = math.nan
        odom.publish(wire.pack(start + SECOND, packed))
        stack.until(
            lambda: any(
                item.key == "state_not_finite"
                for _, array in diagnostics
                for item in array.status[0].values
            ),
            5.0,
        )
        assert len(proposals) == 5
        # And silence is reported as such.
        stack.until(lambda: diagnostics[-1][1].status[0].level == b"\x03", 5.0)
        assert "no usable state" in diagnostics[-1][1].status[0].message
