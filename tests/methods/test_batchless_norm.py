"""Batchless normalisation on whole models (Berger & Uc Cetina 2022): closed forms in NumPy, written from the paper."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pliant
from pliant.core.errors import ContractError, NoMatchError, SettingError
from pliant.methods.batchless_norm import layers
from pliant.models import build

SHAPES = {"mlp": (4,), "cnn": (2, 6, 6)}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reseed(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.double().parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def mlp() -> nn.Sequential:
    return reseed(
        nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(4, 5), act1=nn.LeakyReLU(0.3), fc2=nn.Linear(5, 6), act2=nn.Tanh(), out=nn.Linear(6, 3)
            )
        )
    )


def cnn() -> nn.Sequential:
    return reseed(
        nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(2, 4, 3),
                act1=nn.ReLU(),
                conv2=nn.Conv2d(4, 5, 3),
                act2=nn.SiLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
                out=nn.Linear(5, 3),
            )
        )
    )


NETS = {"mlp": mlp, "cnn": cnn}


def applied_to(model: nn.Module, x: Tensor, **settings: Any) -> pliant.Applied:
    return pliant.Stack(pliant.BatchlessNorm(**settings)).apply(model, sample=x)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.3 * x)


# -- what it edits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(NETS))
def test_norms_go_behind_activations_and_nothing_else_changes(name: str):
    model = NETS[name]()
    before = list(model.state_dict())
    report = applied_to(model, draw(7, *SHAPES[name])).report
    assert report.changed() == ["act1", "act2"]
    norms = [k for k in model.state_dict() if ".norm." in k]
    assert sorted(norms) == sorted(f"act{i}.norm.{p}" for i in (1, 2) for p in ("mean", "log_std", "weight", "bias"))
    assert [k for k in model.state_dict() if k not in (*norms, "pliant_step")] == before
    assert all(layer.mean.dtype is torch.float64 for layer in layers(model))


@pytest.mark.parametrize("position", ["after_activation", "before_activation"])
def test_without_data_init_the_function_is_bit_for_bit_the_same(position: Any):
    model, x = mlp(), draw(7, 4)
    plain = model(x)
    applied_to(model, x, data_init=False, position=position)
    assert torch.equal(model(x), plain)


def test_sequences_share_their_statistics_over_positions():
    model, x = reseed(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))), draw(3, 7, 4)
    applied_to(model, x)
    (layer,) = layers(model)
    h = np.tanh(F.linear(x, model[0].weight, model[0].bias).detach().numpy())
    assert layer.channel_dim == -1 and layer.num_features == 5
    np.testing.assert_allclose(layer.mean.detach().numpy(), h.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(layer.log_std.detach().numpy(), np.log(h.std((0, 1))), rtol=1e-12)


def test_functional_activations_are_refused_with_the_remedy():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.fc(x)))

    with pytest.raises(NoMatchError, match='use position="before_activation" when activations are function calls'):
        applied_to(Net().double(), draw(3, 4))
    applied_to(Net().double(), draw(3, 4), position="before_activation")


@pytest.mark.parametrize("settings", [{"stat_grad": "fisher"}, {"stat_rate": 0.0}, {"stat_rate": 1.0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]):
    with pytest.raises(SettingError):
        pliant.BatchlessNorm(**settings)


# -- forward and gradients -----------------------------------------------------------------------------------------


def test_training_and_evaluation_compute_the_formula():
    """y = gamma (x - mu)/sigma + beta, whatever the batch."""
    model, x = mlp(), draw(7, 4)
    applied_to(model, x, data_init=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in layers(model):
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    weights = {k: v.detach().numpy() for k, v in model.named_parameters()}

    def norm(h: np.ndarray, of: str) -> np.ndarray:
        mean, s, gamma, beta = (weights[f"{of}.norm.{k}"] for k in ("mean", "log_std", "weight", "bias"))
        return gamma * (h - mean) / np.exp(s) + beta

    h = norm(leaky(x.numpy() @ weights["fc1.weight"].T + weights["fc1.bias"]), "act1")
    h = norm(np.tanh(h @ weights["fc2.weight"].T + weights["fc2.bias"]), "act2")
    expected = h @ weights["out.weight"].T + weights["out.bias"]
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(model.eval()(x), model.train()(x)) and torch.allclose(model(x[:1]), model(x)[:1], atol=1e-14)


@pytest.mark.parametrize("name", list(NETS))
def test_the_task_never_reaches_the_statistics_and_the_likelihood_nothing_else(name: str):
    """d task/d(mu, s) = 0 and d aux/d(everything but mu, s) = 0, the input included."""
    model, x = NETS[name](), draw(7, *SHAPES[name])
    applied = applied_to(model, x, data_init=False)
    statistics = {p for layer in layers(model) for p in (layer.mean, layer.log_std)}
    given = x.clone().requires_grad_()
    F.cross_entropy(model(given), torch.arange(7) % 3).backward()
    assert all(p.grad is None or not p.grad.any() for p in statistics)
    assert all(bool(p.grad.any()) for p in model.parameters() if p not in statistics)
    given.grad = None
    model.zero_grad()
    model(given)
    sum(applied.terms().values()).backward()
    assert given.grad is None
    assert {p for p in model.parameters() if p.grad is not None} == statistics
    assert all(bool(p.grad.any()) for p in statistics)


@pytest.mark.parametrize("name", list(NETS))
def test_gradients_of_the_statistics_are_the_closed_forms(name: str):
    """d aux/d mu_c = -m1_c/(sigma_c C), d aux/d s_c = (1 - m2_c)/C, in the middle of a whole training step."""
    model, x = NETS[name](), draw(7, *SHAPES[name])
    applied = applied_to(model, x, data_init=False)
    with torch.no_grad():
        for layer in layers(model):
            layer.mean.fill_(0.2), layer.log_std.fill_(-0.4)
    inputs: list[np.ndarray] = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: inputs.append(args[0].detach().numpy()))
        for layer in layers(model)
    ]
    criterion = applied.criterion(F.cross_entropy)
    loss = criterion(model(x), torch.arange(7) % 3)
    loss.backward()
    for handle in handles:
        handle.remove()
    for layer, h in zip(layers(model), inputs, strict=True):
        axes = tuple(axis for axis in range(h.ndim) if axis != 1)
        standard = (h - 0.2) / np.exp(-0.4)
        count = h.shape[1]
        np.testing.assert_allclose(
            layer.mean.grad.numpy(), -standard.mean(axes) / (np.exp(-0.4) * count), rtol=1e-12, atol=1e-14
        )
        np.testing.assert_allclose(
            layer.log_std.grad.numpy(), (1 - (standard**2).mean(axes)) / count, rtol=1e-12, atol=1e-14
        )
    model.eval()
    assert float(loss.detach()) == pytest.approx(float(criterion(model(x), torch.arange(7) % 3).detach()), rel=1e-14)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("name", list(NETS))
def test_micro_batches_sum_to_the_full_batch(name: str, size: int):
    """Every gradient of 21 examples is the size-weighted sum over micro-batches, the statistics' included."""
    x, y = draw(21, *SHAPES[name]), torch.arange(21) % 3
    found = []
    for step in (21, size):
        model = NETS[name]()
        applied = applied_to(model, x[:5])
        criterion = applied.criterion(F.cross_entropy)
        for at in range(0, 21, step):
            part = slice(at, at + step)
            (criterion(model(x[part]), y[part]) * (step / 21)).backward()
        found.append({k: p.grad for k, p in model.named_parameters()})
    for key, full in found[0].items():
        torch.testing.assert_close(found[1][key], full, rtol=1e-12, atol=1e-12)


