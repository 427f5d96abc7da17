"""Batchless normalisation around the optimizer's step: moving averages in NumPy, accumulation, scaling, Adam."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.methods.batchless_norm import layers
from pliant.models import build


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


def applied_to(model: nn.Module, x: Tensor, **settings: Any) -> pliant.Applied:
    return pliant.Stack(pliant.BatchlessNorm(**settings)).apply(model, sample=x)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.3 * x)


def test_natural_gradients_under_sgd_are_moving_averages_through_the_whole_training_step():
    """mu <- mu + a (xbar - mu), sigma^2 <- (1 - a) sigma^2 + a mean((x - mu)^2), whatever lr, momentum and schedule."""
    model, a = mlp(), 0.2
    applied = applied_to(model, draw(9, 4), data_init=False, stat_rate=a)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.05, weight_decay=0.1), momentum=0.9))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    criterion = applied.criterion(F.cross_entropy)
    expected = [(np.zeros(5), np.ones(5)), (np.zeros(6), np.ones(6))]
    for seed in range(6):
        inputs: list[np.ndarray] = []
        handles = [
            layer.register_forward_pre_hook(lambda m, args, seen=inputs: seen.append(args[0].detach().numpy()))
            for layer in layers(model)
        ]
        criterion(model(draw(9, 4, seed=seed) * 3), torch.arange(9) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        for handle in handles:
            handle.remove()
        expected = [
            (mu + a * (h.mean(0) - mu), (1 - a) * var + a * ((h - mu) ** 2).mean(0))
            for (mu, var), h in zip(expected, inputs, strict=True)
        ]
        for layer, (mu, var) in zip(layers(model), expected, strict=True):
            np.testing.assert_allclose(layer.mean.detach().numpy(), mu, rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(np.exp(2 * layer.log_std.detach().numpy()), var, rtol=1e-11)
            assert layer.mean not in optimizer.state and layer.log_std not in optimizer.state


def test_accumulated_micro_batches_move_the_averages_as_one_batch():
    x, y = draw(21, 4), torch.arange(21) % 3
    states = []
    for size in (21, 7):
        model = mlp()
        applied = applied_to(model, x[:5], stat_rate=0.3)
        optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.05)))
        criterion = applied.criterion(F.cross_entropy)
        for at in range(0, 21, size):
            (criterion(model(x[at : at + size]), y[at : at + size]) * (size / 21)).backward()
        optimizer.step()
        states.append({k: v for k, v in model.state_dict().items() if k != "pliant_step"})
    for key, full in states[0].items():
        torch.testing.assert_close(states[1][key], full, rtol=1e-12, atol=1e-12)


def test_sums_of_unweighted_micro_batches_stay_finite():
    model = mlp()
    applied = applied_to(model, draw(5, 4), data_init=False, stat_rate=0.5)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.0)))
    with torch.no_grad():
        for layer in layers(model):
            layer.log_std.fill_(5.0)  # a deviation far above the data's: the variance must fall
    for _ in range(10):
        applied.criterion(F.cross_entropy)(model(draw(5, 4)), torch.arange(5) % 3).backward()
    optimizer.step()
    for layer in layers(model):
        # By no more than the weight of the new batch allows: sigma^2 >= (1 - a) sigma^2.
        torch.testing.assert_close(layer.log_std.detach(), torch.full_like(layer.log_std, 5.0 + 0.5 * np.log(0.5)))


@pytest.mark.parametrize("scaled", [False, True])
def test_scaled_gradients_give_the_same_averages(scaled: bool):
    """A fused optimizer under a GradScaler steps on scaled gradients."""
    model = mlp()
    applied = applied_to(model, draw(9, 4), data_init=False)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.05), fused=True))
    loss = applied.criterion(F.cross_entropy)(model(draw(9, 4)), torch.arange(9) % 3)
    if scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
    else:
        loss.backward()
        optimizer.step()
    h = leaky((draw(9, 4) @ mlp().fc1.weight.T + mlp().fc1.bias).detach().numpy())
    np.testing.assert_allclose(model.act1.norm.mean.detach().numpy(), 0.1 * h.mean(0), rtol=1e-12)


def test_under_adam_the_likelihood_itself_is_followed():
    """The first step of Adam moves every entry by lr against its gradient's sign."""
    model, x = mlp(), draw(9, 4)
    applied = applied_to(model, x, data_init=False)
    optimizer = applied.attach(torch.optim.Adam(applied.groups(lr=0.01), eps=1e-15))
    applied.criterion(F.cross_entropy)(model(x), torch.arange(9) % 3).backward()
    gradients = [(layer.mean.grad.clone(), layer.log_std.grad.clone()) for layer in layers(model)]
    optimizer.step()
    for layer, (mean, log_std) in zip(layers(model), gradients, strict=True):
        torch.testing.assert_close(layer.mean.detach(), -0.01 * mean.sign(), rtol=1e-9, atol=0.0)
        torch.testing.assert_close(layer.log_std.detach(), -0.01 * log_std.sign(), rtol=1e-9, atol=0.0)


def test_a_frozen_net_finds_its_population_statistics():
    """2000 natural steps on N(0, 1) inputs: mu and sigma within sampling error of what the layer really sees."""
    torch.manual_seed(0)
    model, a, batch = reseed(nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 2))), 0.02, 16
    applied = applied_to(model, draw(9, 4), where=["0"], position="before_activation", data_init=False, stat_rate=a)
    (layer,) = layers(model)
    for p in model.parameters():
        p.requires_grad_(p is layer.mean or p is layer.log_std)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=1.0)))
    criterion = applied.criterion(lambda output: 0.0 * output.sum())
    inputs = draw(2000, batch, 4, seed=5)
    for x in inputs:
        criterion(model(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    mean = model[0].bias.detach()
    std = model[0].weight.detach().norm(dim=1)
    # An exponential average of weight a holds (2 - a)/a independent batches; 5 standard errors for each of 12 numbers.
    error = np.sqrt(a / (2 - a) / batch)
    z_mean = (layer.mean.detach() - mean) / (std * error)
    z_std = (layer.log_std.detach().exp() / std - 1) / (error / np.sqrt(2))
    assert float(z_mean.abs().max()) < 5 and float(z_std.abs().max()) < 5


def test_statistics_are_the_methods_own_and_do_not_decay():
    model = mlp()
    applied = applied_to(model, draw(9, 4))
    plain, affine, own = applied.groups(lr=0.1, weight_decay=0.01)
    assert set(own["params"]) == {p for layer in layers(model) for p in (layer.mean, layer.log_std)}
    assert set(affine["params"]) == {p for layer in layers(model) for p in (layer.weight, layer.bias)}
    assert (plain["weight_decay"], affine["weight_decay"], own["weight_decay"]) == (0.01, 0.0, 0.0)
    assert own["owned"] and not affine["owned"]


def test_it_learns_at_batch_size_one():
    """A linear rule of two inputs, one example a step: where batch norm cannot run at all."""
    torch.manual_seed(0)
    x = draw(200, 2)
    y = (x[:, 0] > x[:, 1]).long()
    model = build({"name": "mlp", "hidden": [8, 8], "activation": "leaky_relu"}, input_shape=(2,), classes=2).double()
    applied = applied_to(model, x)
    optimizer = applied.attach(torch.optim.Adam(applied.groups(lr=0.01)))
    criterion = applied.criterion(F.cross_entropy)
    for i in range(200):
        criterion(model(x[i : i + 1]), y[i : i + 1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float((model.eval()(x).argmax(1) == y).double().mean()) > 0.85
