"""Fixtures: the bundles of this repository."""

from __future__ import annotations

from dataclasses import replace

import pytest
from safe_rl_core import Bundle
from shipped import NAMES, load


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
