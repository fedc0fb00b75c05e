"""The base set of a robot from `robot.py` as a problem for synthesis: its assumptions, any design.

The certificate derives the same numbers again from the bundle (`certify`), for the final design.
"""

from __future__ import annotations

import numpy as np
from safe_rl_core.errors import ModelError

from safe_rl_systems.build import robot_program
from safe_rl_systems.robot import Robot
from safe_rl_systems.verification.assumptions import Assumptions
from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.bounds import (
    late_switching,
    prediction_error,
    tracking_error,
)
from safe_rl_systems.verification.interval import Array
from safe_rl_systems.verification.remainder import choose_splits, error_remainder

#: Sub-boxes per bound; few, because the certificate takes more.
_SUB_BOXES = 256


def robot_problem(robot: Robot, extent: Array) -> BaseProblem:
    """The robot's present base set, with the measurement error of any set within `extent` (k)."""
    design, system = robot.robust, robot.system
    if design is None:
        raise ModelError(f"{robot.name} has no RobustDesign, so nothing is assumed about it")
    program = robot_program(robot)
    low = np.array([c.low for c in system.inputs])
    high = np.array([c.high for c in system.inputs])
    given = Assumptions(
        period=system.period,
        delay_steps=robot.delay_steps,
        jitter=design.jitter,
        disturbance=design.disturbance,
        estimate_error=design.estimate_error,
        error_domain=design.error_domain,
        input_domain=design.input_domain,
        base_extent=extent,
        input_low=low,
        input_high=high,
        state_low=design.state_low,
        state_high=design.state_high,
        schedule_low=design.schedule_low,
        schedule_high=design.schedule_high,
        schedule_cells=design.schedule_cells,
    )
    disturbance = given.disturbance + late_switching(program, given, _SUB_BOXES)
    splits = choose_splits(program, given, disturbance, _SUB_BOXES)
    table = error_remainder(program, given, disturbance, splits, lambda *_: None)
    prediction = prediction_error(program, given, disturbance, table, _SUB_BOXES)
    return BaseProblem(
        program=program,
        schedule=np.array(design.base_schedule, np.float64),
        input=design.base.input,
        input_low=low,
        input_high=high,
        gain=design.base.gain,
        factor=design.base_set.factor,
        disturbance=disturbance,
        tracking_error=tracking_error(program, given, prediction, _SUB_BOXES),
        cell_directions=design.cell_directions,
        symmetries=design.symmetries,
    )
