"""One chain per tensor: mask, then scale, then quantise, in whatever order they came; baked away without a trace."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm as torch_weight_norm

from pliant.core.edits import Edits
from pliant.core.errors import ConflictError
from pliant.core.reparam import SLOTS, Chain, Parametrise, bake, chain, chains


class Mask(nn.Module):
    """Zeroes every second input of each unit."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        keep = torch.ones_like(weight)
        keep[:, ::2] = 0
        self.register_buffer("keep", keep)

    def forward(self, w: Tensor) -> Tensor:
        return w * self.keep


class Scale(nn.Module):
    """g w / ||w|| per row."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.g = nn.Parameter(weight.norm(dim=1, keepdim=True))

    def forward(self, w: Tensor) -> Tensor:
        return self.g * w / w.norm(dim=1, keepdim=True)


class Quantise(nn.Module):
    """Rounds to eighths; the gradient passes straight through."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()

    def forward(self, w: Tensor) -> Tensor:
        return w + ((w * 8).round() / 8 - w).detach()


PARTS = {"mask": Mask, "scale": Scale, "quantise": Quantise}


def fill(model: nn.Module, *slots: str, path: str = "", tensor: str = "weight") -> None:
    for slot in slots:
        Parametrise(path=path, tensor=tensor, into=slot, make=PARTS[slot], detail="").apply(model)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4).double()


def by_hand(w: Tensor, g: Tensor) -> Tensor:
    """quantise(scale(mask(w))) written out."""
    masked = w.clone()
    masked[:, ::2] = 0
    scaled = g * masked / masked.square().sum(1, keepdim=True).sqrt()
    return (scaled * 8).round() / 8


@pytest.mark.parametrize("order", list(itertools.permutations(PARTS)))
def test_the_order_is_the_chains_whatever_the_order_of_application(order: tuple[str, ...]):
    layer = linear()
    w = layer.weight.detach().clone()
    fill(layer, *order)
    g = {type(p): p for _, _, _, p in chains(layer, nn.Module)}[Scale].g.detach()
    assert torch.equal(layer.weight, by_hand(w, g))
    assert SLOTS == ("source", "mask", "scale", "quantise")


def test_a_part_is_made_from_the_tensor_as_it_is_then():
    layer = linear()
    w = layer.weight.detach().clone()
    fill(layer, "mask", "scale")
    masked = w.clone()
    masked[:, ::2] = 0
    torch.testing.assert_close(layer.parametrizations.weight[0].scale.g, masked.norm(dim=1, keepdim=True))
    torch.testing.assert_close(layer.weight, masked)


