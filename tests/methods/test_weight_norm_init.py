"""The data-dependent start of weight normalisation (Salimans & Kingma 2016, section 3), layer by layer in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.core.errors import InputError, SettingError
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


def norms(v: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt((v**2).sum(axes, keepdims=True))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.fc = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.conv2(F.relu(self.conv1(x)))
        return self.fc(self.drop(self.up(x).mean((2, 3))))


NETS = {
    "mlp": (lambda: build("mlp", input_shape=(5,), classes=3), (40, 5)),
    "cnn": (lambda: build({"name": "cnn", "widths": [4, 6]}, input_shape=(2, 8, 8), classes=3), (40, 2, 8, 8)),
    "residual": (Residual, (40, 2, 6, 6)),
}


def preactivations(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda m, a, out, path=path: seen.setdefault(path, out.detach()))
        for path, layer, _, _ in parts(model)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("name", list(NETS))
def test_after_data_init_every_preactivation_has_mean_0_and_the_asked_std(name: str, scale: float):
    make, shape = NETS[name]
    torch.manual_seed(0)
    model, x = reseed(make()), draw(*shape)
    if name == "residual":
        model.drop.p = 0.0  # the recorded forward must see the noise of the initialising one: none
    applied_to(model, x, data_init=True, init_scale=scale)
    seen = preactivations(model, x)
    assert len(seen) == len([m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))])
    for path, t in seen.items():
        h = t.numpy()
        axes = tuple(axis for axis in range(h.ndim) if axis != 1)
        assert float(np.abs(h.mean(axes)).max()) < 1e-5 * scale, path
        assert float(np.abs(h.std(axes) - scale).max()) < 1e-4 * scale, path


def test_data_init_is_the_papers_formula_layer_by_layer():
    """g = s/sigma[t], b = -mu[t] s/sigma[t] with t = v.x/||v||, on phi of the layer before."""
    model, x = reseed(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), draw(30, 4)
    v1, v2 = (model[i].weight.detach().numpy().copy() for i in (0, 2))
    applied_to(model, x, data_init=True, init_scale=0.7)
    t = x.numpy() @ (v1 / norms(v1, (1,))).T
    g1, b1 = 0.7 / t.std(0), -t.mean(0) * 0.7 / t.std(0)
    u = np.tanh(g1 * t + b1) @ (v2 / norms(v2, (1,))).T
    g2, b2 = 0.7 / u.std(0), -u.mean(0) * 0.7 / u.std(0)
    for layer, g, b in ((model[0], g1, b1), (model[2], g2, b2)):
        np.testing.assert_allclose(layer.parametrizations.weight[0].scale.g.detach().numpy().ravel(), g, rtol=1e-11)
        np.testing.assert_allclose(layer.bias.detach().numpy(), b, rtol=1e-10, atol=1e-12)


def test_several_batches_are_one_big_batch():
    models = [reseed(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))) for _ in range(2)]
    x = draw(30, 4)
    applied_to(models[0], x, data_init=True)
    batches = [(x[:7], None), (x[7:], None)]
    pliant.Stack(pliant.WeightNorm()).apply(models[1], sample=x[:2], batches=batches)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_two_of_a_kind_set_values_of_their_own_layers_only():
    model, x = reseed(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), draw(30, 4)
    rows = model[0].weight.detach().norm(dim=1, keepdim=True)
    one, other = pliant.WeightNorm(where=["0"], data_init=False), pliant.WeightNorm(where=["2"], init_scale=0.5)
    pliant.Stack(one, other).apply(model, sample=x)
    torch.testing.assert_close(model[0].parametrizations.weight[0].scale.g.detach(), rows, rtol=1e-13, atol=0.0)
    np.testing.assert_allclose(model(x).detach().numpy().std(0), 0.5, rtol=1e-10)


def test_directions_are_redrawn_where_asked_by_key():
    values = []
    for seed, torch_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(torch_seed)
        model = nn.Sequential(nn.Linear(400, 50))
        stack = pliant.Stack(pliant.WeightNorm(direction_std=0.05))
        stack.apply(model, sample=torch.randn(9, 400), seed=seed)
        values.append(model[0].parametrizations.weight.original.detach())
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    # 20,000 draws of N(0, 0.05^2): the mean is within 5 standard errors, the std within 5 of its own.
    assert abs(float(values[0].mean())) < 5 * 0.05 / math.sqrt(20000)
    assert abs(float(values[0].std()) - 0.05) < 5 * 0.05 / math.sqrt(2 * 20000)


def test_constant_units_keep_their_g():
    model, x = reseed(nn.Sequential(nn.Linear(4, 2))), draw(30, 4)
    x[:, 0] = 0.0
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([2.0, 0.0, 0.0, 0.0])
    applied_to(model, x, data_init=True)
    g = model[0].parametrizations.weight[0].scale.g.detach()
    assert float(g[0]) == 2.0 and bool(torch.isfinite(model(x)).all())


def test_a_layer_used_twice_takes_its_first_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.tanh(self.fc(x)))

    model, x = reseed(Twice()), draw(30, 4)
    pliant.Stack(pliant.WeightNorm()).apply(model, sample=x)
    first = preactivations(model, x)["fc"].numpy()
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(first.std(0), 1, rtol=1e-12)


def test_data_init_leaves_running_statistics_and_random_numbers_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))
    state = torch.get_rng_state()
    pliant.Stack(pliant.WeightNorm()).apply(model, sample=torch.randn(5, 4, generator=torch.Generator()))
    assert torch.equal(state, torch.get_rng_state())
    assert int(model[1].num_batches_tracked) == 0 and torch.equal(model[1].running_mean, torch.zeros(4))


def test_behind_a_batch_norm_of_ours_only_the_length_is_set():
    model, x = reseed(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))), draw(30, 4)
    pliant.Stack(pliant.WeightNorm(), pliant.BatchNorm()).apply(model, sample=x)
    h = F.linear(x, model[0].weight).detach().numpy()
    assert model[0].bias is None
    np.testing.assert_allclose(h.std(0), 1.0, rtol=1e-10)
    out = model(x).detach().numpy()
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-10)


def test_without_data_the_remedy_is_named():
    with pytest.raises(SettingError, match=r"needs data: give apply a sample or batches, or set data_init=False"):
        pliant.Stack(pliant.WeightNorm()).apply(nn.Sequential(nn.Linear(4, 2)))


@pytest.mark.parametrize("method", [pliant.WeightNorm(), pliant.BatchlessNorm()])
def test_a_bad_number_in_the_calibration_data_changes_nothing(method):
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.ones(5, 4)
    x[2, 1] = math.nan
    with pytest.raises(InputError, match="NaN or inf"):
        pliant.Stack(method).apply(net, sample=x)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
