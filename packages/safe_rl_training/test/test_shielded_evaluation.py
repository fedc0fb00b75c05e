"""Batched evaluation: the same flights as the single loop, whatever the batch and the threads."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safe_rl_core.adversary import WorstCorner, corners, make_proposer
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_core.loop import ModelPlant, initial_state, recoverable_state, run_episode
from safe_rl_core.metrics import summarise
from safe_rl_core.shield import Shield
from safe_rl_systems.build import batch_kernel, robot_of
from safe_rl_systems.robot import unicycle_lane
from safe_rl_training import shielded_evaluation
from safe_rl_training.export import to_onnx
from safe_rl_training.parts.networks import network_for
from safe_rl_training.parts.policy_file import PolicyFunction, policy_function
from safe_rl_training.shielded_evaluation import BLOCK, evaluate_shielded, safe_reward

MODELS = Path(__file__).parents[3] / "models"


def shorter(name: str, periods: int) -> Bundle:
    """A shipped bundle with short episodes."""
    bundle = Bundle.load(MODELS / name)
    return replace(bundle, task=replace(bundle.task, duration_s=periods * bundle.period))


def tracker_of(bundle: Bundle) -> PolicyFunction:
    """A policy of the bundle's robot that leaves the safe set without a shield."""
    return policy_function(MODELS / "trackers" / f"{bundle.robot}.onnx")[0]


def one_by_one(bundle: Bundle, policy: str, seeds: range, shielded: bool) -> list[dict]:
    """What `safe-rl simulate --nominal` does, with torch's rounding of the network's products.

    onnxruntime rounds in another order, and the loop makes 1e-6 of that 1e-4 in a second.
    """
    found, plant = [], ModelPlant(bundle)
    network = tracker_of(bundle)

    def tracker(x: np.ndarray, t: float) -> np.ndarray:
        seen = bundle.compiled("observation", x, np.array([t])).astype(np.float32)
        return network(np.tile(seen, (BLOCK, 1)))[0]

    steps = round(bundle.task.duration_s / bundle.period)
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        adversarial = policy == "adversarial"
        propose = make_proposer(policy, bundle, rng) if adversarial else tracker
        draw = recoverable_state if adversarial else initial_state
        log = run_episode(
            bundle, plant, propose, Shield(bundle) if shielded else None,
            steps=steps, seed=seed, x0=draw(bundle, np.random.default_rng(seed)),
        )  # fmt: skip
        found.append(summarise(bundle, log))
    return found


@pytest.mark.parametrize("shielded", [True, False])
@pytest.mark.parametrize("name", ["quadrotor_powerloop", "unicycle_lane_paper"])
def test_the_scores_are_those_of_single_flights(name: str, shielded: bool) -> None:
    bundle, seeds = shorter(name, 60), range(7, 25)
    singles = one_by_one(bundle, "tracker", seeds, shielded)
    scores = evaluate_shielded(bundle, tracker_of(bundle), len(seeds), 7, 1, shielded=shielded)
    assert scores["share_of_starts_rejected"] == 0.0
    _same(scores, singles)
    if name == "quadrotor_powerloop" and not shielded:
        assert scores["unsafe_episodes"] > 0, "the comparison must have seen violations"


@pytest.mark.parametrize("name", ["quadrotor_powerloop", "unicycle_lane"])
def test_adversarial_flights_too(name: str) -> None:
    bundle, seeds = shorter(name, 40), range(20)
    scores = evaluate_shielded(
        bundle, "adversarial", len(seeds), 0, 1, starts="recoverable", batch=6
    )
    _same(scores, one_by_one(bundle, "adversarial", seeds, True))
    assert scores["share_of_starts_rejected"] > 0.0
    assert min(scores["interventions"].values()) > 0, "every verdict must have been compared"


def test_the_worst_corner_is_that_of_the_shield_s_own_plans() -> None:
    bundle = Bundle.load(MODELS / "quadrotor_powerloop")
    kernel, box = bundle.kernel(), corners(bundle)
    x = np.array([recoverable_state(bundle, np.random.default_rng(k)) for k in range(12)])
    expected = [box[np.argmin([kernel.verify(s, u).least for u in box])] for s in x]
    assert (WorstCorner.of(bundle)(x) == expected).all()
    assert len(np.unique(expected, axis=0)) > 2


def _same(scores: dict, singles: list[dict]) -> None:
    """The batch's scores against summaries of the same flights."""
    returns = [single["return"] for single in singles]
    expected = {
        "return_mean": np.mean(returns),
        "return_std": np.std(returns, ddof=1),
        "return_min": min(returns),
        "return_max": max(returns),
        "mean_intervention": np.mean([single["mean_intervention"] for single in singles]),
        "chatter_per_s": np.mean([single["chatter_per_s"] for single in singles]),
    }
    for key, value in expected.items():
        assert scores[key] == pytest.approx(value, rel=1e-6, abs=1e-6), key
    assert scores["violations"] == sum(single["violations"] for single in singles)
    assert scores["unsafe_episodes"] == sum(single["violations"] > 0 for single in singles)
    worst = min(singles, key=lambda single: single["worst_margin"])
    assert scores["worst_margin"] == pytest.approx(worst["worst_margin"], abs=1e-6)
    assert scores["worst_row"] == worst["worst_row"]
    for verdict, count in scores["interventions"].items():
        assert count == sum(single["interventions"][verdict] for single in singles)
    for axis, value in scores["rmse"].items():
        pooled = np.sqrt(np.mean([single["rmse"][axis] ** 2 for single in singles]))
        assert value == pytest.approx(pooled, rel=1e-6)


