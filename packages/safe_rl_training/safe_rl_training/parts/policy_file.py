"""A policy.onnx as a function of many observations at once, or as the network it was written from.

onnxruntime takes what the file says: one observation per call. The graph that `export.py` writes
is a chain of seven kinds of nodes: it is read into torch, and any other graph is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safe_rl_core.errors import ModelError

from safe_rl_training.parts.networks import PolicyNetwork

#: From observations (B, k) float32 to proposals (B, m) in SI units.
PolicyFunction = Callable[[Any], Any]
#: Largest difference, in half-ranges, between two ways to compute one network in float32.
SAME = 1e-4


def policy_function(path: Path) -> tuple[PolicyFunction, dict[str, str]]:
    """The policy in `path`, and the file's metadata."""
    try:
        model = onnx.load(str(path))
    except Exception as error:  # each of protobuf, OSError and ValueError may come
        raise ModelError(f"{path} is no ONNX file: {error}; export the policy again") from error
    value = {w.name: torch.tensor(numpy_helper.to_array(w)) for w in model.graph.initializer}
    operators: dict[str, Callable[..., torch.Tensor]] = {
        "Sub": torch.sub, "Div": torch.div, "Mul": torch.mul, "Add": torch.add,
        "Tanh": torch.tanh, "Relu": torch.relu, "Gemm": torch.nn.functional.linear,
    }  # fmt: skip
    chain, before = [], "observation"
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        wanted = {"transB": 1} if node.op_type == "Gemm" else {}
        known = all(name in value for name in node.input[1:]) and attributes == wanted
        if node.op_type not in operators or node.input[0] != before or not known:
            raise ModelError(
                f"{path}: node '{node.name}' ({node.op_type}) does not fit the chain of "
                f"{', '.join(operators)} that export.py writes; fly it by `safe-rl simulate`"
            )
        chain.append((operators[node.op_type], [value[name] for name in node.input[1:]]))
        (before,) = node.output
    if before != "action":
        raise ModelError(f"{path}: its chain ends in '{before}', expected 'action'")

    def act(observation: Any) -> NDArray[np.float64]:
        with torch.no_grad():
            out = torch.as_tensor(observation, dtype=torch.float32)
            for operator, constants in chain:
                out = operator(out, *constants)
            return out.double().numpy()

    return act, {entry.key: entry.value for entry in model.metadata_props}


def load_policy(policy: PolicyNetwork, path: Path) -> None:
    """Take weights and normalisation of the policy in `path`, which must be of the same shape."""
    if not path.is_file():
        raise ModelError(f"there is no policy {path}; give a policy.onnx to begin with")
    stored_function, _ = policy_function(path)
    arrays = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    stored = {_name_in_network(name): torch.tensor(array) for name, array in arrays.items()}
    expected = {name: tuple(t.shape) for name, t in policy.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in stored.items()}
    if found != expected:
        raise ModelError(
            f"{path} holds {found}, this policy needs {expected}; choose `hidden` and the robot "
            "of the stored policy"
        )
    policy.load_state_dict(stored)
    noise = torch.randn(64, len(policy.mean), generator=torch.Generator().manual_seed(0))
    seen = policy.mean + policy.std * noise.to(policy.mean.device)
    with torch.no_grad():
        gap = (policy(seen).cpu() - torch.from_numpy(stored_function(seen.cpu()))).abs()
    if not bool((gap < SAME * policy.half_range.cpu()).all()):
        raise ModelError(
            f"{path}: this network acts differently with its weights, by up to {gap.max():.3g}; "
            "choose the `activation` of the stored policy"
        )


def _name_in_network(name: str) -> str:
    """`weight_0` in the file is `body.0.weight` in the network; buffers keep their names."""
    kind, _, layer = name.partition("_")
    return f"body.{layer}.{kind}" if kind in ("weight", "bias") else name
