"""Batchless normalisation: mean and deviation are parameters, fitted by likelihood (Berger & Uc Cetina 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pliant.core.errors import InputError
from pliant.ops._channels import other_axes, per_channel, require_channels, statistics_dtype, values_per_channel


class Moments(NamedTuple):
    """What a likelihood needs to know of a batch: `n` values per channel, their mean and biased variance.

    n: int64 scalar tensor; mean, var: (C,), float32 or wider, detached.
    """

    n: Tensor
    mean: Tensor
    var: Tensor


def batchless_norm(
    x: Tensor,
    mean: Tensor,
    log_std: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    channel_dim: int = 1,
) -> Tensor:
    """y = weight * (x - sg(mean)) * sg(exp(-log_std)) + bias, per channel; sg stops the gradient.

    The same in training and evaluation: nothing depends on the batch, and the gradient to x is weight / std * dy.
    `mean` and `log_std` get theirs from `gaussian_nll` only.

    x: any floating shape with at least 2 axes; mean, log_std, weight, bias: (C,), C the size of axis `channel_dim`
    (1 for (N, C, *positions), -1 for sequences (N, T, C)). Computed in float32 or wider, returned in x's dtype.
    """
    require_channels(x, mean.numel(), channel_dim, owner="batchless_norm")
    output = (x - per_channel(mean.detach(), x, channel_dim)) * per_channel((-log_std.detach()).exp(), x, channel_dim)
    if weight is not None:
        output = output * per_channel(weight, x, channel_dim)
    if bias is not None:
        output = output + per_channel(bias, x, channel_dim)
    return output.to(x.dtype)


@torch.no_grad()
def moments(x: Tensor, channel_dim: int = 1, mask: Tensor | None = None) -> Moments:
    """n, mean and biased variance of each channel of x, in two passes (mean first), in float32 or wider.

    x: any floating shape with at least 2 axes. mask: bool, x's shape without the channel axis (for example (N, T) for
    a sequence (N, T, C)); positions where it is False do not count. With nothing to count, n, mean and var are 0.

    >>> moments(torch.tensor([[1.0], [3.0]]))
    Moments(n=tensor(2), mean=tensor([2.]), var=tensor([1.]))
    """
    require_channels(x, None, channel_dim, owner="moments")
    wide, axes = x.to(statistics_dtype(x)), other_axes(x, channel_dim)
    if mask is None:
        n = torch.full((), values_per_channel(x, channel_dim), dtype=torch.int64, device=x.device)
        if x.numel():
            var, mean = torch.var_mean(wide, axes, correction=0)
            return Moments(n, mean, var)
    else:
        expected = tuple(x.shape[axis] for axis in axes)
        if mask.dtype != torch.bool or mask.shape != expected:
            raise InputError(
                f"the mask must be bool of shape {expected}, the input's shape without its channel axis; "
                f"found {mask.dtype} of shape {tuple(mask.shape)}"
            )
        kept = mask.unsqueeze(channel_dim % x.dim())
        n = mask.sum()
        # A padded position may hold anything, NaN included, and NaN * 0 is NaN.
        wide = torch.where(kept, wide, 0.0)
    # With a mask the mean is over the kept positions only.
    divisor = n.clamp(min=1)
    mean = wide.sum(axes) / divisor
    deviation = wide - per_channel(mean, x, channel_dim)
    if mask is not None:
        deviation = torch.where(kept, deviation, 0.0)
    return Moments(n, mean, deviation.square().sum(axes) / divisor)


@torch.no_grad()
def combine_moments(first: Moments, second: Moments) -> Moments:
    """The moments of both batches together (Chan, Golub & LeVeque 1979).

    With n = n1 + n2 and delta = mean2 - mean1: mean = mean1 + delta n2/n and
    var = (n1 var1 + n2 var2)/n + delta^2 n1 n2/n^2.

    >>> combine_moments(moments(torch.tensor([[1.0]])), moments(torch.tensor([[3.0]])))
    Moments(n=tensor(2), mean=tensor([2.]), var=tensor([1.]))
    """
    n = first.n + second.n
    total = n.clamp(min=1).to(first.mean.dtype)
    share1, share2 = first.n / total, second.n / total
    delta = second.mean - first.mean
    return Moments(
        n,
        first.mean + delta * share2,
        first.var * share1 + second.var * share2 + delta.square() * share1 * share2,
    )


def gaussian_nll(mean: Tensor, var: Tensor, mean_param: Tensor, log_std: Tensor, gauge: bool = True) -> Tensor:
    """aux = mean_c(s) + 1/2 mean_c((var + (mean - mu)^2) / sigma^2) [- sg(mean_c(s)) - 1/2], with sigma = exp(s).

    The mean negative log-likelihood of a batch under N(mu, sigma^2), without its constant log(2 pi) / 2, from the
    batch's moments: mean_c averages over channels, and every channel has equally many values. The gauge (the bracket)
    subtracts the value of a right model, so that a perfect fit reads 0; it changes no gradient.

    mean, var: of the batch, (C,), used detached. mean_param (mu), log_std (s): (C,). Returns a scalar whose gradients
    are d/dmu_c = -m1_c / (sigma_c C) and d/ds_c = (1 - m2_c) / C, with m1 and m2 the mean and the mean square of
    (x - mu) / sigma.

    >>> zero = torch.zeros(3)
    >>> gaussian_nll(zero, torch.ones(3), zero, zero)
    tensor(0.)
    """
    spread = var.detach() + (mean.detach() - mean_param).square()
    nll = torch.addcmul(log_std, spread, (-2.0 * log_std).exp(), value=0.5).mean()
    return nll - log_std.detach().mean() - 0.5 if gauge else nll


@torch.no_grad()
def natural_gradient(grad_mean: Tensor, grad_log_std: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """(C sigma^2 dmu, C/2 ds): the likelihood's gradients times C and the inverse Fisher information of (mu, s).

    From the gradients of `gaussian_nll` this makes -(xbar - mu) and (1 - m2)/2. SGD with rate a on the first is then
    the moving average mu <- mu + a (xbar - mu), whatever the activation's scale, and stable for 0 < a < 2.
    On the second it is one to first order only: with statistics far off (m2 >> 1) a step (m2 - 1) a/2 in the logarithm
    overshoots, and comes back at a/2 a step. Start from data, or step by s <- s + log(1 - 2 a natural_s)/2, 0 < a < 1,
    which is exactly sigma^2 <- sigma^2 + a (var + (xbar - mu)^2 - sigma^2).

    grad_mean, grad_log_std, log_std: (C,). Returns both natural gradients.
    """
    channels = log_std.numel()
    return grad_mean * (channels * (2.0 * log_std).exp()), grad_log_std * (channels / 2)


def floor_std(std: Tensor) -> Tensor:
    """max(std, 1e-3 * median(std), 1e-6): keeps the logarithm finite for channels that are constant on the data.

    >>> floor_std(torch.tensor([0.0, 1000.0, 3000.0]))
    tensor([1.0000e+00, 1.0000e+03, 3.0000e+03])
    """
    return std.clamp(min=max(1e-3 * std.median().item(), 1e-6))
