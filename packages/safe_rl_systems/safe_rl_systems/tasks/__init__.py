"""Tasks: reference, observation, reward and starts, written once and traced into the bundle."""

from safe_rl_systems.tasks.lane_keeping import LaneKeeping
from safe_rl_systems.tasks.powerloop import Powerloop

__all__ = ["LaneKeeping", "Powerloop"]
