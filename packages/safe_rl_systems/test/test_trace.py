"""The tracer: three ways to compute the same numbers, and refusal of what it does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError, ProgramError
from safe_rl_core.kernel import Compiled
from safe_rl_core.kernel.kernel import self_test_points
from safe_rl_core.program import Program
from safe_rl_systems.backup.learned import feature_size, save_backup, with_backup
from safe_rl_systems.build import main, robot_of, robot_program, write_bundle
from safe_rl_systems.control_affine import dynamics
from safe_rl_systems.robot import ROBOTS
from safe_rl_systems.trace import trace, trace_program

MODELS = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_torch_interpreter_and_kernel_agree(name: str) -> None:
    robot = ROBOTS[name]()
    program = robot_program(robot)
    compiled = Compiled(program)
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "dynamics": lambda x, u: dynamics(robot.system, x, u),
        "step": robot.system.step,
        "safe_set": robot.safe_set,
        "base_set": robot.base_set,
        "backup_policy": robot.backup_policy,
        "base_controller": robot.base_controller,
        "reference": robot.task.reference,
        "observation": robot.task.observation,
        "reward": robot.task.reward,
    }
    points = self_test_points(program)
    for key, function in functions.items():
        exact = function(*(torch.from_numpy(a) for a in points[key])).numpy()
        slow = program(key, *points[key])
        fast = np.array([compiled(key, *p) for p in zip(*points[key], strict=True)])
        scale = 1.0 + np.abs(exact)
        assert np.max(np.abs(slow - exact) / scale) <= 1e-11, key
        assert np.max(np.abs(fast - exact) / scale) <= 1e-11, key


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_derivatives_agree_with_torch(name: str) -> None:
    robot = ROBOTS[name]()
    program = robot_program(robot)
    x, u = self_test_points(program)["step"]
    rng = np.random.default_rng(0)
    d_x, d_u = rng.normal(size=x.shape), rng.normal(size=u.shape)
    _, exact = torch.func.jvp(
        robot.system.step,
        (torch.from_numpy(x), torch.from_numpy(u)),
        (torch.from_numpy(d_x), torch.from_numpy(d_u)),
    )
    slope = program.jvp("step", (x, u), (d_x, d_u))
    assert np.allclose(slope, exact.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_the_shipped_bundles_are_what_the_definitions_give(name: str) -> None:
    assert Bundle.load(MODELS / name).program.hash == robot_program(robot_of(MODELS / name)).hash


class Network(torch.nn.Module):
    """Two hidden layers and an output squashed into a box."""

    def __init__(self, inputs: int, width: int, outputs: int, activation: torch.nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(inputs, width),
            activation,
            torch.nn.Linear(width, width),
            activation,
            torch.nn.Linear(width, outputs),
        ).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3.0 + 2.0 * torch.tanh(self.layers(x))


@pytest.mark.parametrize(
    ("activation", "fused"), [(torch.nn.Tanh(), "tanh"), (torch.nn.ReLU(), "relu")]
)
def test_a_network_becomes_dense_layers(activation: torch.nn.Module, fused: str) -> None:
    network = Network(10, 33, 7, activation).requires_grad_(False)
    program = trace_program({"f": (network, (("x", 10),))})
    layers = [i.activation for i in program.functions["f"].instructions if i.op == "dense"]
    assert layers == [fused, fused, "tanh"]
    x = np.random.default_rng(0).normal(size=(50, 10))
    exact = network(torch.from_numpy(x)).numpy()
    assert np.allclose(program("f", x), exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.ReLU()])
def test_a_neural_backup_policy_compiles_to_the_same_numbers(activation: torch.nn.Module) -> None:
    """Values and tangents of dense layers in the kernel, odd sizes too (its self-test runs)."""
    functions = _unicycle_functions()
    network = Network(4, 37, 2, activation).requires_grad_(False)
    functions["backup_policy"] = (network, (("x", 4),))
    program = trace_program(functions)
    compiled = Compiled(program)
    x = np.array([0.1, -0.4, 0.3, 5.0])
    exact = network(torch.from_numpy(x)).numpy()
    assert np.allclose(compiled("backup_policy", x), exact, rtol=1e-12)


def _unicycle_functions() -> dict:
    robot = ROBOTS["unicycle_lane"]()
    x, u = ("x", 4), ("u", 2)
    return {
        "dynamics": (lambda a, b: dynamics(robot.system, a, b), (x, u)),
        "step": (robot.system.step, (x, u)),
        "safe_set": (robot.safe_set, (x,)),
        "base_set": (robot.base_set, (x,)),
        "operating_state": (robot.task.operating_state, (("w", 3),)),
    }


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.clamp(x, -0.3, 0.4),
        lambda x: torch.where((x > 0.1) & ~(x >= 0.8), x * x, x**3),
        lambda x: torch.sigmoid(x) + torch.exp(-x) * torch.log(x + 2.0),
        lambda x: torch.atan2(x, x + 1.0) + torch.atan(x) - torch.asin(0.5 * x),
        lambda x: torch.stack((x.sum(), (x * x).sum(), x.abs().sum(), torch.floor(3 * x).sum())),
        lambda x: (
            (torch.tensor([[1.0, 2, 0, 0], [0, 1, 0, 3], [0, 0, 1, 0], [4, 0, 0, 1]]).double() @ x)
            / (1.0 + x.square()).sqrt()
        ),
        lambda x: torch.cat((x[1:3], x[:1], torch.sign(x[3:]))).reshape(2, 2).t().reshape(4),
        lambda x: x.clamp(max=0.2) + x.clamp(min=-0.1) + (x + 1.0) ** 0.5 + 1.0 / (x + 2.0),
        lambda x: (
            torch.clamp_max(x, 0.1) + torch.clamp(x, None, 0.3) + torch.relu(x) + torch.tanh(x)
        ),
        lambda x: (
            torch.outer(x, x).permute(1, 0).sum(0) + torch.outer(x, x).sum(-1, keepdim=True)[:, 0]
        ),
        lambda x: (x.unsqueeze(0) @ (torch.outer(x, x) + 1.0)).squeeze(0),
        lambda x: torch.addmv(x, torch.outer(x, x), x) + torch.dot(x, x),
        lambda x: torch.where(torch.logical_or(x > 0.0, torch.logical_not(x < -0.5)), x, -x),
        lambda x: torch.where(torch.tensor([True, False, True, False]), x, 2.0 * x),
        lambda x: (
            x.expand(3, 4).transpose(0, 1)[:, 1] + torch.zeros(4).double() + torch.ones(4).double()
        ),
        lambda x: torch.minimum(x, torch.zeros_like(x)) + torch.maximum(x, torch.ones_like(x)),
    ],
)
def test_operations(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    program = Program({"f": trace("f", function, (("x", 4),), {})}, {})
    for x in np.random.default_rng(0).uniform(-0.9, 0.9, (20, 4)):
        exact = function(torch.from_numpy(x)).numpy()
        assert np.allclose(program("f", x), exact, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "head",
    [
        lambda y: torch.tanh(y[:5]),
        lambda y: torch.tanh(torch.tanh(y)),
        lambda y: torch.tanh(torch.cat((y[1:], y[:1]))),
        lambda y: torch.relu(2.0 * y),
        lambda y: torch.tanh(y.reshape(4, 4)).sum(0),
        lambda y: (y[:2].unsqueeze(0) @ torch.ones(2, 3).double()).squeeze(0),
    ],
)
def test_an_activation_that_is_not_the_layers_own_stays_apart(head: Callable) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 8, dtype=torch.float64)
    weights: dict = {}

    def function(x: torch.Tensor) -> torch.Tensor:
        return head(weight @ x)

    program = Program({"f": trace("f", function, (("x", 8),), weights)}, weights)
    x = np.random.default_rng(0).normal(size=(20, 8))
    exact = np.array([function(torch.from_numpy(row)).numpy() for row in x])
    assert np.allclose(program("f", x), exact, rtol=1e-13, atol=1e-13)


def test_a_layer_used_twice_is_stored_once() -> None:
    weight, weights = torch.randn(16, 8, dtype=torch.float64), {}
    trace("f", lambda x: weight @ x + weight @ (2.0 * x), (("x", 8),), weights)
    assert sorted(weights) == ["f.0.bias", "f.0.weight"]


def test_equal_expressions_are_shared_and_unused_ones_dropped() -> None:
    function = trace(
        "f", lambda x: torch.sin(x) + torch.sin(x) * 0.0 + torch.sin(x), (("x", 1),), {}
    )
    assert [i.op for i in function.instructions] == ["input", "sin", "add"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.erf(x), "'f' uses aten.erf"),
        (lambda x: x**5, "powers other than"),
        (lambda x: x if x.sum() > 0 else -x, "'f' cannot be traced"),
        (lambda x: x * x.sum().item(), "'f' cannot be traced"),
        (lambda x: torch.add(x, x, alpha=2), "with alpha"),
        (lambda x: torch.where(x > 0, x, 1j * x).real, "got complex"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(function: Callable, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        trace("f", function, (("x", 3),), {})


def test_write_bundle_needs_a_policy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no policy file"):
        write_bundle(ROBOTS["unicycle_lane"](), tmp_path / "none.onnx", "card", tmp_path)


def test_a_written_bundle_loads(tmp_path: Path) -> None:
    policy = MODELS / "unicycle_lane" / "policy.onnx"
    bundle = write_bundle(ROBOTS["unicycle_lane"](), policy, "# card\n", tmp_path)
    again = write_bundle(ROBOTS["unicycle_lane"](), policy, "# card\n", tmp_path)
    assert bundle.hash == again.hash
    assert bundle.margins == ROBOTS["unicycle_lane"]().margins


def test_the_command_line_writes_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    card = tmp_path / "CARD.md"
    card.write_text("# card")
    policy = MODELS / "unicycle_lane" / "policy.onnx"
    words = [
        "build",
        "unicycle_lane",
        "--policy",
        str(policy),
        "--card",
        str(card),
        "--record",
        str(card),
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr("sys.argv", words)
    main()
    assert "certificate: none (nominal)" in capsys.readouterr().out
    assert "training.json" in Bundle.load(tmp_path / "unicycle_lane").hashes


def test_a_bundle_with_a_learned_backup_can_be_traced_again(tmp_path: Path) -> None:
    robot, generator = ROBOTS["unicycle_lane"](), torch.Generator().manual_seed(0)
    sizes = (feature_size(robot), 8, len(robot.system.inputs))
    layers = tuple(
        (torch.randn(o, i, generator=generator).double(), torch.zeros(o).double())
        for i, o in zip(sizes, sizes[1:], strict=False)
    )
    save_backup(tmp_path / "backup.npz", robot, layers)
    learned = with_backup(robot, layers)
    policy = MODELS / "unicycle_lane" / "policy.onnx"
    bundle = write_bundle(learned, policy, "card", tmp_path, backup=tmp_path / "backup.npz")
    assert bundle.program.hash != robot_program(robot).hash
    assert bundle.program.hash == robot_program(robot_of(bundle.path)).hash
