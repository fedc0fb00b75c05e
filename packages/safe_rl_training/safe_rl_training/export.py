"""A trained network as an ONNX file that a robot can run without torch, checked on random input.

The graph is written node by node (subtract, divide, three linear layers, scale): it is short, the
operators are old and stable, and the file does not depend on the version of an exporter. Input
`observation` (1, k) and output `action` (1, m) are float32 in SI units; the metadata says what
their components are called and how the network was made.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import Robot
from torch import Tensor

from safe_rl_training.parts.networks import PolicyNetwork

OPSET = 17
IR_VERSION = 8
TOLERANCE = 1e-5
"""Largest accepted difference torch - onnxruntime, as a share of each input's half-range."""


def split_unit(label: str) -> tuple[str, str]:
    """Name and unit of a channel label: "height [m]" gives ("height", "m")."""
    name, _, unit = label.partition(" [")
    if not name or not unit.endswith("]"):
        raise ModelError(f'a channel label must look like "height [m]", got {label!r}')
    return name, unit[:-1]


def metadata(robot: Robot, made_by: dict[str, str]) -> dict[str, str]:
    """Names and units of both ends, the robot, the task, and where the file comes from."""
    observation = [split_unit(label) for label in robot.task.observation_names]
    return {
        "observation_names": json.dumps([name for name, _ in observation]),
        "observation_units": json.dumps([unit for _, unit in observation]),
        "action_names": json.dumps([c.name for c in robot.system.inputs]),
        "action_units": json.dumps([c.unit for c in robot.system.inputs]),
        "robot": robot.robot,
        "task": robot.task.name,
        "period_s": repr(robot.system.period),
        **made_by,
    }


def to_onnx(network: PolicyNetwork, notes: dict[str, str]) -> onnx.ModelProto:
    """The network as an ONNX graph; `notes` become its metadata."""
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: Tensor) -> str:
        array = value.detach().cpu().numpy().astype(np.float32)
        weights.append(numpy_helper.from_array(array, name))
        return name

    def add(operator: str, output: str, *inputs: str, **attributes: int) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [output], output, **attributes))
        return output

    value = add("Sub", "centred", "observation", constant("mean", network.mean))
    value = add("Div", "normalised", value, constant("std", network.std))
    for i, layer in enumerate(network.body):
        if isinstance(layer, torch.nn.Linear):
            w, b = constant(f"weight_{i}", layer.weight), constant(f"bias_{i}", layer.bias)
            value = add("Gemm", f"linear_{i}", value, w, b, transB=1)
        else:
            operator = "Relu" if isinstance(layer, torch.nn.ReLU) else "Tanh"
            value = add(operator, f"{operator.lower()}_{i}", value)
    value = add("Tanh", "unit_action", value)
    value = add("Mul", "scaled_action", value, constant("half_range", network.half_range))
    add("Add", "action", value, constant("centre", network.centre))

    def channel(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])

    graph = helper.make_graph(
        nodes,
        "tracker",
        [channel("observation", len(network.mean))],
        [channel("action", len(network.centre))],
        weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="safe_rl_training",
    )
    helper.set_model_props(model, notes)
    onnx.checker.check_model(model, full_check=True)
    return model


def round_trip_error(network: PolicyNetwork, path: Path, samples: int = 1000) -> float:
    """Largest |torch - onnxruntime| / half_range over random observations up to 3 std away."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(samples, len(network.mean), generator=generator)
    observations = network.mean + 3.0 * network.std * (2.0 * unit - 1.0)
    worst = 0.0
    for row in observations:
        with torch.no_grad():
            expected = network(row[None]).numpy()
        (got,) = session.run(["action"], {"observation": row[None].numpy()})
        worst = max(worst, float(np.abs((got - expected) / network.half_range.numpy()).max()))
    return worst


def export_policy(
    network: PolicyNetwork, robot: Robot, made_by: dict[str, str], path: Path
) -> dict[str, float]:
    """Write policy.onnx and compare it with torch; raise if they differ. -> the figures."""
    onnx.save(to_onnx(network, metadata(robot, made_by)), path)
    error = round_trip_error(network, path)
    if not error <= TOLERANCE:
        raise ModelError(
            f"{path.name} differs from the network by {error:.2e} of the half-range, accepted is "
            f"{TOLERANCE:.0e}; compare the installed onnxruntime with the pinned one"
        )
    return {"round_trip_error": error, "opset": OPSET, "samples": 1000}
