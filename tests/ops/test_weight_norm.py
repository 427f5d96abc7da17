"""Weight norm against its paper's gradients, torch's own operator, and the facts that follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pliant.core.errors import InputError
from pliant.ops.weight_norm import norm_except, weight_norm

# Linear, grouped convolution, transposed convolution (output axis 1), Conv1d, LSTM's weight_ih, whole tensor, vector.
CASES = [
    ((4, 5), 0),
    ((6, 2, 3, 3), 0),
    ((4, 6, 3, 2), 1),
    ((3, 4, 5), 0),
    ((8, 3), 0),
    ((4, 5, 2), None),
    ((4, 5), 1),
    ((5,), 0),
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng((seed, *shape)).normal(size=shape))


@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_forward_and_gradients_equal_the_paper(shape, dim):
    v = draw(*shape).requires_grad_()
    g = draw(*norm_except(v.detach(), dim).shape, seed=1).requires_grad_()
    w = weight_norm(v, g, dim)
    dw = draw(*shape, seed=2)
    w.backward(dw)

    axes = tuple(a for a in range(len(shape)) if a != dim)
    vn, gn, dwn = (t.detach().numpy() for t in (v, g, dw))
    norm = np.sqrt((vn**2).sum(axes, keepdims=True)) if axes else np.abs(vn)
    grad_g = (dwn * vn).sum(axes, keepdims=True) / norm if axes else dwn * vn / norm
    grad_v = gn / norm * dwn - gn * grad_g / norm**2 * vn
    np.testing.assert_allclose(w.detach().numpy(), gn * vn / norm, rtol=1e-12)
    np.testing.assert_allclose(g.grad.numpy(), grad_g, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(v.grad.numpy(), grad_v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "dim"), [c for c in CASES if len(c[0]) > 1 and c[1] == 0])
def test_agrees_with_torch(shape, dim):
    ours, theirs = (draw(*shape).requires_grad_() for _ in range(2))
    g = draw(*norm_except(ours.detach(), dim).shape, seed=1)
    weight_norm(ours, g, dim).square().sum().mul(0.3).backward()
    w = torch._weight_norm(theirs, g, dim)
    w.square().sum().mul(0.3).backward()
    torch.testing.assert_close(weight_norm(ours, g, dim), w, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "dim"), CASES)
def test_length_is_g_and_the_norm_of_a_weight_gives_it_back_bit_for_bit(shape, dim):
    for dtype in (torch.float64, torch.float32):
        v = draw(*shape).to(dtype)
        g = draw(*norm_except(v, dim).shape, seed=3).to(dtype)
        torch.testing.assert_close(norm_except(weight_norm(v, g, dim), dim), g.abs())
        assert torch.equal(weight_norm(v, norm_except(v, dim), dim), v)


@pytest.mark.parametrize(("shape", "dim", "groups"), [((4, 5), 0, 1), ((3, 2, 2), None, 1), ((4, 3, 2), 1, 2)])
def test_first_and_second_derivatives(shape, dim, groups):
    v = draw(*shape).requires_grad_()
    g = draw(*norm_except(v.detach(), dim, groups).shape, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(weight_norm, (v, g, dim, groups))
    assert torch.autograd.gradgradcheck(weight_norm, (v, g, dim, groups))
    assert torch.autograd.gradcheck(norm_except, (v, dim, groups))
    assert torch.autograd.gradgradcheck(norm_except, (v, dim, groups))


def test_grouped_transposed_convolution_has_one_length_per_output_channel():
    groups, v = 2, draw(6, 4, 3, 3)
    norms = norm_except(v, 1, groups)
    assert norms.shape == (groups, 1, 4, 1, 1)
    x = draw(2, 6, 5, 5, seed=1)
    g = draw(groups, 1, 4, 1, 1, seed=2)
    doubled = g.clone()
    doubled.view(-1)[5] *= 2
    before = F.conv_transpose2d(x, weight_norm(v, g, 1, groups), groups=groups)
    after = F.conv_transpose2d(x, weight_norm(v, doubled, 1, groups), groups=groups)
    # Entry o of g, read in order, belongs to output channel o.
    expected = before.clone()
    expected[:, 5] *= 2
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-12)
    # The unit's vector is what its group's inputs see.
    torch.testing.assert_close(norms.view(-1)[5], v[3:, 1].square().sum().sqrt(), rtol=1e-13, atol=0)


def test_gradient_is_orthogonal_to_v_and_sgd_grows_the_norm_by_pythagoras():
    v, g = draw(3, 7), draw(3, 1, seed=1)
    x, target = draw(16, 7, seed=2), draw(16, 3, seed=3)
    rate = 0.05
    for _ in range(5):
        v.requires_grad_()
        loss = (x @ weight_norm(v, g).T - target).square().mean()
        (grad,) = torch.autograd.grad(loss, v)
        assert float((grad * v).sum(1).detach().abs().max()) < 1e-12
        v = v.detach()
        stepped = v - rate * grad
        expected = v.square().sum(1) + rate**2 * grad.square().sum(1)
        torch.testing.assert_close(stepped.square().sum(1), expected, rtol=1e-12, atol=0)
        v = stepped


@pytest.mark.parametrize("a", [1e-3, 7.0])
def test_only_the_direction_of_v_matters(a):
    v, larger = draw(4, 5).requires_grad_(), (a * draw(4, 5)).requires_grad_()
    g, dw = draw(4, 1, seed=1), draw(4, 5, seed=2)
    torch.testing.assert_close(weight_norm(v, g), weight_norm(larger, g), rtol=1e-12, atol=1e-12)
    weight_norm(v, g).backward(dw)
    weight_norm(larger, g).backward(dw)
    torch.testing.assert_close(larger.grad, v.grad / a, rtol=1e-11, atol=1e-12)


def test_exponential_form():
    v, s, dw = draw(4, 5), draw(4, 1, seed=1).requires_grad_(), draw(4, 5, seed=2)
    g = s.detach().exp().requires_grad_()
    weight_norm(v, s.exp()).backward(dw)
    weight_norm(v, g).backward(dw)
    torch.testing.assert_close(s.grad, g.detach() * g.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_zero_row_is_finite_forward_and_backward(dtype):
    v = torch.zeros(2, 3, dtype=dtype)
    v[1] = 1
    v.requires_grad_()
    g = torch.full((2, 1), 2.0, dtype=dtype, requires_grad=True)
    w = weight_norm(v, g)
    w.sum().backward()
    assert w[0].tolist() == [0, 0, 0]
    # As if ||v|| were 1: the row can leave 0, and not by a leap.
    assert v.grad[0].tolist() == [2, 2, 2] and g.grad[0].item() == 0
    assert norm_except(v).detach()[0].item() == 0
    (grad,) = torch.autograd.grad(norm_except(v).sum(), v)
    assert grad[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_norms_are_float32(dtype):
    # Squares of 300 overflow float16; their sum of 1000 loses everything in bfloat16.
    v = torch.full((2, 1000), 300.0, dtype=dtype)
    norms = norm_except(v)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, torch.full((2, 1), 300 * 1000**0.5), rtol=1e-6, atol=0)
    w = weight_norm(v, torch.ones(2, 1, dtype=dtype))
    assert w.dtype == dtype
    torch.testing.assert_close(w.float(), torch.full((2, 1000), 1000**-0.5), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 1), -1), r"dim=-1 is not an axis.*None for one norm"),
        ((torch.ones(2, 3), torch.ones(2, 1), 2), r"use 0 to 1"),
        ((torch.ones(2, 3), torch.ones(3)), r"must be \(2, 1\)"),
        ((torch.ones(4, 3, 2), torch.ones(4, 1, 1), 0, 2), r"transposed convolutions.*groups=1, dim=0"),
        ((torch.ones(5, 3, 2), torch.ones(1, 3, 1), 1, 2), r"multiple of groups"),
    ],
)
def test_errors_name_cause_and_remedy(arguments, message):
    with pytest.raises(InputError, match=message):
        weight_norm(*arguments)
