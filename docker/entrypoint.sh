#!/usr/bin/env bash
# ROS 2, then this workspace, then the command of the container.
set -euo pipefail
# ROS's set-up scripts read variables that may be unset.
set +u
. /opt/ros/jazzy/setup.bash
. /src/ros2_ws/install/setup.bash
set -u
export ROS_PYTHON_CHECK_FIELDS="${ROS_PYTHON_CHECK_FIELDS:-1}"
exec "$@"
