"""ros2 launch safe_rl unicycle.launch.py [plant:=sim|hardware] …; --show-args lists all."""

from launch import LaunchDescription
from safe_rl.launch_description import describe


def generate_launch_description() -> LaunchDescription:
    """The unicycle stack."""
    return describe("unicycle")
