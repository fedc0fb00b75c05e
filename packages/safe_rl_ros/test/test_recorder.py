"""The recording of a real run: complete, and readable by what people use to read recordings."""

import signal
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install the wheels or source a setup file")

from mcap.reader import make_reader
from nav_msgs.msg import Odometry
from safe_rl_ros import mcap_log
from safe_rl_ros.mcap_log import McapLog
from safe_rl_ros.stamps import SECOND, to_ns
from safe_rl_ros.testing import Stack
from safe_rl_ros.wire import odometry_wire

BUNDLE = Path(__file__).resolve().parents[3] / "models" / "quadrotor_powerloop"
COMPLETE = ("/odom", "/ground_truth/odom", "/cmd_ctbr_nominal", "/cmd_ctbr", "/shield/status")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """One lap in lockstep, recorded; the file."""
    folder = tmp_path_factory.mktemp("run") / "deeper"
    with Stack() as stack:
        common = {"bundle": BUNDLE, "lockstep": True}
        recorder = stack.start("safe_rl_ros.recorder", **common, use_sim_time=True, output=folder)
        stack.start("safe_policy_node.node", **common, use_sim_time=True)
        stack.start("backup_shield_node.node", **common, use_sim_time=True)
        sim = stack.start(
            "sim_bridge.node", **common, plant="model", laps=1,
            wait_for="[policy, shield, recorder]",
        )  # fmt: skip
        assert sim.ends(40.0) == 0, sim.text
        recorder.send(signal.SIGTERM)
        assert recorder.ends() == 0
        assert "0 lost" in recorder.text, recorder.text
    return folder / "recording.mcap"


@pytest.mark.ros
def test_every_message_of_the_control_path_is_there_under_its_stamp(recording):
    from mcap_ros2.decoder import DecoderFactory

    stamps = {topic: [] for topic in COMPLETE}
    with recording.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        assert reader.get_header().profile == "ros2"
        for schema, channel, message, decoded in reader.iter_decoded_messages():
            assert schema.encoding == "ros2msg" and channel.message_encoding == "cdr"
            if channel.topic in stamps:
                assert message.log_time == to_ns(decoded.header.stamp)
                stamps[channel.topic].append(message.log_time)
            assert message.log_time <= 3 * SECOND < message.publish_time
        notes = {record.name: record.metadata for record in reader.iter_metadata()}
    # 106 states before, and one after, the 105 periods; the last one is nobody's question.
    for topic in COMPLETE:
        assert sorted(set(stamps[topic]))[:105] == [k * 20_000_000 for k in range(105)], topic
        assert Counter(stamps[topic]).most_common(1)[0][1] == 1, topic
    assert notes["safe_rl"]["certificate"] and len(notes["safe_rl"]["bundle_hash"]) == 64
    assert notes["losses"] == {"recorder": "0", "transport": "0"}


@pytest.mark.ros
def test_rosbags_reads_it_too(recording):
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    with AnyReader([recording], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        topics = {connection.topic for connection in reader.connections}
        assert {*COMPLETE, "/clock", "/shield/markers", "/diagnostics"} <= topics
        seen = 0
        for connection, _, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            if connection.topic == "/odom":
                assert message.child_frame_id == "base_link"
                seen += 1
        assert seen >= 105


@pytest.mark.ros
def test_what_the_middleware_drops_is_counted(tmp_path):
    wire = odometry_wire("odom", "base_link")
    with Stack() as stack:
        odom = stack.publisher(Odometry, "odom")
        recorder = stack.start(
            "safe_rl_ros.recorder", bundle=BUNDLE, lockstep=True, output=tmp_path
        )
        stack.connected(odom)  # after five seconds: there is nobody else
        stack.spin(0.5)
        for k in (0, 1, 2, 5, 6, 9):
            odom.publish(wire.pack(k * 20_000_000, [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]))
        stack.spin(0.5)
        assert recorder.stop() == 0
        assert "recording incomplete" in recorder.text and "4 lost" in recorder.text


def log(path, capacity=1000):
    made = McapLog(path, capacity)
    return made, made.channel("/x", "std_msgs/msg/String", "string data\n")


def test_what_does_not_fit_the_queue_is_counted(tmp_path):
    made, channel = log(tmp_path / "a.mcap", capacity=3)
    for k in range(10):  # the thread does not run yet
        made.put(channel, k, k, b"\0\1\0\0")
    made.start()
    made.finish()
    assert (made.written, made.lost) == (3, 7)
    made.note("losses", {"recorder": "7"})
    assert made.close() is None
    with (tmp_path / "a.mcap").open("rb") as file:
        reader = make_reader(file)
        assert [m.log_time for _, _, m in reader.iter_messages()] == [0, 1, 2]


def test_a_full_disk_is_reported_and_does_not_raise(tmp_path, monkeypatch):
    made, channel = log(tmp_path / "a.mcap")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(made._writer, "add_message", full)
    monkeypatch.setattr(mcap_log, "PAUSE_S", 0.001)
    made.put(channel, 0, 0, b"")
    made.start()
    made.finish()
    made.put(channel, 1, 1, b"")
    assert made.lost >= 1
    assert made.close().errno == 28


@pytest.mark.ros
def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with Stack() as stack:
        node = stack.start("safe_rl_ros.recorder", bundle=BUNDLE, output=tmp_path / "taken")
        assert node.ends() == 1 and "taken" in node.text and "Traceback" not in node.text
