"""policy.onnx: the same function as the network, with names, units and origin inside."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS
from safe_rl_training.export import OPSET, export_policy, round_trip_error, split_unit
from safe_rl_training.parts.networks import PolicyNetwork
from safe_rl_training.parts.provenance import provenance
from safe_rl_training.parts.starts import start_states
from safe_rl_training.recipes import RECIPES
from safe_rl_training.tracker import begin

ROBOT_NAMES = sorted(RECIPES)


def network_of(name: str) -> PolicyNetwork:
    """A network with measured normalisation and large random weights, so that tanh saturates."""
    recipe = RECIPES[name]
    network = begin(recipe, ROBOTS[recipe.robot](), seed=1).network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    return network


@pytest.mark.parametrize("name", ROBOT_NAMES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    robot, network = ROBOTS[RECIPES[name].robot](), network_of(name)
    made_by = provenance("command", seed=1, threads=1) | {"duration_s": "2.0"}
    figures = export_policy(network, robot, made_by, tmp_path / "policy.onnx")
    assert figures["round_trip_error"] <= 1e-5
    x, t = start_states(robot.task, 200, torch.Generator().manual_seed(5))
    observations = robot.task.observation(x, t)
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    for row in observations[:, None]:
        (action,) = session.run(["action"], {"observation": row.numpy()})
        expected = network(row).detach().numpy()
        assert np.abs(action - expected).max() <= 1e-5 * float(network.half_range.max())


@pytest.mark.parametrize("name", ROBOT_NAMES)
def test_metadata(name: str, tmp_path: Path) -> None:
    robot = ROBOTS[RECIPES[name].robot]()
    made_by = provenance("command --seed 1", seed=1, threads=1) | {"duration_s": "2.0"}
    export_policy(network_of(name), robot, made_by, tmp_path / "policy.onnx")
    model = onnx.load(tmp_path / "policy.onnx")
    assert [o.version for o in model.opset_import] == [OPSET]
    notes = {p.key: p.value for p in model.metadata_props}
    assert json.loads(notes["action_names"]) == [c.name for c in robot.system.inputs]
    assert json.loads(notes["action_units"]) == [c.unit for c in robot.system.inputs]
    labels = [
        f"{n} [{u}]"
        for n, u in zip(
            json.loads(notes["observation_names"]),
            json.loads(notes["observation_units"]),
            strict=True,
        )
    ]
    assert labels == list(robot.task.observation_names)
    assert notes["robot"] == robot.robot and notes["task"] == robot.task.name
    assert float(notes["period_s"]) == robot.system.period
    wanted = {"seed", "git_commit", "git_dirty", "command", "duration_s", "hardware", "date"}
    assert wanted <= set(notes) and len(notes["source_sha256"]) == 64
    assert not any("/" in notes[key] for key in wanted), "no machine paths in the metadata"


def test_a_wrong_graph_is_noticed(tmp_path: Path) -> None:
    robot, network = ROBOTS["unicycle_lane"](), network_of("unicycle")
    path = tmp_path / "policy.onnx"
    export_policy(network, robot, {}, path)
    with torch.no_grad():
        network.body[0].weight[0, 0] += 0.1
    assert round_trip_error(network, path, samples=50) > 1e-5


def test_labels_need_a_unit() -> None:
    assert split_unit("turn rate [rad/s]") == ("turn rate", "rad/s")
    with pytest.raises(ModelError, match="height"):
        split_unit("height")
