"""What a flight on a robot's own equations needs to know of it, from a definition or a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.build import batch_kernel
from safe_rl_systems.robot import Robot

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """Kernel, times, limits, names; `rest` makes the kernel of `WorstCorner`."""

    kernel: BatchKernel
    rest: Callable[[], BatchKernel]
    period: float
    steps: int
    delay_steps: int
    input_low: Array
    input_high: Array
    input_scale: Array
    stop_action: Array
    rows: tuple[str, ...]
    tracked: dict[str, int]


def case_of(robot: Robot | Bundle, threads: int, kernel: BatchKernel | None = None) -> Case:
    """The case of a robot's definition or of a bundle; `kernel` if there is one already."""
    if isinstance(robot, Bundle):
        own, source, duration = robot.kernel(), robot, robot.task.duration_s
        states, inputs, rows = robot.states, robot.inputs, robot.safe_set_names
        period = robot.period
        kernel = kernel or BatchKernel.of(robot, threads)

        def rest() -> BatchKernel:
            return BatchKernel(own.compiled, own.theorem, own.horizon - 1, threads)
    else:
        source, duration = robot, robot.duration
        states, inputs, rows = robot.system.states, robot.system.inputs, robot.safe_set.names
        period = robot.system.period
        kernel = kernel or batch_kernel(robot, threads)

        def rest() -> BatchKernel:
            return batch_kernel(replace(robot, horizon=robot.horizon - 1), threads)

    names = [channel.name for channel in states]
    return Case(
        kernel=kernel,
        rest=rest,
        period=period,
        steps=max(1, round(duration / period)),
        delay_steps=source.delay_steps,
        input_low=np.array([c.low for c in inputs]),
        input_high=np.array([c.high for c in inputs]),
        input_scale=np.array(source.input_scale),
        stop_action=np.array(source.stop_action),
        rows=tuple(rows),
        tracked={name: names.index(name) for name in source.task.tracked},
    )
