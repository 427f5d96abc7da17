"""The scale part of a weight's chain: length times direction."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pliant.core.errors import InputError
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


_OURS = re.compile(r"^(.*\.)?parametrizations\.([^.]+)\.(original|0\.scale\.g)$")
_TORCHS = re.compile(r"^(.*\.)?parametrizations\.([^.]+)\.original([01])$")
_OLD = re.compile(r"^(.*\.)?(weight[^.]*)_([gv])$")


def to_torch_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with our weight-norm names as torch.nn.utils.parametrizations.weight_norm names them.

    `parametrizations.weight.original` (v) becomes `.original1`, `parametrizations.weight.0.scale.g` (g) `.original0`;
    everything else stays. Raises InputError for tensors that are in other slots of a chain or that torch's form cannot
    hold (one length per group and output of a grouped transposed convolution).
    """
    chained = {key for key in state if ".0." in key and "parametrizations." in key and not _OURS.match(key)}
    if chained:
        raise InputError(f"{min(chained)} is no weight norm: finalize the model, torch's names hold weight norm only")
    lengths = {key.removesuffix(".0.scale.g") for key in state if key.endswith(".0.scale.g")}
    renamed = {}
    for key, value in state.items():
        found = _OURS.match(key)
        root = key.rpartition(".original")[0] or key.removesuffix(".0.scale.g")
        if found is None or root not in lengths:
            renamed[key] = value
            continue
        is_length = found[3] != "original"
        if is_length and value.dim() != state[f"{root}.original"].dim():
            raise InputError(f"{key} holds a length per group, which torch's weight_norm cannot: finalize the model")
        renamed[f"{root}.original{0 if is_length else 1}"] = value
    return renamed


def from_torch_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with torch's weight-norm names, new (`original0`, `original1`) or old (`weight_g`), as ours.

    Load it into a model to which `pliant.WeightNorm(data_init=False)` was applied. torch's default dim=0 is the wrong
    axis for transposed convolutions: such a g has another shape, and load_state_dict will say so.
    """
    renamed = {}
    for key, value in state.items():
        new, old = _TORCHS.match(key), _OLD.match(key)
        if new is not None:
            kind = "0.scale.g" if new[3] == "0" else "original"
            key = f"{new[1] or ''}parametrizations.{new[2]}.{kind}"
        elif old is not None and f"{old[1] or ''}{old[2]}_{'v' if old[3] == 'g' else 'g'}" in state:
            kind = "0.scale.g" if old[3] == "g" else "original"
            key = f"{old[1] or ''}parametrizations.{old[2]}.{kind}"
        renamed[key] = value
    return renamed