# -- data-dependent start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["after_activation", "before_activation"])
@pytest.mark.parametrize("name", list(NETS))
def test_after_data_init_every_layer_sees_m1_0_and_m2_1(name: str, position: Any):
    model, x = NETS[name](), draw(50, *SHAPES[name])
    applied = applied_to(model, x, position=position)
    model(x)
    for layer in layers(model):
        sigma = layer.log_std.detach().exp()
        m1 = (layer.moment_mean - layer.mean.detach()) / sigma
        m2 = (layer.moment_var + (layer.moment_mean - layer.mean.detach()) ** 2) / sigma**2
        torch.testing.assert_close(m1, torch.zeros_like(m1), rtol=0.0, atol=1e-12)
        torch.testing.assert_close(m2, torch.ones_like(m2), rtol=1e-12, atol=0.0)
    sum(applied.terms().values()).backward()
    assert all(float(layer.log_std.grad.abs().max()) < 1e-12 for layer in layers(model))


def test_data_init_takes_the_population_std_of_each_layer_in_turn():
    model, x = mlp(), draw(50, 4)
    w = {k: v.detach().numpy().copy() for k, v in model.named_parameters()}
    applied_to(model, x)
    h1 = leaky(x.numpy() @ w["fc1.weight"].T + w["fc1.bias"])
    h2 = np.tanh((h1 - h1.mean(0)) / h1.std(0) @ w["fc2.weight"].T + w["fc2.bias"])
    for layer, h in zip(layers(model), (h1, h2), strict=True):
        np.testing.assert_allclose(layer.mean.detach().numpy(), h.mean(0), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(np.exp(layer.log_std.detach().numpy()), h.std(0), rtol=1e-11)


def test_data_init_sees_the_evaluated_net_and_leaves_no_trace_of_it():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 4), nn.ReLU())
    x, state = torch.randn(50, 4), torch.get_rng_state()
    pliant.Stack(pliant.BatchlessNorm(where=["4"])).apply(model, sample=x)
    (layer,) = layers(model)
    assert torch.equal(state, torch.get_rng_state()) and int(model[1].num_batches_tracked) == 0
    assert not layer.collected and all(m.training for m in model.modules())
    torch.testing.assert_close(layer.mean.detach(), F.relu(model.eval()[:5](x)).mean(0).detach())


