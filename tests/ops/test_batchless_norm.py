"""Batchless norm against NumPy, written from the closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pliant.core.errors import InputError
from pliant.ops.batchless_norm import (
    Moments,
    batchless_norm,
    combine_moments,
    floor_std,
    gaussian_nll,
    moments,
    natural_gradient,
)

# Fully connected, convolution, sequence with its channels last.
CASES = [((9, 4), 1), ((3, 4, 5, 2), 1), ((3, 6, 4), -1)]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def rows_of(x: np.ndarray, channel_dim: int) -> np.ndarray:
    return np.moveaxis(x, channel_dim, -1).reshape(-1, x.shape[channel_dim])


def parameters() -> list[torch.Tensor]:
    return [torch.tensor(draw(4, seed=seed), requires_grad=True) for seed in (1, 2, 3, 4)]


@pytest.mark.parametrize(("shape", "channel_dim"), CASES)
def test_forward_and_task_gradients(shape, channel_dim):
    x, dy = draw(*shape), draw(*shape, seed=9)
    mean, log_std, weight, bias = parameters()
    inputs = torch.tensor(x, requires_grad=True)
    y = batchless_norm(inputs, mean, log_std, weight, bias, channel_dim)
    y.backward(torch.tensor(dy))

    mu, s, gamma, beta = (p.detach().numpy() for p in (mean, log_std, weight, bias))
    last = np.moveaxis(x, channel_dim, -1)
    xhat = (last - mu) / np.exp(s)
    expected = np.moveaxis(gamma * xhat + beta, -1, channel_dim)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    upstream = np.moveaxis(dy, channel_dim, -1)
    dx = np.moveaxis(gamma / np.exp(s) * upstream, -1, channel_dim)
    np.testing.assert_allclose(inputs.grad.numpy(), dx, rtol=1e-12)
    sums = tuple(range(len(shape) - 1))
    np.testing.assert_allclose(weight.grad.numpy(), (upstream * xhat).sum(sums), rtol=1e-11)
    np.testing.assert_allclose(bias.grad.numpy(), upstream.sum(sums), rtol=1e-11)
    # d task/d mu = d task/d sigma = 0
    assert mean.grad is None and log_std.grad is None


@pytest.mark.parametrize(("shape", "channel_dim"), CASES)
@pytest.mark.parametrize("gauge", [True, False])
def test_likelihood_and_its_gradients_equal_the_closed_forms(shape, channel_dim, gauge):
    x = draw(*shape) * 2 + 1
    inputs = torch.tensor(x, requires_grad=True)
    mean, log_std = parameters()[:2]
    found = moments(inputs, channel_dim)
    aux = gaussian_nll(found.mean, found.var, mean, log_std, gauge)
    aux.backward()

    mu, s = mean.detach().numpy(), log_std.detach().numpy()
    xh = (rows_of(x, channel_dim) - mu) / np.exp(s)
    m1, m2 = xh.mean(0), (xh**2).mean(0)
    expected = s.mean() + 0.5 * (xh**2).mean() - (s.mean() + 0.5 if gauge else 0)
    np.testing.assert_allclose(aux.item(), expected, rtol=1e-12)
    np.testing.assert_allclose(mean.grad.numpy(), -m1 / (np.exp(s) * 4), rtol=1e-10)
    np.testing.assert_allclose(log_std.grad.numpy(), (1 - m2) / 4, rtol=1e-10)
    # d aux/dx = 0: nothing flows upstream.
    assert inputs.grad is None and not found.mean.requires_grad and not found.var.requires_grad


def test_first_and_second_derivatives():
    x = torch.tensor(draw(5, 4), requires_grad=True)
    mean, log_std, weight, bias = parameters()

    def norm(x, weight, bias):
        return batchless_norm(x, mean, log_std, weight, bias)

    assert torch.autograd.gradcheck(norm, (x, weight, bias))
    assert torch.autograd.gradgradcheck(norm, (x, weight, bias))
    found = moments(x)

    def nll(mean, log_std):
        return gaussian_nll(found.mean, found.var, mean, log_std, gauge=False)

    assert torch.autograd.gradcheck(nll, (mean, log_std))
    assert torch.autograd.gradgradcheck(nll, (mean, log_std))


def test_gauge_reads_0_for_a_perfect_fit():
    found = moments(torch.tensor(draw(50, 4)) * 3 + 7)
    assert abs(float(gaussian_nll(found.mean, found.var, found.mean, found.var.log() / 2))) < 1e-12
    assert float(gaussian_nll(found.mean, found.var, found.mean + 1, found.var.log() / 2)) > 0.01


@pytest.mark.parametrize(("shape", "channel_dim"), CASES)
def test_moments(shape, channel_dim):
    x = draw(*shape) + 1e6
    found = moments(torch.tensor(x), channel_dim)
    rows = rows_of(x, channel_dim)
    assert found.n.item() == rows.shape[0] and found.n.dtype == torch.int64
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.var.numpy(), rows.var(0), rtol=1e-7)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_micro_batches_combine_to_the_batch(size):
    x = torch.tensor(draw(10, 4, 3)) * 5 - 40
    whole = moments(x)
    combined = Moments(torch.tensor(0), torch.zeros(4).double(), torch.zeros(4).double())
    for part in x.split(size):
        combined = combine_moments(combined, moments(part))
    assert combined.n.item() == whole.n.item() == 30
    torch.testing.assert_close(combined.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(combined.var, whole.var, rtol=1e-12, atol=0)

    # And so do the likelihood's gradients, weighted by size.
    mean, log_std = parameters()[:2]
    expected = torch.autograd.grad(gaussian_nll(whole.mean, whole.var, mean, log_std), (mean, log_std))
    for part in x.split(size):
        found = moments(part)
        (gaussian_nll(found.mean, found.var, mean, log_std) * len(part) / len(x)).backward()
    torch.testing.assert_close(mean.grad, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_std.grad, expected[1], rtol=1e-12, atol=1e-12)


def test_masked_positions_do_not_count():
    x = torch.tensor(draw(3, 6, 4))
    lengths = torch.tensor([6, 2, 3])
    mask = torch.arange(6) < lengths[:, None]
    padded = torch.where(mask[..., None], x, torch.nan)
    found = moments(padded, -1, mask)
    rows = x[mask]
    assert found.n.item() == 11
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.var, rows.var(0, correction=0), rtol=1e-12, atol=0)
    channels_second = moments(padded.movedim(-1, 1), 1, mask)
    torch.testing.assert_close(channels_second, found)


@pytest.mark.parametrize("nothing", [(torch.ones(2, 3), torch.zeros(2, dtype=torch.bool)), (torch.ones(0, 3), None)])
def test_nothing_to_count_is_0_and_combines_as_nothing(nothing):
    x, mask = nothing
    empty = moments(x, mask=mask)
    assert empty.n.item() == 0 and empty.mean.tolist() == [0, 0, 0] and empty.var.tolist() == [0, 0, 0]
    some = moments(torch.tensor(draw(5, 3), dtype=torch.float32))
    for order in ((empty, some), (some, empty)):
        combined = combine_moments(*order)
        assert combined.n.item() == 5
        assert torch.equal(combined.mean, some.mean) and torch.equal(combined.var, some.var)
    assert combine_moments(empty, empty).mean.tolist() == [0, 0, 0]


def test_natural_sgd_is_the_moving_average_at_any_scale():
    rate = 0.1
    for scale in (1e-3, 1.0, 1e3):
        mean, log_std = (torch.tensor(p.detach().numpy(), requires_grad=True) for p in parameters()[:2])
        average = mean.detach().clone()
        for seed in range(5):
            found = moments(torch.tensor(draw(6, 4, seed=seed)) * scale)
            grads = torch.autograd.grad(gaussian_nll(found.mean, found.var, mean, log_std), (mean, log_std))
            natural = natural_gradient(*grads, log_std)
            m2 = ((found.var + (found.mean - mean) ** 2) * (-2 * log_std).exp()).detach()
            torch.testing.assert_close(natural[0], (mean - found.mean).detach(), rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(natural[1], (1 - m2) / 2, rtol=1e-10, atol=1e-14)
            average = average + rate * (found.mean - average)
            with torch.no_grad():
                mean -= rate * natural[0]
            torch.testing.assert_close(mean.detach(), average, rtol=1e-11, atol=1e-14)


def test_natural_sgd_finds_the_population_statistics():
    generator = torch.Generator().manual_seed(0)
    mean, log_std = torch.zeros(2).double().requires_grad_(), torch.zeros(2).double().requires_grad_()
    true_mean, true_std = torch.tensor([3.0, -2.0]).double(), torch.tensor([0.2, 4.0]).double()
    for _ in range(2000):
        x = true_mean + true_std * torch.randn(32, 2, generator=generator, dtype=torch.float64)
        found = moments(x)
        grads = torch.autograd.grad(gaussian_nll(found.mean, found.var, mean, log_std), (mean, log_std))
        with torch.no_grad():
            for parameter, step in zip((mean, log_std), natural_gradient(*grads, log_std), strict=True):
                parameter -= 0.01 * step
    # A moving average with rate a over batches of 32 has variance sigma^2/32 * a/(2 - a); 4 deviations are allowed.
    error = 4 * (0.01 / 1.99 / 32) ** 0.5
    assert bool(((mean.detach() - true_mean).abs() < error * true_std).all())
    assert bool(((log_std.detach() - true_std.log()).abs() < error).all())


def test_logarithmic_step_is_the_moving_average_of_the_variance():
    mean, log_std = (p.detach() for p in parameters()[:2])
    found = moments(torch.tensor(draw(6, 4)) * 1e4)
    m2 = (found.var + (found.mean - mean) ** 2) * (-2 * log_std).exp()
    natural = natural_gradient(torch.zeros(4).double(), (1 - m2) / 4, log_std)[1]
    stepped = log_std + (1 - 2 * 0.1 * natural).log() / 2
    variance = (2 * log_std).exp()
    expected = variance + 0.1 * (found.var + (found.mean - mean) ** 2 - variance)
    torch.testing.assert_close((2 * stepped).exp(), expected, rtol=1e-10, atol=0)


def test_half_precision():
    x = torch.tensor(1000 + draw(64, 4), dtype=torch.float32).half()
    found = moments(x)
    assert found.mean.dtype == found.var.dtype == torch.float32
    np.testing.assert_allclose(found.mean.numpy(), x.double().numpy().mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.var.numpy(), x.double().numpy().var(0), rtol=1e-3)
    y = batchless_norm(x, found.mean, found.var.log() / 2)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float().mean(0), torch.zeros(4), rtol=0, atol=1e-3)


def test_floor_keeps_constant_channels_finite():
    assert floor_std(torch.zeros(3)).tolist() == pytest.approx([1e-6] * 3)
    floored = floor_std(torch.tensor([0.0, 2.0, 3.0]))
    assert floored.tolist() == pytest.approx([2e-3, 2.0, 3.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batchless_norm(torch.zeros(2, 3), torch.zeros(4), torch.zeros(4)), r"4 channels in axis 1, found 3"),
        (lambda: batchless_norm(torch.zeros(2, 4).int(), torch.zeros(4), torch.zeros(4)), r"int32"),
        (lambda: moments(torch.zeros(3)), r"no batch axis"),
        (lambda: moments(torch.zeros(2, 5, 3), -1, torch.ones(2, 3, dtype=torch.bool)), r"bool of shape \(2, 5\)"),
        (lambda: moments(torch.zeros(2, 5, 3), -1, torch.ones(2, 5)), r"found torch.float32"),
    ],
)
def test_errors_name_cause_and_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