def test_the_original_stays_the_very_parameter():
    layer = linear()
    weight = layer.weight
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    fill(layer, "mask")
    assert layer.parametrizations.weight.original is weight
    layer(torch.ones(2, 6, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert float(weight.grad[:, ::2].abs().max()) == 0.0 and float(weight.grad[:, 1::2].abs().min()) > 0.0


def test_gradients_flow_through_the_chain():
    layer = linear()
    fill(layer, "mask", "scale", "quantise")
    w, g = layer.parametrizations.weight.original, layer.parametrizations.weight[0].scale.g
    target = torch.randn(4, 6, dtype=torch.float64)
    (layer.weight * target).sum().backward()
    v = (w * layer.parametrizations.weight[0].mask.keep).detach()
    unit = v / v.norm(dim=1, keepdim=True)
    torch.testing.assert_close(g.grad, (target * unit).sum(1, keepdim=True))
    along = (target * unit).sum(1, keepdim=True) * unit
    expected = g.detach() / v.norm(dim=1, keepdim=True) * (target - along)
    expected[:, ::2] = 0
    torch.testing.assert_close(w.grad, expected)


def test_a_slot_is_filled_once_and_only_known_slots_are():
    layer = linear()
    fill(layer, "mask")
    with pytest.raises(ConflictError, match="the 'mask' slot is taken by Mask"):
        fill(layer, "mask")
    with pytest.raises(ConflictError, match="a chain has the slots source, mask, scale, quantise; 'prune' is none"):
        Chain().fill("prune", nn.Identity())


def test_two_methods_on_one_slot_are_a_conflict_with_names():
    edit = Parametrise(path="0", tensor="weight", into="mask", make=Mask, detail="")
    filled: dict[tuple[str, str], str] = {}
    model = nn.Sequential(linear())
    Edits(changes=[edit]).apply(model, filled, "one")
    with pytest.raises(ConflictError, match=r"two and one both want the 'weight\.mask' slot of '0'"):
        Edits(changes=[edit]).apply(model, filled, "two")


def test_a_foreign_parametrisation_is_refused_with_the_remedy():
    layer = torch_weight_norm(nn.Linear(3, 3))
    with pytest.raises(ConflictError, match="already parametrised by _WeightNorm, not by pliant; bake it first"):
        fill(layer, "mask")


def test_chains_finds_parts_by_kind_and_path():
    model = nn.Sequential(linear(), nn.Sequential(linear()))
    fill(model, "mask", path="0")
    fill(model, "mask", "scale", path="1.0")
    assert [path for path, _, _, _ in chains(model, Mask)] == ["0", "1.0"]
    assert [(path, tensor) for path, _, tensor, _ in chains(model, Scale)] == [("1.0", "weight")]
    assert chain(model[0], "weight") is model[0].parametrizations.weight[0] and chain(model[0], "bias") is None


def test_the_state_dict_round_trips_strictly():
    one, other = linear(), linear()
    for layer in (one, other):
        fill(layer, "mask", "scale")
    with torch.no_grad():
        one.parametrizations.weight[0].scale.g.mul_(2)
    assert set(one.state_dict()) == {
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0.mask.keep",
        "parametrizations.weight.0.scale.g",
    }
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, other.weight)


def test_copies_after_a_forward_and_backward_are_independent():
    layer = linear()
    fill(layer, "mask", "scale")
    layer(torch.ones(2, 6, dtype=torch.float64)).sum().backward()
    twin = copy.deepcopy(layer)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        twin.parametrizations.weight.original.add_(1.0)
    assert torch.equal(layer.weight, before) and not torch.equal(twin.weight, before)


def test_baking_leaves_the_layer_as_built_with_the_same_values_and_identity():
    layer = linear()
    kind, weight, names = type(layer), layer.weight, [name for name, _ in layer.named_parameters()]
    fill(layer, "mask", "scale", "quantise")
    value = layer.weight.detach().clone()
    bake(layer)
    assert type(layer) is kind and layer.weight is weight and torch.equal(layer.weight, value)
    assert [name for name, _ in layer.named_parameters()] == names and not parametrize.is_parametrized(layer)
    assert list(layer.children()) == [] and isinstance(layer.weight, nn.Parameter)


def test_baking_a_copy_leaves_the_original_alive():
    layer = linear()
    fill(layer, "mask")
    twin = copy.deepcopy(layer)
    bake(twin)
    with torch.no_grad():
        layer.parametrizations.weight.original.fill_(1.0)
    assert float(layer.weight.detach().sum()) == 12.0 and parametrize.is_parametrized(layer, "weight")


def test_a_baked_layer_can_be_parametrised_again():
    layer = linear()
    fill(layer, "mask")
    bake(layer)
    fill(layer, "scale")
    torch.testing.assert_close(layer.weight[:, ::2], torch.zeros(4, 3, dtype=torch.float64))


def test_recurrent_nets_train_copy_save_and_bake():
    torch.manual_seed(0)
    lstm = nn.LSTM(6, 4, num_layers=2, bidirectional=True)
    x = torch.randn(5, 2, 6)
    plain = lstm(x)[0].detach()
    names = [name for name, _ in lstm.named_parameters()]
    weights = [name for name in names if name.startswith("weight")]
    for name in weights:
        fill(lstm, "scale", tensor=name)
    torch.testing.assert_close(lstm(x)[0], plain)
    lstm(x)[0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in lstm.parameters())
    # The parametrised weights, not stale copies of them, are what the next forward uses.
    with torch.no_grad():
        for _, _, _, part in chains(lstm, Scale):
            part.g.mul_(0.5)
    halved = lstm(x)[0].detach()
    assert not torch.allclose(halved, plain)
    twin = copy.deepcopy(lstm)
    torch.testing.assert_close(twin(x)[0], halved)
    twin.load_state_dict(lstm.state_dict())
    bake(twin)
    assert {name for name, _ in twin.named_parameters()} == set(names) and type(twin) is nn.LSTM
    assert torch.equal(twin(x)[0], halved) and torch.equal(lstm(x)[0], halved)
    assert all(w is getattr(twin, name) for name, w in zip(twin._flat_weights_names, twin._flat_weights, strict=True))


def test_chains_compile_and_export():
    layer = linear()
    fill(layer, "mask", "scale")
    x = torch.ones(2, 6, dtype=torch.float64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    bake(layer)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
