"""Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167), attached to the layers of any model."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import nn

from pliant.core.context import Context, run
from pliant.core.edits import DropBias, Edit, Edits, Skip
from pliant.core.errors import SettingError
from pliant.core.method import Meta, Method, Phase, Rule
from pliant.core.sites import Attach, Position, Site, attached, detach, find_sites
from pliant.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, recalibrate
from pliant.nn.fold import can_fold, fold_affine, tied

_LAYERS = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNorm(Method):
    """y = weight * (x - mu) / sqrt(var + eps) + bias per channel, put between every weighted layer and its activation.

    where: patterns of the layers to normalise (default: all that feed an activation and are not normalised yet).
    position: "before_activation", as in the paper, or "after_activation". eps: 1e-5; momentum: weight of the new value
    in the running statistics, 0.1. drop_bias: remove the bias in front, which the mean subtraction cancels.
    recalibrate: replace the running statistics by population statistics (algorithm 2) before evaluation.
    """

    where: tuple[str, ...] | None = None
    position: Position = "before_activation"
    eps: float = 1e-5
    momentum: float = 0.1
    drop_bias: bool = True
    recalibrate: bool = True

    meta: ClassVar[Meta] = Meta(
        title="Batch normalisation",
        paper="Ioffe & Szegedy 2015, arXiv 1502.03167",
        summary="normalise each channel over the batch, before the activation",
        phase=Phase.SITE,
        tags=frozenset({"norm", "batch_mixing", "batch_norm"}),
        refuses={"batchless_norm": "two normalisations on one site; give each its own where=[...]"},
        by_site=frozenset({"batchless_norm"}),
        notes={"weight_norm": "weight norm's length g is redundant in front of a batch norm"},
        layer="pliant.nn.BatchNorm1d / 2d / 3d",
        function="changes",
        processes="needs_sync",
        accumulation="per_batch",
        example="mlp",
    )

    def validate(self) -> None:
        if not self.eps > 0:
            raise SettingError(f"BatchNorm.eps={self.eps}; expected a number above 0, usually 1e-5")
        if not 0 < self.momentum <= 1:
            raise SettingError(
                f"BatchNorm.momentum={self.momentum}; expected 0 < momentum <= 1, the weight of the new value "
                "(1 - decay in Keras's and TensorFlow's terms)"
            )

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        sites, skipped = find_sites(model, ctx, self.where, self.position)
        edits = Edits(skipped=skipped)
        for site in sites:
            found = self._edits(model, site)
            if isinstance(found, Skip):
                edits.skipped.append(found)
            else:
                edits.changes += found
        return edits.require(
            "layer that feeds an activation", "name the layers with where=[...], or leave batch norm out for this model"
        )

    def _edits(self, model: nn.Module, site: Site) -> list[Edit] | Skip:
        layer = _LAYERS.get(len(site.shape))
        if layer is None or site.channel_dim != 1:
            return Skip(
                site.path, f"its output {site.shape} is not (batch, channels, ...): batch norm needs channels second"
            )
        attach = Attach(
            path=site.path,
            name="norm",
            like=site.source,
            make=lambda: layer(site.features, eps=self.eps, momentum=self.momentum),
            detail=f"{layer.__name__}({site.features}) {'before' if self.position == 'before_activation' else 'after'} "
            f"{site.activation}",
        )
        source = model.get_submodule(site.source)
        if not self.drop_bias or site.path != site.source or source.bias is None:
            return [attach]
        return [attach, DropBias(path=site.source, detail="bias removed: the mean subtraction cancels it")]

    def calibrate(self, model: nn.Module, ctx: Context, when: Literal["start", "end"]) -> None:
        if when == "end" and self.recalibrate and ctx.batches is not None:
            recalibrate(model, ctx.calibration(), forward=run)

    def groups(self, model: nn.Module) -> dict[nn.Parameter, Rule]:
        # Decay on gamma and beta pulls the function towards a constant; card 01 and common practice leave them out.
        return {p: Rule(decay=False) for _, _, _, norm in attached(model, _KINDS) for p in norm.parameters()}

    def fold(self, model: nn.Module, ctx: Context) -> None:
        shared = tied(model)
        for path, layer, name, norm in attached(model, _KINDS):
            alone = shared.isdisjoint(layer.parameters(recurse=False))
            if alone and can_fold(layer) and path not in ctx.claims:
                scale, shift = affine(norm)
                fold_affine(layer, scale, shift)
                detach(layer, name)


_KINDS = nn.modules.batchnorm._BatchNorm


def affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluation as y = scale * x + shift: scale = weight / sqrt(var + eps), shift = bias - scale * mean (float64)."""
    var, mean = norm.running_var.double(), norm.running_mean.double()  # type: ignore[union-attr,operator]
    scale = norm.weight.double() / torch.sqrt(var + norm.eps)  # type: ignore[union-attr,operator]
    return scale, norm.bias.double() - scale * mean  # type: ignore[union-attr,operator]
