"""The constant, and the exact effect of a smaller batch-norm scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pliant.ops.batch_norm import batch_norm
from pliant.ops.bn_init import SIGMA_ACT


def test_sigma_act_is_the_deviation_of_a_rectified_normal():
    assert round(SIGMA_ACT, 4) == 0.5838
    z = np.linspace(-12, 12, 2_000_001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    relu = np.maximum(z, 0)
    mean = (relu * density).sum()
    assert np.isclose(SIGMA_ACT, np.sqrt(((relu - mean) ** 2 * density).sum()), rtol=1e-9)


def chain(scale: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Conv, BN, ReLU, conv, BN, ReLU, mean over positions, linear; the logits and gradients for one output gradient."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "conv1": torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64),
        "conv2": torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.float64),
        "linear": torch.randn(6, 5, generator=generator, dtype=torch.float64),
        "gamma1": scale * torch.ones(4, dtype=torch.float64),
        "beta1": torch.zeros(4, dtype=torch.float64),
        "gamma2": scale * torch.ones(5, dtype=torch.float64),
        "beta2": torch.zeros(5, dtype=torch.float64),
    }
    t = {name: value.requires_grad_() for name, value in tensors.items()}
    x = torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64)
    for layer in ("1", "2"):
        x = F.conv2d(x, t[f"conv{layer}"])
        x = F.relu(batch_norm(x, None, None, t[f"gamma{layer}"], t[f"beta{layer}"], training=True, eps=1e-12))
    logits = x.mean((2, 3)) @ t["linear"].T
    logits.backward(torch.randn(8, 6, generator=generator, dtype=torch.float64))
    return logits.detach(), {name: value.grad for name, value in t.items()}


@pytest.mark.parametrize("a", [0.5, 0.1])
def test_scaling_all_gammas_by_a(a):
    logits, grads = chain(1.0)
    scaled_logits, scaled = chain(a)
    torch.testing.assert_close(scaled_logits, a * logits, rtol=1e-6, atol=1e-9)
    for name in ("conv1", "conv2", "linear"):
        torch.testing.assert_close(scaled[name], a * grads[name], rtol=1e-6, atol=1e-9)
    for name in ("gamma1", "gamma2", "beta1", "beta2"):
        torch.testing.assert_close(scaled[name], grads[name], rtol=1e-6, atol=1e-9)


def test_an_inner_batch_norm_is_scale_invariant():
    # beta is 0 here, so sum(gamma dgamma) + sum(beta dbeta) is its first term.
    _, grads = chain(1.0)
    assert abs(float(grads["gamma1"].sum())) < 1e-9
    assert abs(float(grads["gamma2"].sum())) > 1e-3
