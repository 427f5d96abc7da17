"""Weight normalisation on whole models (Salimans & Kingma 2016), held to its equations in NumPy and to torch's own."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import pliant
from pliant.core.errors import ContractError, NoMatchError, SettingError
from pliant.core.reparam import chains
from pliant.models import build
from pliant.nn import WeightScale


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reseed(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.double().parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def applied_to(model: nn.Module, x: Tensor | None = None, **settings: Any) -> pliant.Applied:
    return pliant.Stack(pliant.WeightNorm(**({"data_init": False} | settings))).apply(model, sample=x)


def parts(model: nn.Module) -> list[tuple[str, nn.Module, str, Any]]:
    return list(chains(model, WeightScale))


# Layers, an input for each, and the axes that a unit's vector lies along, written down from the layouts of torch:
# linear (out, in), convolution (out, in/groups, k...), transposed (in, out/groups, k...), LSTM (4H, in) and (4H, H).
LAYERS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 6), (3, 4), (1,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (3, 4, 7), (1, 2)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (3, 4, 6, 6), (1, 2, 3)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (3, 4, 4, 4, 4), (1, 2, 3, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 6, 6), (1, 2, 3)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (3, 4, 6, 6), (1, 2, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), (3, 4, 6, 6), (0, 2, 3)),
    "transposed_square": (lambda: nn.ConvTranspose1d(5, 5, 3), (3, 5, 6), (0, 2)),
}


def norms(v: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt((v**2).sum(axes, keepdims=True))


@pytest.mark.parametrize("kind", list(LAYERS))
def test_the_function_is_unchanged_and_each_g_is_a_units_length(kind: str):
    make, shape, axes = LAYERS[kind]
    model, x = reseed(nn.Sequential(make())), draw(*shape)
    plain, v = model(x), model[0].weight.detach().numpy().copy()
    applied_to(model)
    ((_, layer, _, part),) = parts(model)
    torch.testing.assert_close(model(x), plain, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(part.g.detach().numpy(), norms(v, axes), rtol=1e-14)
    with torch.no_grad():
        part.g.mul_(-1.7)
        layer.parametrizations.weight.original.mul_(3.0)
    np.testing.assert_allclose(norms(layer.weight.detach().numpy(), axes), np.abs(part.g.detach().numpy()), rtol=1e-13)
    np.testing.assert_allclose(layer.weight.detach().numpy(), -1.7 * v, rtol=1e-13)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_gradients_are_the_papers_and_torchs(kind: str):
    """grad_g = grad_w . v / ||v||, grad_v = g/||v|| grad_w - g grad_g / ||v||^2 v (eq. 3)."""
    make, _, axes = LAYERS[kind]
    model = reseed(nn.Sequential(make()))
    applied_to(model)
    ((_, layer, _, part),) = parts(model)
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        part.g.copy_(torch.linspace(-2, 3, part.g.numel(), dtype=torch.float64).view_as(part.g) + 0.1)
    weight = layer.weight
    weight.retain_grad()
    target = draw(*weight.shape, seed=1)
    (weight * target).sum().backward()
    v, g, gw = original.detach().numpy(), part.g.detach().numpy(), target.numpy()
    length = norms(v, axes)
    grad_g = (gw * v).sum(axes, keepdims=True) / length
    grad_v = g / length * gw - g * grad_g / length**2 * v
    np.testing.assert_allclose(part.g.grad.numpy(), grad_g, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(original.grad.numpy(), grad_v, rtol=1e-12, atol=1e-13)
    assert float(np.abs((grad_v * v).sum(axes)).max()) < 1e-12  # v . grad_v = 0
    assert float((original.grad * original.detach()).sum(axes).abs().max()) < 1e-12
    (kept,) = set(range(v.ndim)) - set(axes)
    tv, tg = original.detach().clone().requires_grad_(), part.g.detach().clone().requires_grad_()
    (torch._weight_norm(tv, tg, kept) * target).sum().backward()
    torch.testing.assert_close(original.grad, tv.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.g.grad, tg.grad, rtol=1e-12, atol=1e-12)


def test_grouped_transposed_convolutions_have_one_g_per_output_channel():
    """Entry W[i, j] belongs to output channel (i // (C_in/G)) (C_out/G) + j."""
    model = reseed(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2)))
    applied_to(model)
    ((_, layer, _, part),) = parts(model)
    w, lengths = layer.weight.detach().numpy(), np.zeros(6)
    for o in range(6):
        group, j = divmod(o, 3)
        lengths[o] = math.sqrt(sum((w[i, j] ** 2).sum() for i in range(2 * group, 2 * group + 2)))
    np.testing.assert_allclose(part.g.detach().numpy().ravel(), lengths, rtol=1e-13)
    x = draw(3, 4, 5, 5)
    before = model(x).detach()
    with torch.no_grad():
        part.multiply(torch.tensor([1.0, 1, 1, 1, 2, 1], dtype=torch.float64))
    bias = layer.bias.detach().view(1, -1, 1, 1)
    ratio = (model(x).detach() - bias) / (before - bias)
    torch.testing.assert_close(ratio[:, 4], torch.full_like(ratio[:, 4], 2.0))
    torch.testing.assert_close(ratio[:, [0, 1, 2, 3, 5]], torch.ones_like(ratio[:, :5]))


