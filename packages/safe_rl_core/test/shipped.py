"""The bundles of this repository, each loaded once per test run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from safe_rl_core import Bundle

MODELS = Path(__file__).parents[3] / "models"
NAMES = (
    "quadrotor_powerloop",
    "quadrotor_powerloop_paper",
    "unicycle_lane",
    "unicycle_lane_paper",
)


@cache
def load(name: str) -> Bundle:
    return Bundle.load(MODELS / name)
