"""ros2 launch safe_rl quadrotor.launch.py [plant:=sim|hardware] …; --show-args lists all."""

from launch import LaunchDescription
from safe_rl.launch_description import describe


def generate_launch_description() -> LaunchDescription:
    """The quadrotor stack."""
    return describe("quadrotor")
