"""The search for a tracking gain finds what was spoiled, and keeps the pattern."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import CertificateError
from safe_rl_systems.verification import tracking

MODELS = Path(__file__).resolve().parents[3] / "models"


def test_a_spoiled_gain_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "POPULATION", 10)
    monkeypatch.setattr(tracking, "ELITE", 3)
    bundle = Bundle.load(MODELS / "unicycle_robust")
    good = bundle.robust.tracking_gain
    spoiled = replace(bundle, robust=replace(bundle.robust, tracking_gain=0.25 * good))
    heard: list[str] = []
    found = tracking.tune(spoiled, 40, 8, 0, heard.append)
    assert found.valid > found.before and len(heard) == 8
    assert ((found.gain == 0.0) == (good == 0.0)).all()
    assert (np.sign(found.gain) == np.sign(good)).all()
    assert (np.round(found.gain, 2) == found.gain).all()
    again = tracking.tune(spoiled, 40, 8, 0, heard.append)
    assert (again.gain == found.gain).all()


def test_only_certified_bundles_can_be_tuned() -> None:
    with pytest.raises(CertificateError, match="safe-rl verify"):
        tracking.tune(Bundle.load(MODELS / "unicycle_lane"), 1, 1, 0, print)
