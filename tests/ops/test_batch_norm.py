"""Batch norm against NumPy, written from the paper's equations, and against the facts that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pliant.core.errors import InputError
from pliant.ops.batch_norm import batch_norm

SHAPES = [(7, 3), (4, 3, 5), (3, 3, 4, 2), (2, 3, 2, 3, 2)]
EPS = 1e-3


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def as_rows(x: np.ndarray) -> np.ndarray:
    """(m, C): the m values of every channel."""
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def as_input(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def reference(x, gamma, beta, dy, eps):
    """Algorithm 1 and the backward of section 3, not simplified."""
    rows, upstream = as_rows(x), as_rows(dy)
    m = rows.shape[0]
    mu = rows.sum(0) / m
    var = ((rows - mu) ** 2).sum(0) / m
    xhat = (rows - mu) / np.sqrt(var + eps)
    y = gamma * xhat + beta
    dxhat = upstream * gamma
    dvar = (dxhat * (rows - mu)).sum(0) * (-1 / 2) * (var + eps) ** (-3 / 2)
    dmu = (dxhat * (-1 / np.sqrt(var + eps))).sum(0) + dvar * (-2 * (rows - mu)).sum(0) / m
    dx = dxhat / np.sqrt(var + eps) + dvar * 2 * (rows - mu) / m + dmu / m
    dgamma, dbeta = (upstream * xhat).sum(0), upstream.sum(0)
    return as_input(y, x.shape), as_input(dx, x.shape), dgamma, dbeta


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_equal_the_unsimplified_equations(shape):
    x, dy = 2 * draw(*shape) + 5, draw(*shape, seed=1)
    gamma, beta = draw(3, seed=2), draw(3, seed=3)
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    y = batch_norm(inputs[0], None, None, inputs[1], inputs[2], training=True, eps=EPS)
    y.backward(torch.tensor(dy))
    for ours, theirs in zip((y.detach(), *(t.grad for t in inputs)), reference(x, gamma, beta, dy, EPS), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("training", [True, False])
def test_first_and_second_derivatives(shape, training):
    x, gamma, beta = (torch.tensor(draw(*s), requires_grad=True) for s in (shape, (3,), (3,)))
    mean, var = torch.tensor(draw(3)), torch.tensor(draw(3)) ** 2

    def f(x, gamma, beta):
        return batch_norm(x, mean.clone(), var.clone(), gamma, beta, training=training, eps=EPS)

    assert torch.autograd.gradcheck(f, (x, gamma, beta))
    assert torch.autograd.gradgradcheck(f, (x, gamma, beta))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)])
def test_agrees_with_torch_buffers_included(shape, training, affine):
    x = torch.tensor(draw(*shape))
    weight = torch.tensor(draw(3, seed=1)) if affine[0] else None
    bias = torch.tensor(draw(3, seed=2)) if affine[1] else None
    ours = [torch.tensor(draw(3, seed=4)), torch.tensor(draw(3, seed=5)) ** 2]
    theirs = [b.clone() for b in ours]
    y = batch_norm(x, *ours, weight, bias, training, 0.3, EPS)
    torch.testing.assert_close(y, F.batch_norm(x, *theirs, weight, bias, training, 0.3, EPS), rtol=1e-12, atol=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


def test_normalised_values_have_mean_0_and_mean_square_var_over_var_plus_eps():
    x = torch.tensor(draw(6, 3, 4, 4)) * 0.1 + 7
    xhat = batch_norm(x, None, None, training=True, eps=EPS)
    var = x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(xhat.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(xhat.square().mean((0, 2, 3)), var / (var + EPS), rtol=1e-10, atol=0)


def test_input_gradient_sums_to_0_and_is_nearly_orthogonal_to_xhat():
    x = torch.tensor(draw(5, 3, 4), requires_grad=True)
    gamma = torch.tensor(draw(3, seed=1))
    xhat = batch_norm(x, None, None, training=True, eps=EPS)
    dy = torch.tensor(draw(5, 3, 4, seed=2))
    (gamma[:, None] * xhat).backward(dy)
    var = x.detach().var((0, 2), correction=0)
    torch.testing.assert_close(x.grad.sum((0, 2)), torch.zeros(3).double(), rtol=0, atol=1e-12)
    expected = gamma * EPS / (var + EPS) ** 1.5 * (dy * xhat.detach()).sum((0, 2))
    torch.testing.assert_close((x.grad * xhat.detach()).sum((0, 2)), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("a", [0.1, 3.0, 250.0])
def test_scale_of_the_weight_in_front_does_not_matter(a):
    weight = torch.tensor(draw(4, 5), requires_grad=True)
    u, dy = torch.tensor(draw(16, 5, seed=1)), torch.tensor(draw(16, 4, seed=2))
    y = batch_norm(u @ weight.T, None, None, training=True, eps=0.0)
    scaled = batch_norm(u @ (a * weight).T, None, None, training=True, eps=0.0)
    torch.testing.assert_close(y, scaled, rtol=1e-9, atol=1e-9)
    y.backward(dy)
    # <W, dL/dW> = 0 per output channel: the loss does not change along W.
    assert float((weight.grad * weight).sum(1).detach().abs().max()) < 1e-10
    # d/d(aW) = (1/a) d/dW
    larger = (a * weight.detach()).requires_grad_()
    batch_norm(u @ larger.T, None, None, training=True, eps=0.0).backward(dy)
    torch.testing.assert_close(larger.grad, weight.grad / a, rtol=1e-8, atol=1e-12)


def test_running_statistics_after_three_batches_are_the_moving_average_of_unbiased_variances():
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    expected_mean, expected_var = np.zeros(3), np.ones(3)
    for step in range(3):
        x = draw(4, 3, 2, seed=step)
        batch_norm(torch.tensor(x), mean, var, training=True, momentum=0.1)
        expected_mean = 0.9 * expected_mean + 0.1 * as_rows(x).mean(0)
        expected_var = 0.9 * expected_var + 0.1 * as_rows(x).var(0, ddof=1)
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-12)
    np.testing.assert_allclose(var.numpy(), expected_var, rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_batch_that_is_not_finite_leaves_both_buffers(bad):
    mean, var = torch.ones(3), torch.full((3,), 2.0)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    x[1, 2] = bad
    batch_norm(x, mean, var, training=True)
    assert mean.tolist() == [1, 1, 1] and var.tolist() == [2, 2, 2]


def test_an_overflowing_variance_counts_as_not_finite():
    mean, var = torch.zeros(1), torch.ones(1)
    batch_norm(torch.tensor([[1e30], [-1e30]]), mean, var, training=True)
    assert mean.tolist() == [0] and var.tolist() == [1]


def test_empty_batch_gives_empty_output_and_leaves_buffers():
    mean, var = torch.zeros(3), torch.ones(3)
    assert batch_norm(torch.empty(0, 3, 4), mean, var, training=True).shape == (0, 3, 4)
    assert mean.tolist() == [0, 0, 0] and var.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_its_statistics_in_float32(dtype):
    x = (200 + draw(64, 2, 8, 8)).astype(np.float32)
    half = torch.tensor(x).to(dtype)
    mean, var = torch.zeros(2), torch.ones(2)
    y = batch_norm(half, mean, var, training=True, momentum=1.0)
    exact = as_rows(half.double().numpy())
    assert y.dtype == dtype and mean.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var.numpy(), exact.var(0, ddof=1), rtol=1e-4)


def test_large_mean_with_small_variance_does_not_cancel():
    x = 1e4 + draw(128, 1)
    y = batch_norm(torch.tensor(x, dtype=torch.float32), None, None, training=True)
    exact = torch.tensor(x, dtype=torch.float32).double()
    expected = (exact - exact.mean()) / (exact.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused_with_the_cure(shape):
    with pytest.raises(InputError, match=r"more than 1 value per channel.*drop_last"):
        batch_norm(torch.zeros(shape), None, None, training=True)
    assert batch_norm(torch.zeros(shape), torch.zeros(3), torch.ones(3)).shape == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, dtype=torch.int64), None, None), r"int64.*\.float\(\)"),
        ((torch.zeros(2, 4), torch.zeros(3), torch.ones(3)), r"3 channels in axis 1, found 4"),
        ((torch.zeros(2, 3), torch.zeros(3), torch.ones(3), torch.ones(1)), r"1 channels in axis 1, found 3"),
        ((torch.zeros(3), torch.zeros(3), torch.ones(3)), r"no batch axis"),
        ((torch.zeros(2, 3), None, None), r"no running statistics.*training=True"),
        ((torch.zeros(2, 3), torch.zeros(3), torch.ones(3), None, None, False, 0.1, -1.0), r"eps=-1"),
    ],
)
def test_errors_name_cause_and_remedy(arguments, message):
    with pytest.raises(InputError, match=message):
        batch_norm(*arguments)