def test_directions_grow_by_pythagoras_under_sgd():
    """||v'||^2 = ||v||^2 + lr^2 ||grad_v||^2, step after step through the whole training loop."""
    model = reseed(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    applied = applied_to(model)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.3)))
    criterion, x = applied.criterion(F.cross_entropy), draw(9, 4)
    for _ in range(5):
        optimizer.zero_grad()
        criterion(model(x), torch.arange(9) % 3).backward()
        before = [(m.parametrizations.weight.original.detach().clone()) for _, m, _, _ in parts(model)]
        optimizer.step()
        for (_, m, _, _), old in zip(parts(model), before, strict=True):
            v = m.parametrizations.weight.original
            expected = (old**2).sum(1) + 0.09 * (v.grad**2).sum(1)
            torch.testing.assert_close((v.detach() ** 2).sum(1), expected, rtol=1e-12, atol=1e-13)
            assert bool((expected > (old**2).sum(1)).all())


def test_the_length_of_v_only_slows_it():
    """w is invariant to v -> a v (a > 0), and grad_v scales by 1/a."""
    found = []
    for a in (1.0, 10.0):
        model = reseed(nn.Sequential(nn.Linear(4, 6)))
        applied_to(model)
        ((_, layer, _, _),) = parts(model)
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(a)
        model(draw(3, 4)).square().sum().backward()
        found.append((layer.weight.detach(), layer.parametrizations.weight.original.grad * a))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-13)


# -- recurrent nets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: nn.LSTM(4, 3, 2, bidirectional=True), lambda: nn.GRU(4, 3)])
def test_recurrent_nets_keep_their_function_and_every_gate_row_has_its_g(make: Any):
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = make()
            self.out = nn.Linear(6 if self.rnn.bidirectional else 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0])

    model, x = reseed(Tagger()), draw(7, 5, 4)
    plain = model(x).detach()
    applied = applied_to(model)
    torch.testing.assert_close(model(x), plain, rtol=1e-12, atol=1e-13)
    for _, _, tensor, part in parts(model):
        if tensor != "weight":
            assert part.g.shape == (12 if isinstance(model.rnn, nn.LSTM) else 9, 1), tensor
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1)))
    for _ in range(2):
        model(x).square().sum().backward()
        assert all(bool(part.g.grad.abs().sum() > 0) for _, _, _, part in parts(model))
        optimizer.step()
        optimizer.zero_grad()
    lean = applied.finalize(sample=x)
    assert torch.equal(lean(x), model.eval()(x)) and type(lean.rnn) is type(model.rnn).__bases__[0]
    assert lean.state_dict().keys() == Tagger().state_dict().keys()


def test_data_init_leaves_recurrent_layers_at_their_own_lengths():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0].mean(0))

    model, x = reseed(Net()), draw(7, 20, 4)
    rows = model.rnn.weight_hh_l0.detach().numpy().copy()
    pliant.Stack(pliant.WeightNorm()).apply(model, sample=x)
    g = model.rnn.parametrizations.weight_hh_l0[0].scale.g.detach().numpy()
    np.testing.assert_allclose(g, norms(rows, (1,)), rtol=1e-13)
    np.testing.assert_allclose(model(x).detach().numpy().std(0), 1.0, rtol=1e-10)


