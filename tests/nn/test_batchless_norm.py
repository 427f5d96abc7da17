"""The batchless norm layer: what it collects, its loss term, and its conversions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pliant.core.errors import ContractError, InputError
from pliant.functional import combine_moments, gaussian_nll, moments
from pliant.nn import BatchlessNorm, BatchNorm1d


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(channels: int = 4, **options: object) -> BatchlessNorm:
    layer = BatchlessNorm(channels, dtype=torch.float64, **options)
    for index, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=index + 1))
    return layer


def test_starting_values_and_names():
    layer = BatchlessNorm(3)
    assert {name: p.tolist() for name, p in layer.named_parameters()} == {
        "mean": [0, 0, 0],
        "log_std": [0, 0, 0],
        "weight": [1, 1, 1],
        "bias": [0, 0, 0],
    }
    assert list(layer.state_dict()) == ["mean", "log_std", "weight", "bias"]
    assert list(BatchlessNorm(3, affine=False).state_dict()) == ["mean", "log_std"]


@pytest.mark.parametrize(("shape", "channel_dim"), [((6, 4), 1), ((2, 4, 3, 3), 1), ((2, 5, 4), -1)])
def test_training_and_evaluation_are_the_same_and_nothing_depends_on_the_batch(shape, channel_dim):
    layer, x = layer_of(channel_dim=channel_dim), draw(*shape)
    y = layer.train()(x)
    assert torch.equal(layer.eval()(x), y)
    torch.testing.assert_close(torch.cat([layer.train()(row[None]) for row in x]), y, rtol=1e-14, atol=1e-14)


def test_nll_is_the_formula_on_the_moments_and_the_task_does_not_reach_the_statistics():
    layer, x = layer_of(), draw(6, 4).requires_grad_()
    layer(x).square().sum().backward()
    assert layer.mean.grad is None and layer.log_std.grad is None
    upstream = x.grad.clone()
    layer.nll().backward()
    assert torch.equal(x.grad, upstream)
    found = moments(x)
    expected = gaussian_nll(found.mean, found.var, layer.mean, layer.log_std)
    assert torch.equal(layer.nll(), expected)
    grads = torch.autograd.grad(expected, (layer.mean, layer.log_std))
    assert torch.equal(layer.mean.grad, grads[0]) and torch.equal(layer.log_std.grad, grads[1])


def test_two_calls_in_a_forward_count_by_their_elements():
    layer = layer_of()
    first, second = draw(3, 4), 5 + draw(9, 4, seed=1)
    layer(first)
    layer(second)
    both = combine_moments(moments(first), moments(second))
    torch.testing.assert_close(layer.nll(), gaussian_nll(both.mean, both.var, layer.mean, layer.log_std))
    # Read, so the next forward starts afresh; and so it does after a reset.
    layer(first)
    alone = gaussian_nll(*moments(first)[1:], layer.mean, layer.log_std)
    torch.testing.assert_close(layer.nll(), alone)
    torch.testing.assert_close(layer.nll(), alone)
    layer(second)
    layer.reset_moments()
    layer(first)
    torch.testing.assert_close(layer.nll(), alone)


def test_two_forwards_before_their_backwards():
    layer = layer_of()
    losses = []
    for seed in range(2):
        losses.append(layer(draw(3, 4, seed=seed)).sum() + layer.nll())
    sum(losses).backward()
    expected = layer_of()
    for seed in range(2):
        (expected(draw(3, 4, seed=seed)).sum() + expected.nll()).backward()
    torch.testing.assert_close(layer.mean.grad, expected.mean.grad)
    torch.testing.assert_close(layer.log_std.grad, expected.log_std.grad)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_accumulated_gradients_equal_the_batch(size):
    whole, parts = layer_of(), layer_of()
    x, dy = draw(10, 4, 2), draw(10, 4, 2, seed=1)
    ((whole(x) * dy).sum() / 10 + whole.nll()).backward()
    for xs, ds in zip(x.split(size), dy.split(size), strict=True):
        ((parts(xs) * ds).sum() / 10 + parts.nll() * len(xs) / 10).backward()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


def test_without_moments_nll_says_what_is_missing():
    layer = layer_of()
    for forward in (lambda: None, lambda: layer.eval()(draw(3, 4)), lambda: torch.no_grad()(layer.train())(draw(3, 4))):
        forward()
        assert not layer.collected
        with pytest.raises(ContractError, match=r"no moments.*forward in training mode"):
            layer.nll()
    layer(draw(3, 4))
    assert layer.collected
    layer.reset_moments()
    with pytest.raises(ContractError):
        layer.nll()


def test_an_empty_or_wholly_masked_batch_adds_nothing():
    layer = layer_of(channel_dim=-1)
    layer(draw(0, 5, 4))
    assert layer.nll().item() == 0
    layer(draw(2, 5, 4), mask=torch.zeros(2, 5, dtype=torch.bool))
    layer.nll().backward()
    assert layer.mean.grad.abs().sum() == 0 and layer.log_std.grad.abs().sum() == 0


def test_masked_positions_do_not_count():
    layer = layer_of(channel_dim=-1)
    x, mask = draw(2, 5, 4), torch.arange(5) < torch.tensor([[5], [2]])
    y = layer(x, mask)
    found = moments(x[mask])
    torch.testing.assert_close(layer.nll(), gaussian_nll(found.mean, found.var, layer.mean, layer.log_std))
    assert torch.equal(y, layer.eval()(x))


def test_recomputation_does_not_count():
    layer, x = layer_of(), draw(6, 4).requires_grad_()
    # What follows needs the layer's output, so that recomputation runs all of it.
    block = nn.Sequential(layer, nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    first = checkpoint(block, x, use_reentrant=False)
    second = checkpoint(block, 3 * x, use_reentrant=False)
    (first.sum() + second.sum()).backward()
    assert layer.moment_n.item() == 12


@pytest.mark.parametrize("affine", [True, False])
def test_from_and_to_batch_norm(affine):
    norm = nn.BatchNorm2d(4, eps=1e-3, affine=affine).double()
    with torch.no_grad():
        for seed, tensor in enumerate((norm.running_mean, *norm.parameters())):
            tensor.copy_(draw(4, seed=seed))
        norm.running_var.copy_(torch.tensor([1e-9, 0.1, 3.0, 5e4]))
    x = draw(3, 4, 2, 2)
    layer = BatchlessNorm.from_batch_norm(norm.eval())
    assert not layer.training and (layer.weight is not None) == affine
    torch.testing.assert_close(layer(x), norm(x), rtol=1e-10, atol=1e-10)
    back = layer.to_batch_norm(eps=1e-3)
    torch.testing.assert_close(back(x), norm(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(back.running_var, norm.running_var, rtol=1e-6, atol=1e-12)
    assert back.eps == 1e-3 and not back.training


def test_to_batch_norm_lowers_eps_below_the_smallest_variance():
    layer = BatchlessNorm(2).eval()
    with torch.no_grad():
        layer.log_std.copy_(torch.tensor([1e-4, 1.0]).log())
    norm, x = layer.to_batch_norm(), draw(5, 2).float() * 1e-4
    assert 0 < norm.eps < 1e-8 and bool((norm.running_var > 0).all())
    torch.testing.assert_close(norm(x), layer(x), rtol=1e-5, atol=1e-6)


def test_float32_round_trip_of_a_trained_batch_norm():
    norm = BatchNorm1d(4)
    for seed in range(20):
        norm(3 * draw(16, 4, seed=seed).float() + 2)
    x = draw(8, 4, seed=30).float()
    layer = BatchlessNorm.from_batch_norm(norm.eval())
    torch.testing.assert_close(layer(x), norm(x), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(layer.to_batch_norm()(x), norm(x), rtol=2e-6, atol=2e-6)


def test_new_statistics_keep_the_function():
    layer, x = layer_of(), draw(6, 4)
    before = layer(x)
    layer.reset_statistics(draw(4, seed=7) * 3, draw(4, seed=8).exp())
    torch.testing.assert_close(layer.mean.detach(), draw(4, seed=7) * 3)
    torch.testing.assert_close(layer.log_std.detach(), draw(4, seed=8))
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)


def test_statistics_from_data_normalise_that_data():
    layer, x = BatchlessNorm(4, dtype=torch.float64), 7 + 3 * draw(50, 4)
    x[:, 2] = 5.0
    found = combine_moments(moments(x[:20]), moments(x[20:]))
    y = layer.set_statistics(found)(x)
    varying = [0, 1, 3]
    torch.testing.assert_close(y.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(y.square().mean(0)[varying], torch.ones(3).double(), rtol=1e-10, atol=0)
    assert torch.isfinite(layer.log_std).all()
    median = x.std(0, correction=0).median()
    torch.testing.assert_close(layer.log_std[2].exp().detach(), 1e-3 * median, rtol=1e-10, atol=0)


def test_half_precision_input():
    layer = BatchlessNorm(4)
    x = (1000 + draw(64, 4)).half()
    layer.set_statistics(moments(x))
    y = layer(x)
    assert y.dtype == torch.float16 and layer.moment_mean.dtype == torch.float32
    assert abs(layer.nll().item()) < 1e-5


def test_deepcopy_and_state_dict():
    layer = layer_of()
    layer(draw(5, 4))
    other = copy.deepcopy(layer)
    assert torch.equal(other.nll(), layer.nll())
    fresh = BatchlessNorm(4, dtype=torch.float64)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(fresh(draw(5, 4)), layer(draw(5, 4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BatchlessNorm(3)(torch.zeros(2, 4)), r"3 channels in axis 1, found 4"),
        (lambda: BatchlessNorm(3)(torch.zeros(2, 3).int()), r"int32"),
        (lambda: BatchlessNorm(3, channel_dim=-1).to_batch_norm(), r"axis -1.*fold"),
        (lambda: BatchlessNorm.from_batch_norm(nn.BatchNorm1d(3, track_running_stats=False)), r"track_running_stats"),
        (lambda: BatchlessNorm(3, affine=False).reset_statistics(torch.zeros(3), torch.ones(3)), r"affine=True"),
        (lambda: BatchlessNorm(3).reset_statistics(torch.zeros(3), torch.zeros(3)), r"std must be positive.*floor_std"),
        (lambda: BatchlessNorm(3).set_statistics(moments(torch.zeros(0, 3))), r"no values"),
    ],
)
def test_errors_name_cause_and_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
