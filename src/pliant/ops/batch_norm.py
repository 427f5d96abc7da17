"""Batch normalisation as a formula in plain PyTorch: the reference that layers and kernels are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.core.errors import InputError
from pliant.ops._channels import other_axes, per_channel, require_channels, statistics_dtype, values_per_channel


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """y = weight * (x - mu) / sqrt(var + eps) + bias, per channel (Ioffe & Szegedy 2015, algorithm 1).

    training=True: mu and var are the mean and the biased variance (divisor m) of the m values that each channel has in
    `input`, and take part in the gradient; the running buffers become (1 - momentum) * old + momentum * batch, with
    the unbiased variance m / (m - 1) * var. training=False: mu and var are the running buffers (algorithm 2).

    input: (N, C) or (N, C, *positions), floating; running_mean, running_var, weight, bias: (C,) or None.
    Arguments and buffers behave as in torch.nn.functional.batch_norm, with two differences: a batch whose statistics
    are not finite (or which is empty) leaves both buffers as they were, and eps = 0 is allowed. Statistics are
    computed in float32 or wider by two passes (mean first, then squared deviations); the result has the input's dtype.

    Raises InputError for another number of channels, for integer input, for one value per channel in training, and
    for missing running statistics in evaluation.

    >>> batch_norm(torch.tensor([[1.0], [3.0]]), None, None, training=True, eps=0.0)
    tensor([[-1.],
            [ 1.]])
    """
    require_channels(input, None, owner="batch_norm")
    for channels in {t.numel() for t in (running_mean, running_var, weight, bias) if t is not None}:
        require_channels(input, channels, owner="batch_norm")
    if eps < 0:
        raise InputError(f"batch_norm got eps={eps}, which may make var + eps negative: use eps >= 0, usually 1e-5")

    wide = input.to(statistics_dtype(input))
    if training:
        mean, var = _batch_statistics(wide)
        _track(running_mean, running_var, mean, var, values_per_channel(input), momentum)
    elif running_mean is None or running_var is None:
        raise InputError(
            "batch_norm has no running statistics to normalise with: give running_mean and running_var, "
            "or training=True to use the batch's own"
        )
    else:
        mean, var = running_mean.to(wide.dtype), running_var.to(wide.dtype)

    output = (wide - per_channel(mean, wide)) / per_channel((var + eps).sqrt(), wide)
    if weight is not None:
        output = output * per_channel(weight, wide)
    if bias is not None:
        output = output + per_channel(bias, wide)
    return output.to(input.dtype)


def require_two_values(x: Tensor, owner: str) -> None:
    """Refuse a training batch with a single value per channel: its variance is 0 whatever the input."""
    if values_per_channel(x) == 1:
        raise InputError(
            f"{owner}: expected more than 1 value per channel when training, found input of shape {tuple(x.shape)}. "
            "A last, incomplete batch of one example is the usual cause: drop or merge it (drop_last=True), "
            "freeze the layer, or use a norm that needs no batch"
        )


def _batch_statistics(wide: Tensor) -> tuple[Tensor, Tensor]:
    require_two_values(wide, "batch_norm")
    axes = other_axes(wide)
    mean = wide.mean(axes)
    # Never E[x^2] - E[x]^2: it cancels for a large mean with a small variance.
    var = (wide - per_channel(mean, wide)).square().mean(axes)
    return mean, var


@torch.no_grad()
def _track(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    finite = torch.isfinite(mean).all() & torch.isfinite(var).all()
    unbiased = var * (count / max(count - 1, 1))
    for buffer, batch in ((running_mean, mean), (running_var, unbiased)):
        if buffer is not None:
            moved = (1 - momentum) * buffer + momentum * batch.to(buffer.dtype)
            buffer.copy_(torch.where(finite, moved, buffer))