def test_without_data_the_remedy_is_named():
    with pytest.raises(SettingError, match="needs data: give apply a sample or batches, or set data_init=False"):
        pliant.BatchlessNorm().calibrate(mlp(), pliant.Context(), "start")


# -- loops ---------------------------------------------------------------------------------------------------------


def test_a_loss_without_a_forward_is_refused():
    applied = applied_to(mlp(), draw(9, 4))
    with pytest.raises(ContractError, match="no batchless norm has seen data since the last step"):
        applied.terms()


def test_checkpointed_blocks_count_once():
    x, y = draw(9, 4), torch.arange(9) % 3
    found = []
    for recompute in (False, True):
        model = mlp()
        applied = applied_to(model, x[:3])

        class Root(nn.Module):
            def __init__(self, net: nn.Sequential) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: Tensor) -> Tensor:
                return checkpoint(self.net, x, use_reentrant=False)

        output = Root(model)(x) if recompute else model(x)
        applied.criterion(F.cross_entropy)(output, y).backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("position", ["after_activation", "before_activation"])
def test_the_finished_net_computes_the_same_without_the_clock(position: Any):
    model, x = cnn(), draw(9, 2, 6, 6)
    names = list(model.state_dict())
    applied = applied_to(model, x, position=position)
    optimizer = applied.attach(torch.optim.Adam(applied.groups(lr=0.01)))
    criterion = applied.criterion(F.cross_entropy)
    for _ in range(4):
        criterion(model(x), torch.arange(9) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = model.eval()(x)
    lean = applied.finalize()
    gap = float((lean(x) - expected).detach().abs().max()) / float(expected.detach().abs().max())
    assert gap < 1e-12
    folded = position == "before_activation"
    assert (list(lean.state_dict()) == names) is folded and (layers(lean) == []) is folded


def test_a_batch_normed_net_converts_and_back():
    """mu = running mean, sigma = sqrt(running var + eps), both ways, over a whole ResNet in evaluation."""
    torch.manual_seed(0)
    model = build({"name": "resnet", "depth": 8, "widths": [4, 4, 8]}, input_shape=(2, 8, 8), classes=3).double()
    x = draw(6, 2, 8, 8)
    for _ in range(3):
        model(x)
    expected = model.eval()(x)
    for _ in range(2):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    setattr(parent, name, pliant.nn.BatchlessNorm.from_batch_norm(child))
                elif isinstance(child, pliant.nn.BatchlessNorm):
                    setattr(parent, name, child.to_batch_norm())
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)
    assert layers(model) == []
