"""Batch normalisation on whole models (Ioffe & Szegedy 2015): reference values in NumPy from the paper's equations."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.core.errors import ConflictError, NoMatchError, SettingError
from pliant.models import build


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reseed(model: nn.Module, seed: int = 0) -> nn.Module:
    """Float64 weights ~ N(0, 1/4), and batch norms away from their start."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.double().parameters():
        with torch.no_grad():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def mlp() -> nn.Sequential:
    layers = OrderedDict(
        fc1=nn.Linear(5, 6), act1=nn.Sigmoid(), fc2=nn.Linear(6, 7), act2=nn.Tanh(), out=nn.Linear(7, 3)
    )
    return reseed(nn.Sequential(layers))


def shake(model: nn.Module) -> None:
    """Trained-looking statistics, scales and shifts in every batch norm."""
    generator = torch.Generator().manual_seed(9)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for t, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.2, 2),
                (module.weight.data, -1.5, 1.5),
                (module.bias.data, -1, 1),
            ):
                t.copy_(low + (high - low) * torch.rand(t.shape, generator=generator, dtype=torch.float64))


def norm_by_hand(h: np.ndarray, norm: Any) -> np.ndarray:
    """Algorithm 1 over all axes but channels (axis 1)."""
    axes = tuple(axis for axis in range(h.ndim) if axis != 1)
    mean, var = h.mean(axes, keepdims=True), h.var(axes, keepdims=True)
    shape = [1, -1] + [1] * (h.ndim - 2)
    gamma, beta = norm.weight.detach().numpy().reshape(shape), norm.bias.detach().numpy().reshape(shape)
    return gamma * (h - mean) / np.sqrt(var + norm.eps) + beta


# -- what it edits -------------------------------------------------------------------------------------------------


def test_the_training_forward_of_a_whole_net_is_algorithm_1():
    model, x = mlp(), draw(8, 5)
    w1, w2, w3 = (m.weight.detach().numpy() for m in (model.fc1, model.fc2, model.out))
    pliant.Stack(pliant.BatchNorm()).apply(model, sample=x)
    shake(model)
    h = 1 / (1 + np.exp(-norm_by_hand(x.numpy() @ w1.T, model.fc1.norm)))
    h = np.tanh(norm_by_hand(h @ w2.T, model.fc2.norm))
    expected = h @ w3.T + model.out.bias.detach().numpy()
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-12, atol=1e-13)


def test_biases_in_front_go_and_the_report_says_so():
    model = mlp()
    report = pliant.Stack(pliant.BatchNorm()).apply(model, sample=draw(8, 5)).report
    assert model.fc1.bias is None and model.fc2.bias is None and model.out.bias is not None
    told = [e.detail for e in report.entries if e.path == "fc1"]
    assert told == ["BatchNorm1d(6) before act1", "bias removed: the mean subtraction cancels it"]
    assert report.parameters == (5 * 6 + 6 + 6 * 7 + 7 + 7 * 3 + 3, 5 * 6 + 6 * 7 + 7 * 3 + 3 + 2 * (6 + 7))


def test_the_dropped_bias_never_mattered():
    x = draw(8, 5)
    with_bias, without = mlp(), mlp()
    pliant.Stack(pliant.BatchNorm(drop_bias=False)).apply(with_bias, sample=x)
    pliant.Stack(pliant.BatchNorm()).apply(without, sample=x)
    assert with_bias.fc1.bias is not None
    torch.testing.assert_close(with_bias(x), without(x), rtol=1e-12, atol=1e-13)


def test_the_last_layer_is_left_alone():
    report = pliant.Stack(pliant.BatchNorm()).plan(mlp(), sample=draw(8, 5))
    assert set(report.changed()) == {"fc1", "fc2"}
    assert "left alone: its output is the model's output" in str(report)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = torch.sigmoid(self.conv2(x))
        x = self.fc1(x.mean((2, 3))).relu()
        return self.fc2(x)


