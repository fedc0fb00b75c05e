"""Plants (ROS-free) and the nodes that put a plant or a real vehicle on ROS topics."""

import os

# As in safe_rl_ros, which this package must not import: the plants work without ROS.
os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")