# -- the life of a model -------------------------------------------------------------------------------------------


def test_copies_after_a_forward_train_on_their_own():
    model, x = reseed(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), draw(9, 4)
    applied_to(model)
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    before = model(x).detach()
    with torch.no_grad():
        for _, _, _, part in parts(twin):
            part.g.mul_(2.0)
    assert torch.equal(model(x), before) and not torch.allclose(twin(x), before)


def test_baked_weights_are_bit_equal_and_plain():
    model, x = build({"name": "cnn", "widths": [4, 6]}, input_shape=(1, 8, 8), classes=3), torch.randn(5, 1, 8, 8)
    names = list(model.state_dict())
    applied = pliant.Stack(pliant.WeightNorm()).apply(model, sample=x)
    optimizer = applied.attach(torch.optim.Adam(applied.groups(lr=0.01)))
    for _ in range(3):
        applied.criterion(F.cross_entropy)(model(x), torch.arange(5) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    lean = applied.finalize()
    for path, layer, _, _ in parts(model):
        baked = lean.get_submodule(path)
        assert torch.equal(baked.weight, layer.weight) and isinstance(baked.weight, nn.Parameter)
        assert not parametrize.is_parametrized(baked)
    assert torch.equal(lean(x), model.eval()(x)) and list(lean.state_dict()) == names


def test_decay_spares_directions_and_acts_on_lengths():
    model = nn.Sequential(nn.Linear(4, 6))
    applied = applied_to(model)
    decayed, free = applied.groups(lr=0.1, weight_decay=0.01)
    ((_, layer, _, part),) = parts(model)
    assert free["params"] == [layer.parametrizations.weight.original] and free["weight_decay"] == 0.0
    assert set(decayed["params"]) == {part.g, layer.bias}


def test_an_optimizer_from_before_lacks_g_and_is_refused():
    model = nn.Sequential(nn.Linear(4, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ContractError, match=r"lacks 0\.parametrizations\.weight\.0\.scale\.g"):
        applied_to(model).attach(optimizer)


def test_layers_that_start_at_zero_are_passed_over_and_zero_rows_stay_finite():
    model, x = reseed(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), draw(9, 4)
    with torch.no_grad():
        model[0].weight[1].zero_()
        model[1].weight.zero_()
    report = pliant.Stack(pliant.WeightNorm()).apply(model, sample=x).report
    assert report.changed() == ["0"] and "weight is all zero: a zero vector has no direction" in str(report)
    assert "1 of 4 units of 0's weight are zero vectors" in str(report)
    assert torch.equal(model[0].weight[1], torch.zeros(4, dtype=torch.float64))
    model(x).square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_net_of_zeros_is_refused():
    with torch.no_grad():
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].weight.zero_()
    with pytest.raises(NoMatchError, match=r"found no linear, convolution or recurrent layer \(passed over: 0"):
        applied_to(model)


def test_names_choose_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    report = applied_to(model, where=["1"]).report
    assert report.changed() == ["1"] and "left alone: not selected by where=" in str(report)
    with pytest.raises(NoMatchError, match="where='9' matches none of the weighted layers of this model"):
        applied_to(nn.Sequential(nn.Linear(4, 4)), where=["9"])


@pytest.mark.parametrize("settings", [{"init_scale": 0.0}, {"init_scale": -1.0}, {"direction_std": 0.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]):
    with pytest.raises(SettingError, match="expected a number above 0"):
        pliant.WeightNorm(**settings)


def test_half_precision_keeps_the_lengths():
    model = nn.Sequential(nn.Linear(64, 8)).to(torch.bfloat16)
    with torch.no_grad():
        model[0].weight.mul_(1e-4)
    exact = model[0].weight.detach().double().norm(dim=1)
    applied_to(model)
    ((_, layer, _, part),) = parts(model)
    assert layer.weight.dtype is torch.bfloat16
    torch.testing.assert_close(part.g.detach().double().ravel(), exact, rtol=2**-8, atol=0.0)
