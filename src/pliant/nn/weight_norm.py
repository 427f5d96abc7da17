"""The scale part of a weight's chain: length times direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant.ops.weight_norm import norm_except, weight_norm


class WeightScale(nn.Module):
    """w = g * v / ||v||, one trained length g per output unit (Salimans & Kingma 2016, eq. 2) of the input v.

    weight: the present weight; g starts as its norms, so nothing changes. dim: the output axis; groups: see
    `pliant.functional.weight_norm`.
    """

    def __init__(self, weight: Tensor, dim: int = 0, groups: int = 1) -> None:
        super().__init__()
        self.dim, self.groups = dim, groups
        self.g = nn.Parameter(norm_except(weight.detach(), dim, groups).to(weight.dtype))

    def forward(self, v: Tensor) -> Tensor:
        return weight_norm(v, self.g, self.dim, self.groups)

    @torch.no_grad()
    def multiply(self, factor: Tensor) -> None:
        """g *= factor, factor (output units,)."""
        self.g.mul_(factor.view_as(self.g))

    def extra_repr(self) -> str:
        return f"units={self.g.numel()}, dim={self.dim}" + (f", groups={self.groups}" if self.groups != 1 else "")