def test_functional_activations_are_found():
    model = reseed(Functional())
    report = pliant.Stack(pliant.BatchNorm()).apply(model, sample=draw(4, 2, 8, 8)).report
    assert set(report.changed()) == {"conv1", "conv2", "fc1"}
    kinds = [type(m.norm).__name__ for m in (model.conv1, model.conv2, model.fc1)]
    assert kinds == ["BatchNorm2d", "BatchNorm2d", "BatchNorm1d"]
    h = F.conv2d(draw(4, 2, 8, 8), model.conv1.weight).detach().numpy()
    np.testing.assert_allclose(
        model.conv1(draw(4, 2, 8, 8)).detach().numpy(), norm_by_hand(h, model.conv1.norm), rtol=1e-11, atol=1e-12
    )


def test_sequences_with_channels_last_are_passed_over_with_the_reason():
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with pytest.raises(NoMatchError, match="batch norm needs channels second"):
        pliant.Stack(pliant.BatchNorm()).plan(model, sample=draw(4, 7, 5))


def test_shared_layers_are_passed_over():
    fc = nn.Linear(5, 5)
    model = nn.Sequential(fc, nn.ReLU(), fc, nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    report = pliant.Stack(pliant.BatchNorm()).plan(model, sample=draw(4, 5))
    assert set(report.changed()) == {"4"}
    assert "called 2 times in one forward: its outputs have different distributions" in str(report)


def test_nets_that_are_normalised_already_are_refused_with_the_reason():
    model = build("resnet20", input_shape=(3, 8, 8), classes=4)
    with pytest.raises(NoMatchError, match="already normalised by 'bn1'"):
        pliant.Stack(pliant.BatchNorm()).plan(model, sample=torch.randn(4, 3, 8, 8))


def test_after_the_activation_where_asked():
    model, x = mlp(), draw(8, 5)
    pliant.Stack(pliant.BatchNorm(position="after_activation")).apply(model, sample=x)
    assert model.fc1.bias is not None and model.act1.norm.weight.dtype is torch.float64
    h = 1 / (1 + np.exp(-(x.numpy() @ model.fc1.weight.detach().numpy().T + model.fc1.bias.detach().numpy())))
    got = model.act1(model.fc1(x)).detach().numpy()
    np.testing.assert_allclose(got, norm_by_hand(h, model.act1.norm), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "settings", [{"eps": 0.0}, {"eps": -1.0}, {"momentum": 0.0}, {"momentum": 1.5}, {"position": "before"}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]):
    with pytest.raises(SettingError):
        pliant.Stack(pliant.BatchNorm(**settings)).plan(mlp(), sample=draw(8, 5))


def test_settings_reach_the_layers():
    model = mlp()
    pliant.Stack(pliant.BatchNorm(eps=1e-3, momentum=0.25)).apply(model, sample=draw(8, 5))
    assert (model.fc1.norm.eps, model.fc1.norm.momentum) == (1e-3, 0.25)


def test_scales_and_shifts_do_not_decay():
    model = mlp()
    applied = pliant.Stack(pliant.BatchNorm()).apply(model, sample=draw(8, 5))
    decayed, free = applied.groups(lr=0.1, weight_decay=0.01)
    assert set(free["params"]) == {p for m in (model.fc1, model.fc2) for p in m.norm.parameters()}
    assert (free["weight_decay"], decayed["weight_decay"], free["lr"]) == (0.0, 0.01, 0.1)


def test_batch_norm_and_batchless_norm_do_not_mix():
    with pytest.raises(ConflictError, match="two normalisations on one site"):
        pliant.Stack(pliant.BatchNorm(), pliant.BatchlessNorm())


# -- invariances ---------------------------------------------------------------------------------------------------


def test_weights_are_orthogonal_to_their_gradients_per_channel():
    """<W_o, dL/dW_o> = 0, exactly so as eps -> 0."""
    model, x = mlp(), draw(16, 5)
    pliant.Stack(pliant.BatchNorm(eps=1e-30)).apply(model, sample=x)
    shake(model)
    F.cross_entropy(model(x), torch.arange(16) % 3).backward()
    for layer in (model.fc1, model.fc2):
        w, g = layer.weight.detach().numpy(), layer.weight.grad.numpy()
        size = np.linalg.norm(w, axis=1) * np.linalg.norm(g, axis=1)
        assert (np.abs((w * g).sum(1)) <= 1e-10 * size).all() and (size > 0).all()
    assert abs(float((model.out.weight.detach() * model.out.weight.grad).sum())) > 1e-3


@pytest.mark.parametrize("a", [0.01, 3.0, 100.0])
def test_the_scale_of_a_weight_vanishes_and_its_gradient_shrinks_by_it(a: float):
    """BN((aW)u) = BN(Wu) and d/d(aW) = (1/a) d/dW."""
    x, gradients, outputs = draw(16, 5), [], []
    for factor in (1.0, a):
        model = mlp()
        pliant.Stack(pliant.BatchNorm(eps=1e-30)).apply(model, sample=x)
        with torch.no_grad():
            model.fc2.weight.mul_(factor)
        outputs.append(model(x))
        outputs[-1].square().sum().backward()
        gradients.append(model.fc2.weight.grad)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradients[1] * a, gradients[0], rtol=1e-8, atol=1e-9)


