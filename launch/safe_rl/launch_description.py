"""The start list of stack.py in the words of `ros2 launch`; both launch files call `describe`."""

from __future__ import annotations

import os

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from safe_rl.arguments import ARGUMENTS, options
from safe_rl.runner import ros_environment
from safe_rl.stack import NodeSpec, stack


def describe(robot: str) -> LaunchDescription:
    """All arguments, and the nodes that they ask for."""
    declared = [
        DeclareLaunchArgument(
            argument.name, default_value=argument.default, description=argument.help
        )
        for argument in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_start, args=[robot])])


def _start(context: LaunchContext, robot: str) -> list[LaunchDescriptionEntity]:
    texts = {
        argument.name: LaunchConfiguration(argument.name).perform(context)
        for argument in ARGUMENTS
    }
    # Domain and range are the user's here: other ROS tools are to see these nodes.
    environment = [
        SetEnvironmentVariable(name, value)
        for name, value in ros_environment(private=False).items()
        if not os.environ.get(name)
    ]
    return [*environment, *(node(spec) for spec in stack(robot, **options(robot, texts)))]


def node(spec: NodeSpec) -> Node:
    """One process of the stack as a launch action."""
    parameters: list[object] = [dict(spec.parameters)]
    if spec.parameter_file is not None:
        parameters.insert(0, str(spec.parameter_file))
    stops = spec.required or spec.ends_stack
    ending = {"on_exit": Shutdown(reason=f"{spec.name} has ended")} if stops else {}
    return Node(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        parameters=parameters,
        remappings=list(spec.remappings),
        output="screen",
        **ending,
    )
