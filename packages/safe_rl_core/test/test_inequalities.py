"""Terms of docs/theory.md that audit and checker must not lose, one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cart_certificate
import numpy as np
import pytest
import yaml
from audit_robot import N, plan_of, theorem, write_bundle
from safe_rl_core import certificate
from safe_rl_core.audit import flight, plans
from safe_rl_core.audit.exact import holds
from safe_rl_core.audit.plans import label, slacks
from safe_rl_core.audit.records import Theorem
from safe_rl_core.checker import certificate_check, claims, formula_check
from safe_rl_core.program import Program

#: Where the audited cart's plan starts: fast, so that the row of its speed is curved.
START = np.array([-0.5, 0.8])


@pytest.fixture(scope="module")
def t(tmp_path_factory: pytest.TempPathFactory) -> Theorem:
    return theorem(write_bundle(tmp_path_factory.mktemp("bundles") / "cart_robust"))


def judged(t: Theorem, ubar: np.ndarray, **entries: object) -> tuple[dict[str, float], bool]:
    """The least slack by condition (V2 right, V3 accel, V4, …), and the word of the balls."""
    other = replace(t, c=SimpleNamespace(**(vars(t.c) | entries)))
    found = slacks(other, START[None], ubar[None], np.ones(1))[0]
    least: dict[str, float] = {}
    for i, value in enumerate(found):
        name = label(other, i).split(" at node")[0]
        least[name] = min(value, least.get(name, np.inf))
    return least, holds(other, START, ubar, N + 1)


@pytest.fixture
def ubar(t: Theorem) -> np.ndarray:
    return plan_of(t, START[None], np.array([[-0.1]]))[0]


def refuses(least: dict[str, float], held: bool, name: str) -> bool:
    """Only this condition, in both arithmetics."""
    return not held and {key for key, value in least.items() if value < 0.0} == {name}


def test_v2_keeps_room_for_the_curvature_of_the_safe_set(t: Theorem, ubar: np.ndarray) -> None:
    """The speed's row is curved: a margin that only a flat row would leave."""
    flat = t.c.safe_remainder * 0.0
    more = np.array([0.0, 0.0, 1.0])
    room = [judged(t, ubar, safe_remainder=r)[0]["V2 speed"] for r in (t.c.safe_remainder, flat)]
    assert room[0] < room[1]
    margin = t.c.sampling_margin + 0.5 * sum(room) * more
    assert refuses(*judged(t, ubar, sampling_margin=margin), "V2 speed")
    assert judged(t, ubar, sampling_margin=margin, safe_remainder=flat)[0]["V2 speed"] > 0.0


def test_v3_keeps_room_for_the_measured_error(t: Theorem, ubar: np.ndarray) -> None:
    """An input so close to its bound that only an exact estimate could be tracked."""
    reserve = float(np.abs(t.c.tracking_gain[0]) @ t.c.tracking_error)
    alone = slacks(t, START[None], ubar[None], np.ones(1))[0]
    row = next(i for i in range(len(alone)) if label(t, i) == "V3 accel at node 9") + 1
    most = ubar[9] + alone[row] * t.scale[0]
    ubar[9] = most - 0.5 * reserve
    assert judged(t, ubar)[0]["V3 accel"] > 0.0 and judged(t, ubar)[1]
    ubar[9] = most + 0.5 * reserve
    assert refuses(*judged(t, ubar), "V3 accel")


def test_v4_keeps_room_for_the_change_of_chart(t: Theorem, ubar: np.ndarray) -> None:
    assert min(judged(t, ubar)[0].values()) > 0.0 and judged(t, ubar)[1]
    bent = np.full((2, 4, 4), 1e4)
    assert refuses(*judged(t, ubar, shift_remainder=bent), "V4 terminal set")


def verdict(folder: Path, item: str, given: dict[str, Any], **entries: object) -> str:
    """What the checker says of one item after changes to bundle.yaml and certificate."""
    honest = cart_certificate.write(folder)
    data = yaml.safe_load((folder / "bundle.yaml").read_text())
    data["inputs"] = given.pop("inputs", data["inputs"])
    data["assumptions"].update(given)
    (folder / "bundle.yaml").write_text(yaml.safe_dump(data))
    digest = json.loads((folder / "certificate.json").read_text())["program"]
    changed = {name: np.array(value, float) for name, value in entries.items()}
    cart_certificate.save(folder, honest | changed, digest)
    report = certificate_check.check(folder, workers=1, budget=600)
    return next(f.verdict for f in report.findings if f.item.startswith(item))


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formula_check, "SAMPLES", 16)


@pytest.fixture
def honest(tmp_path: Path) -> dict[str, np.ndarray]:
    return cart_certificate.write(tmp_path)


@pytest.mark.parametrize(("share", "said"), [(0.99, "refused"), (1.01, "proved")])
def test_the_input_box_holds_gain_and_measured_error(
    honest: dict, tmp_path: Path, few_points: None, share: float, said: str
) -> None:
    """B1: the set needs K e, and the measured error its share on top."""
    gain, factor = honest["base_gain"], honest["base_factor"]
    size = np.sqrt(gain @ np.linalg.inv(factor @ factor.T) @ gain.T)[0, 0]
    size += share * float(np.abs(gain[0]) @ honest["tracking_error"])
    found = verdict(
        tmp_path, "base: inputs", {"inputs": [{"low": -2.0, "high": float(size)}]},
        input_high=[size],
    )  # fmt: skip
    assert found == said


@pytest.mark.parametrize(
    ("share", "multiplier", "said"),
    [(0.999999, 0.99999, "refused"), (1.0015, 0.9986, "refused"), (1.01, 0.985, "proved")],
)
def test_a_false_contraction_has_no_multiplier(
    honest: dict, tmp_path: Path, few_points: None, share: float, multiplier: float, said: str
) -> None:
    """B2, on one leaf that holds the whole set: false; true, but open by the slopes' width; shown.

    The multiplier lies above |A|², with A at the middle of the slopes, in every case.
    """
    factor, angle = honest["base_factor"], np.linspace(0.0, 2.0 * np.pi, 20_000)
    e = np.linalg.solve(factor.T, np.stack((np.cos(angle), np.sin(angle)))).T
    program = Program.load(tmp_path / "program.txt")
    moved = program("error_map", 0.0 * e, e, e @ honest["base_gain"].T, 0.0 * e)
    claim = share * np.linalg.norm(moved @ factor, axis=1).max()
    root = np.abs(honest["base_leaves_high"]).max()
    found = verdict(
        tmp_path, "base: contraction", {},
        base_contraction=claim, base_leaves_low=[[-root]], base_leaves_high=[[root]],
        base_leaves_multipliers=[[multiplier * claim**2, 0.0]],
    )  # fmt: skip
    assert found == said


def test_audit_checker_and_shield_mean_the_same_limits() -> None:
    """They share no code, so that none can hide the other's fault: their constants must agree."""
    assert certificate.EPS == plans.EPS
    assert certificate.SIGMA_MAX == flight.SIGMA_MAX == claims.SIGMA_MAX