# -- population statistics -----------------------------------------------------------------------------------------


def population(layers: list[np.ndarray], batches: list[np.ndarray], eps: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Algorithm 2 for an MLP of sigmoid-free linear stages with ReLU: E = mean(mu_b), Var = mean(m/(m-1) var_b)."""
    found = []
    current = batches
    for w in layers:
        hidden = [u @ w.T for u in current]
        means = np.mean([h.mean(0) for h in hidden], axis=0)
        variances = np.mean([h.var(0) * len(h) / (len(h) - 1) for h in hidden], axis=0)
        found.append((means, variances))
        # While statistics are gathered every batch is normalised by its own.
        current = [np.maximum((h - h.mean(0)) / np.sqrt(h.var(0) + eps), 0) for h in hidden]
    return found


def test_recalibration_is_algorithm_2():
    model = reseed(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    batches = [draw(n, 5, seed=n) for n in (6, 6, 9)]
    applied = pliant.Stack(pliant.BatchNorm()).apply(model, sample=batches[0])
    for batch in batches:
        model(batch)  # moving averages to be replaced
    applied.calibrate_end([(batch, None) for batch in batches])
    weights = [model[i].weight.detach().numpy() for i in (0, 2)]
    for layer, (mean, var) in zip(
        (model[0], model[2]), population(weights, [b.numpy() for b in batches], 1e-5), strict=True
    ):
        np.testing.assert_allclose(layer.norm.running_mean.numpy(), mean, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(layer.norm.running_var.numpy(), var, rtol=1e-12, atol=1e-14)


def test_recalibration_can_be_declined():
    model = mlp()
    applied = pliant.Stack(pliant.BatchNorm(recalibrate=False)).apply(model, sample=draw(8, 5))
    model(draw(8, 5))
    before = model.fc1.norm.running_mean.clone()
    applied.calibrate_end([draw(8, 5, seed=3)])
    assert torch.equal(model.fc1.norm.running_mean, before)


def test_running_variance_is_the_moving_average_of_unbiased_variances():
    model = mlp()
    pliant.Stack(pliant.BatchNorm(momentum=0.3)).apply(model, sample=draw(8, 5))
    w, mean, var = model.fc1.weight.detach().numpy(), np.zeros(6), np.ones(6)
    for seed in range(3):
        x = draw(8, 5, seed=seed)
        model(x)
        h = x.numpy() @ w.T
        mean, var = 0.7 * mean + 0.3 * h.mean(0), 0.7 * var + 0.3 * h.var(0, ddof=1)
    np.testing.assert_allclose(model.fc1.norm.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(model.fc1.norm.running_var.numpy(), var, rtol=1e-12)


# -- folding -------------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda bias: nn.Linear(4, 6, bias=bias), (5, 4)),
    "conv1d": (lambda bias: nn.Conv1d(4, 6, 3, bias=bias), (5, 4, 7)),
    "conv2d_padded": (lambda bias: nn.Conv2d(4, 6, 3, padding=1, bias=bias), (5, 4, 6, 6)),
    "conv3d": (lambda bias: nn.Conv3d(4, 6, 2, bias=bias), (5, 4, 4, 4, 4)),
    "grouped": (lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), (5, 4, 6, 6)),
    "depthwise": (lambda bias: nn.Conv2d(4, 4, 3, groups=4, bias=bias), (5, 4, 6, 6)),
    "depthwise_multiplied": (lambda bias: nn.Conv2d(4, 12, 3, groups=4, bias=bias), (5, 4, 6, 6)),
    "transposed": (lambda bias: nn.ConvTranspose2d(4, 6, 3, stride=2, bias=bias), (5, 4, 6, 6)),
    "transposed_square": (lambda bias: nn.ConvTranspose2d(4, 4, 3, bias=bias), (5, 4, 6, 6)),
    "transposed_grouped": (lambda bias: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=bias), (5, 4, 6, 6)),
    "transposed_1d_grouped": (lambda bias: nn.ConvTranspose1d(4, 4, 3, groups=2, bias=bias), (5, 4, 7)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_the_folded_net_is_the_evaluated_net(kind: str, bias: bool):
    """Algorithm 2, line 11, in weights: exact in float64, to 1e-5 in float32."""
    make, shape = LAYERS[kind]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for drop in (True, False):
            model = reseed(nn.Sequential(make(bias), nn.ReLU())).to(dtype)
            x = draw(*shape).to(dtype)
            applied = pliant.Stack(pliant.BatchNorm(drop_bias=drop)).apply(model, sample=x)
            shake(model)
            expected = model.eval()(x)
            lean = applied.finalize()
            gap = float((lean(x) - expected).detach().abs().max()) / float(expected.detach().abs().max())
            assert gap <= tolerance, (dtype, drop, gap)
            assert list(lean[0].children()) == [] and not lean[0]._forward_hooks
            assert type(lean[0]) is type(make(bias)) and lean[0].bias is not None


def test_a_weight_held_in_two_places_is_not_folded_into():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
            self.decode.weight = self.encode.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(torch.tanh(self.encode(x)))

    model, x = reseed(Tied()), draw(6, 4)
    applied = pliant.Stack(pliant.BatchNorm()).apply(model, sample=x)
    model(x)
    lean = applied.finalize()
    assert torch.equal(lean(x), model.eval()(x)) and isinstance(lean.encode.norm, nn.BatchNorm1d)


def test_a_norm_behind_an_activation_stays_a_norm():
    model, x = mlp(), draw(8, 5)
    applied = pliant.Stack(pliant.BatchNorm(position="after_activation")).apply(model, sample=x)
    shake(model)
    expected = model.eval()(x)
    lean = applied.finalize()
    assert torch.equal(lean(x), expected) and isinstance(lean.act1.norm, nn.BatchNorm1d)


def test_a_whole_cnn_trains_and_folds_to_the_net_it_was():
    torch.manual_seed(0)
    model = build({"name": "cnn", "widths": [4, 6, 8]}, input_shape=(1, 8, 8), classes=3)
    names = list(model.state_dict())
    x, y = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    applied = pliant.Stack(pliant.BatchNorm()).apply(model, sample=x)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1, weight_decay=1e-4), momentum=0.9))
    criterion = applied.criterion(F.cross_entropy)
    first = float(criterion(model(x), y).detach())
    for _ in range(20):
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < first / 2
    lean = applied.finalize(data=[(x, y)])
    assert sorted(lean.state_dict()) == sorted(names) and lean.conv1.bias is not None
    applied.calibrate_end([(x, y)])
    torch.testing.assert_close(lean(x), model.eval()(x), rtol=1e-5, atol=1e-5)
