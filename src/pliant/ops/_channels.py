"""What per-channel formulae share: the axes averaged over, how a channel vector broadcasts, which input is fit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pliant.core.errors import InputError


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype statistics are computed in: float32, or wider where `x` is."""
    return torch.promote_types(x.dtype, torch.float32)


def other_axes(x: Tensor, channel_dim: int = 1) -> tuple[int, ...]:
    """Every axis of `x` but the channel axis; the m values of a channel lie along them."""
    channel = channel_dim % x.dim()
    return tuple(axis for axis in range(x.dim()) if axis != channel)


def per_channel(vector: Tensor, x: Tensor, channel_dim: int = 1) -> Tensor:
    """A view of a vector of C entries that broadcasts along the channel axis of `x`."""
    shape = [1] * x.dim()
    shape[channel_dim % x.dim()] = vector.numel()
    return vector.reshape(shape)


def values_per_channel(x: Tensor, channel_dim: int = 1) -> int:
    """m, the number of values each channel's statistics are taken over."""
    return math.prod([x.shape[axis] for axis in other_axes(x, channel_dim)])


def require_channels(x: Tensor, channels: int | None, channel_dim: int = 1, *, owner: str) -> None:
    """Refuse integer input, input without a channel axis, and other than `channels` channels (None: any number).

    `owner` opens the message.
    """
    if not x.is_floating_point():
        raise InputError(
            f"{owner} got an input of dtype {x.dtype}, but statistics need real numbers: "
            "convert it first, for example x.float() / 255 for pictures"
        )
    if x.dim() < 2 or not -x.dim() <= channel_dim < x.dim():
        raise InputError(
            f"{owner} got an input of shape {tuple(x.shape)}, which has no batch axis beside a channel axis "
            f"{channel_dim}: give it as (N, C) or (N, C, *positions), with N = 1 for a single example"
        )
    if channels is not None and x.shape[channel_dim] != channels:
        raise InputError(
            f"{owner} expects {channels} channels in axis {channel_dim}, found {x.shape[channel_dim]} "
            f"in an input of shape {tuple(x.shape)}: build it with the channel count of the layer before it, "
            "or move the channels to that axis"
        )
