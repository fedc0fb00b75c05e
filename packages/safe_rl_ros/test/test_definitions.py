"""Message definitions for the recording."""

import pytest
from safe_rl_core.errors import SafeRLError
from safe_rl_ros import topics
from safe_rl_ros.definitions import SEPARATOR, definition

MESSAGES = {
    "std_msgs/Header": "builtin_interfaces/Time stamp\nstring frame_id\n",
    "builtin_interfaces/Time": "int32 sec\nuint32 nanosec\n",
    "my_msgs/Leaf": "# a comment with float64 and Header in it\nuint8 LIMIT=3\nfloat64[<=9] x\n",
    "my_msgs/Tree": "Header header\nLeaf[] leaves  # many\nstring<=8 name\nbool b true\n",
}


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    for name, text in MESSAGES.items():
        package, kind = name.split("/")
        folder = tmp_path / "share" / package / "msg"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}.msg").write_text(text)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")
    return tmp_path


def test_every_part_stands_once_behind_the_whole(prefix):
    parts = definition("my_msgs/msg/Tree").split(f"\n{SEPARATOR}\n")
    assert parts[0] == MESSAGES["my_msgs/Tree"]
    assert sorted(part.split("\n")[0] for part in parts[1:]) == [
        "MSG: builtin_interfaces/Time",
        "MSG: my_msgs/Leaf",
        "MSG: std_msgs/Header",
    ]


def test_a_missing_type_is_named_with_the_places(prefix):
    with pytest.raises(SafeRLError, match=r"other_msgs/msg/Thing.*/nowhere"):
        definition("other_msgs/msg/Thing")


def test_every_recorded_type_is_found_in_this_ros():
    pytest.importorskip("rclpy")
    for robot in topics.COMMANDS:
        for kind in topics.recorded(robot).values():
            assert "MSG:" in definition(kind) or kind.endswith("Clock")


def test_an_unknown_robot_is_refused():
    with pytest.raises(SafeRLError, match="submarine"):
        topics.recorded("submarine")
