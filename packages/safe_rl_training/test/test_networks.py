"""The policy network: bounded by construction, normalised from data, differentiable."""

import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import quadrotor_powerloop
from safe_rl_training.parts.networks import PolicyNetwork, network_for


def test_action_is_inside_the_box_for_any_observation() -> None:
    system = quadrotor_powerloop().system
    network = network_for(system, 23, hidden=16)
    actions = network(1e6 * torch.randn(500, 23))
    low = torch.tensor([c.low for c in system.inputs])
    high = torch.tensor([c.high for c in system.inputs])
    assert bool((actions >= low - 1e-5).all() and (actions <= high + 1e-5).all())


def test_zero_last_layer_gives_the_centre_of_the_box() -> None:
    network = PolicyNetwork(2, torch.tensor([0.0, -1.0]), torch.tensor([4.0, 3.0]), hidden=4)
    with torch.no_grad():
        network.body[-1].weight.zero_()
    torch.testing.assert_close(network(torch.randn(3, 2)), torch.tensor([[2.0, 1.0]] * 3))


def test_normalisation_by_hand() -> None:
    network = PolicyNetwork(2, torch.tensor([-1.0]), torch.tensor([1.0]), hidden=4)
    # Mean 2 and 5; sample std of (1, 3) is sqrt(2); a constant channel gets the smallest std.
    network.measure_normalisation(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    torch.testing.assert_close(
        network.normalise(torch.tensor([4.0, 5.001])), torch.tensor([2.0 / 2.0**0.5, 1.0]),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


def test_an_infinite_input_box_is_refused() -> None:
    with pytest.raises(ModelError, match="finite"):
        PolicyNetwork(2, torch.tensor([0.0]), torch.tensor([float("inf")]), hidden=4)
