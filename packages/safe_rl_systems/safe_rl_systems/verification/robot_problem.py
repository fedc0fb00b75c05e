"""The base set of a robot from `robot.py` as a problem for synthesis: its assumptions, any design.

The certificate derives the same numbers again from the bundle (`certify`), for the final design.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from safe_rl_core.certificate import SIGMA_MAX
from safe_rl_core.errors import ModelError

from safe_rl_systems.build import description, robot_program
from safe_rl_systems.robot import Robot
from safe_rl_systems.verification.assumptions import stated
from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.bounds import prediction_error, tracking_error
from safe_rl_systems.verification.interval import Array
from safe_rl_systems.verification.remainder import choose_splits, error_remainder

#: Sub-boxes per bound; few, because the certificate takes more.
_SUB_BOXES = 256


def robot_problem(robot: Robot, extent: Array) -> BaseProblem:
    """The robot's present base set, with the measurement error of any set within `extent` (k)."""
    if robot.robust is None:
        raise ModelError(f"{robot.name} has no RobustDesign, so nothing is assumed about it")
    program, assumed = robot_program(robot), description(robot)["assumptions"]
    given = stated(
        assumed,
        extent,
        period=robot.system.period,
        delay_steps=robot.delay_steps,
        input_low=np.array([c.low for c in robot.system.inputs]),
        input_high=np.array([c.high for c in robot.system.inputs]),
    )
    # The tables reach SIGMA_MAX times as far as this disturbance: here as far as the assumed one.
    near = replace(given, disturbance=given.disturbance / SIGMA_MAX)
    splits = choose_splits(program, near, _SUB_BOXES)
    table = error_remainder(program, near, splits, lambda *_: None)
    prediction = prediction_error(program, given, table, _SUB_BOXES)
    measured = tracking_error(program, given, prediction, _SUB_BOXES)
    return BaseProblem.stated(program, assumed, given, measured)
