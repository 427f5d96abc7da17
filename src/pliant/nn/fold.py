"""Folding y = scale * layer(x) + shift into the layer itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def can_fold(layer: nn.Module) -> bool:
    """Whether `fold_affine` knows the layer's kind and its weight is a plain parameter."""
    return isinstance(layer, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)) and not parametrize.is_parametrized(layer)


def tied(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that a model holds in several places: what is folded into one would change the others."""
    seen: set[nn.Parameter] = set()
    found: set[nn.Parameter] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (found if parameter in seen else seen).add(parameter)
    return found


@torch.no_grad()
def fold_affine(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """W[o, ...] *= scale[o], b[o] = b[o] * scale[o] + shift[o], in place.

    scale, shift: (output channels,). A transposed convolution keeps output channels on its second axis, group by group:
    entry W[i, j] of weight (C_in, C_out / G, ...) belongs to output channel (i // (C_in / G)) * (C_out / G) + j.
    The arithmetic is done in float64 and rounded once.
    """
    weight: nn.Parameter = layer.weight  # type: ignore[assignment]
    wide, factor = weight.double(), scale.double()
    if isinstance(layer, _TRANSPOSED):
        by_group = wide.unflatten(0, (layer.groups, -1))
        per_entry = factor.view(layer.groups, 1, -1, *([1] * (wide.dim() - 2)))
        scaled = (by_group * per_entry).flatten(0, 1)
    else:
        scaled = wide * factor.view(-1, *([1] * (wide.dim() - 1)))
    weight.copy_(scaled)
    bias: nn.Parameter | None = layer.bias  # type: ignore[assignment]
    if bias is None:
        layer.bias = nn.Parameter(shift.to(weight.dtype, copy=True))
    else:
        bias.copy_(bias.double() * factor + shift.double())
