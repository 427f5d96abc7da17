from __future__ import annotations

import pytest
import torch

from pliant.core.errors import SettingError
from pliant.models.mlp import ACTIVATIONS, MLP


def test_the_default_is_the_three_layer_sigmoid_net() -> None:
    net = MLP(input_shape=(1, 28, 28), classes=10)
    names = [name for name, _ in net.named_children()]
    assert names == ["flatten", "fc1", "act1", "fc2", "act2", "fc3", "act3", "out"]
    assert sum(p.numel() for p in net.parameters()) == 785 * 100 + 2 * 101 * 100 + 101 * 10
    assert all(isinstance(net.get_submodule(f"act{k}"), torch.nn.Sigmoid) for k in (1, 2, 3))


def test_forward_is_the_formula() -> None:
    net = MLP(input_shape=(2, 3), classes=4, hidden=[5, 6], activation="tanh").double()
    x = torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = x.reshape(7, 6)
    for layer in (net.fc1, net.fc2):
        h = torch.tanh(h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x), h @ net.out.weight.T + net.out.bias)


def test_gaussian_initialisation() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(input_shape=(400,), classes=10, hidden=(500,), init_std=0.03)
    # 200,000 weights: the standard error of their std is 0.03 / sqrt(400,000).
    assert abs(net.fc1.weight.std() - 0.03) < 5 * 0.03 / 400_000**0.5
    assert abs(net.fc1.weight.mean()) < 5 * 0.03 / 200_000**0.5
    assert not net.fc1.bias.any()
    assert not net.out.bias.any()


@pytest.mark.parametrize("off", [None, 0])
def test_torchs_initialisation(off: float | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(input_shape=(4,), classes=2, hidden=(), init_std=off)
        torch.manual_seed(0)
        assert torch.equal(net.out.weight, torch.nn.Linear(4, 2).weight)
    assert [name for name, _ in net.named_children()] == ["flatten", "out"]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_trains(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(input_shape=(3,), classes=2, hidden=(100,), activation=name)
    net(torch.ones(5, 3)).sum().backward()
    assert net.fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (10, 0)}, r"hidden=\[10, 0\]; expected positive numbers"),
        ({"activation": "sigmoidd"}, "unknown activation 'sigmoidd': did you mean 'sigmoid'"),
        ({"init_std": -1.0}, "init_std=-1.0; expected a positive number"),
        ({"init_std": float("nan")}, "init_std=nan"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MLP(input_shape=(3,), classes=2, **options)
