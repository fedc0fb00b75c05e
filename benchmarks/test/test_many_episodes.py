"""Many episodes: what the table counts, and that a stopped run goes on without flying twice."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))

pytest.importorskip("torch", reason="the policies are flown by torch")
pytest.importorskip("onnx", reason="the policies are read by onnx")

import many_episodes  # noqa: E402


@pytest.fixture()
def args(tmp_path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    many_episodes.arguments(parser)
    asked = ["--bundles", "unicycle_lane", "--episodes", "5", "--piece", "2", "--jobs", "1"]
    return parser.parse_args([*asked, "--resume", str(tmp_path)], argparse.Namespace(quick=False))


def test_pieces_are_pooled_and_never_flown_twice(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fly, flown = many_episodes.fly, []

    def stopped(args: argparse.Namespace, bundle: Any, asked: dict[str, Any]) -> dict[str, Any]:
        flown.append((asked["who"], asked["seed"]))
        if len(flown) == 2:
            raise KeyboardInterrupt
        return fly(args, bundle, asked)

    monkeypatch.setattr(many_episodes, "fly", stopped)
    with pytest.raises(KeyboardInterrupt):
        many_episodes.measure(args)
    report = many_episodes.measure(args)
    assert flown[:2] == [("its policy", 0), ("its policy", 2)]
    assert flown[2:] == [
        ("its policy", 2), ("its policy", 4), ("adversary", 0), ("adversary", 2), ("adversary", 4),
    ]  # fmt: skip
    for who in many_episodes.FROM:
        scores = report.numbers[f"unicycle_lane/{who}"]
        assert (scores["episodes"], scores["steps"]) == (5, 5 * 400)
    own, adversary = (report.numbers[f"unicycle_lane/{who}"] for who in many_episodes.FROM)
    assert adversary["fallback_rate"] > own["fallback_rate"]
    assert report.targets[0].measured == 0 and report.targets[0].met


def test_an_unsafe_episode_is_counted_and_misses_the_target(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fly = many_episodes.fly

    def unsafe(args: argparse.Namespace, bundle: Any, asked: dict[str, Any]) -> dict[str, Any]:
        scores = fly(args, bundle, asked)
        return {**scores, "unsafe_episodes": int(asked["who"] == "adversary")}

    monkeypatch.setattr(many_episodes, "fly", unsafe)
    report = many_episodes.measure(args)
    assert report.targets[0].measured == 3 and not report.targets[0].met
    assert [row[4] for row in report.tables[0].rows] == [0, 3]
