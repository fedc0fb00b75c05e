"""Fixtures: the bundles of this repository, loaded once per test run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
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


@pytest.fixture(params=NAMES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Each bundle in turn."""
    return load(request.param)


@pytest.fixture
def unicycle() -> Bundle:
    """The unicycle that drives."""
    return load("unicycle_lane")


@pytest.fixture
def instant() -> Bundle:
    """The unicycle without actuation delay, so that a single step can be checked by hand."""
    return replace(load("unicycle_lane"), delay_steps=0)


@pytest.fixture
def quadrotor() -> Bundle:
    """The quadrotor that flies."""
    return load("quadrotor_powerloop")
