"""One robot, one file; the module docstring is the model."""

from safe_rl_systems.systems.quadrotor import Quadrotor
from safe_rl_systems.systems.unicycle import LaneUnicycle, Unicycle

__all__ = ["LaneUnicycle", "Quadrotor", "Unicycle"]