@pytest.mark.parametrize("policy", ["network", "adversarial"])
def test_batch_and_threads_change_nothing(policy: str) -> None:
    bundle = shorter("unicycle_lane", 25)
    own = policy_function(bundle.policy_path)[0] if policy == "network" else policy
    found = []
    for batch, threads in ((40, 1), (7, 1), (13, 2)):
        scores = evaluate_shielded(bundle, own, 40, 3, threads, batch=batch, starts="recoverable")
        found.append({k: v for k, v in scores.items() if k != "steps_per_s"})
    assert found[0] == found[1] == found[2]


def test_robot_and_bundle_give_the_same() -> None:
    bundle, robot = shorter("unicycle_lane", 20), robot_of(MODELS / "unicycle_lane")
    robot = replace(robot, duration=1.0)
    kernel = batch_kernel(robot)
    for policy in ("backup", "stop", "adversarial"):
        a = evaluate_shielded(robot, policy, 5, 1, 1, kernel=kernel)
        b = evaluate_shielded(bundle, policy, 5, 1, 1)
        assert a["return_mean"] == pytest.approx(b["return_mean"], abs=1e-9), policy
        assert a["interventions"] == b["interventions"], policy
        assert (a["fallback_rate"] == 1.0) == (policy == "backup")


def test_a_start_without_a_way_out_is_drawn_again() -> None:
    """With a margin that leaves a strip of the lane."""
    bundle = shorter("unicycle_lane", 5)
    names = bundle.safe_set_names
    wide = replace(bundle, margins=dict.fromkeys(names, 0.0) | {names[0]: 1.75})
    scores = evaluate_shielded(wide, "stop", 30, 0, 1, starts="recoverable")
    assert 0.5 < scores["share_of_starts_rejected"] < 1.0
    assert scores["worst_margin"] > 0.0


def test_the_safe_reward_by_hand() -> None:
    scores = {"safe_return_mean": -20.0, "safety_probability": 0.75}
    assert safe_reward(scores, stop=-100.0, best=-10.0) == pytest.approx(0.75 * 80.0 / 90.0)
    none = {"safe_return_mean": None, "safety_probability": 0.0}
    assert safe_reward(none, stop=-100.0, best=-10.0) == 0.0
    with pytest.raises(ModelError, match="must exceed"):
        safe_reward(scores, stop=-10.0, best=-10.0)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_reader_against_onnxruntime(activation: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = network_for(unicycle_lane().system, 9, 32, activation)
    with torch.no_grad():  # to where tanh bends
        network.body[-1].weight.mul_(20.0)
    network.measure_normalisation(2.0 + 3.0 * torch.randn(100, 9))
    path = tmp_path / "policy.onnx"
    onnx.save(to_onnx(network, {"robot": "unicycle"}), path)
    policy, notes = policy_function(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    observations = (2.0 + 3.0 * np.random.default_rng(1).normal(size=(200, 9))).astype(np.float32)
    expected = [session.run(["action"], {"observation": row[None]})[0][0] for row in observations]
    half_range = network.half_range.numpy()
    assert (np.abs(policy(observations) - expected) / half_range).max() < 1e-6
    assert np.ptp(expected / half_range, axis=0).min() > 0.5
    assert notes == {"robot": "unicycle"}


@pytest.mark.parametrize("change", ["operator", "order", "attribute", "output"])
def test_the_reader_refuses_another_graph(change: str, tmp_path: Path) -> None:
    model = to_onnx(network_for(unicycle_lane().system, 9, 8), {})
    nodes = model.graph.node
    if change == "operator":
        nodes[3].op_type = "Sigmoid"
    elif change == "order":
        nodes[3].input[0] = "normalised"
    elif change == "attribute":
        nodes[2].attribute[0].i = 0
    else:
        del nodes[-1]
    onnx.save(model, tmp_path / "policy.onnx")
    with pytest.raises(ModelError, match="chain"):
        policy_function(tmp_path / "policy.onnx")
    (tmp_path / "policy.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"policy\.onnx"):
        policy_function(tmp_path / "policy.onnx")


def test_wrong_requests_say_what_is_expected() -> None:
    bundle = shorter("unicycle_lane", 2)
    for wrong in ({"starts": "anywhere"}, {"batch": 0}):
        with pytest.raises(ModelError, match="expected starts"):
            evaluate_shielded(bundle, "stop", 1, 0, 1, **wrong)
    with pytest.raises(ModelError, match="expected a function"):
        evaluate_shielded(bundle, "hover", 1, 0, 1)
    with pytest.raises(ModelError, match="leave shielded=False out"):
        evaluate_shielded(bundle, "backup", 1, 0, 1, shielded=False)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    words = ["x", str(MODELS / "unicycle_lane"), "--episodes", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    assert shielded_evaluation.main() == 0
    scores = json.loads(out.read_text())
    assert scores["episodes"] == 2 and scores["unsafe_episodes"] == 0
    assert scores == json.loads(capsys.readouterr().out)
    foreign = str(MODELS / "quadrotor_powerloop" / "policy.onnx")
    monkeypatch.setattr(sys, "argv", [*words, "--policy", foreign])
    assert shielded_evaluation.main() == 2
    assert "unicycle" in capsys.readouterr().err
