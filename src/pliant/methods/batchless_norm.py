"""Batchless normalisation (Berger & Uc Cetina 2022, arXiv 2212.14729), attached to the layers of any model."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pliant.core.context import Context, joined, modes_kept, run
from pliant.core.edits import Edits
from pliant.core.errors import ContractError, SettingError
from pliant.core.method import Meta, Method, Phase, Rule
from pliant.core.sites import Attach, Position, attached, detach, find_sites
from pliant.nn import BatchlessNorm as Layer
from pliant.nn.fold import can_fold, fold_affine, tied
from pliant.ops.batchless_norm import natural_gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchlessNorm(Method):
    """y = weight * (x - mean) / std + bias, with mean and std learned by the likelihood of x, not taken from a batch.

    where: patterns of the weighted layers (default: all that feed an activation and are not normalised yet).
    position: "after_activation" (better each time it was measured, card 14) or "before_activation".
    data_init: start from the mean and std of calibration data, layer by layer; otherwise from 0 and 1, which leaves the
    model's function as it was. stat_grad: "likelihood" is the paper's gradient and needs an Adam-like optimizer;
    "natural" preconditions it by the Fisher information, so that SGD makes mean and std moving averages with rate
    `stat_rate`; "auto" takes natural under torch.optim.SGD, likelihood otherwise.
    """

    where: tuple[str, ...] | None = None
    position: Position = "after_activation"
    data_init: bool = True
    stat_grad: Literal["auto", "likelihood", "natural"] = "auto"
    stat_rate: float = 0.1

    meta: ClassVar[Meta] = Meta(
        title="Batchless normalisation",
        paper="Berger & Uc Cetina 2022, arXiv 2212.14729",
        summary="normalise with learned statistics: any batch size, no train/eval gap",
        phase=Phase.SITE,
        tags=frozenset({"norm", "batchless_norm"}),
        refuses={
            "batch_norm": "two normalisations on one site; give each its own where=[...]",
            "batchless_norm": "one of them trains the statistics of all batchless norms; name all places in its where",
        },
        by_site=frozenset({"batch_norm"}),
        layer="pliant.nn.BatchlessNorm",
        function="changes",
        preserving={"data_init": False},
        accumulation="exact",
        processes="exact",
        example="mlp",
    )

    def validate(self) -> None:
        if self.stat_grad not in ("auto", "likelihood", "natural"):
            raise SettingError(f"BatchlessNorm.stat_grad={self.stat_grad!r}; choose auto, likelihood or natural")
        if not 0 < self.stat_rate < 1:
            raise SettingError(
                f"BatchlessNorm.stat_rate={self.stat_rate}; it weighs the new batch in moving averages: 0 < rate < 1"
            )

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        sites, skipped = find_sites(model, ctx, self.where, self.position)
        side = "before" if self.position == "before_activation" else "after"
        changes = [
            Attach(
                path=site.path,
                name="norm",
                like=site.source,
                make=lambda site=site: Layer(site.features, channel_dim=1 if site.channel_dim == 1 else -1),
                detail=f"BatchlessNorm({site.features}) {side} {site.activation}",
                tensors=(f"{site.path}.norm.mean", f"{site.path}.norm.log_std"),
            )
            for site in sites
        ]
        return Edits(changes=list(changes), skipped=skipped).require(
            "layer that feeds an activation module",
            'name the layers with where=[...], or use position="before_activation" when activations are function calls',
        )

    def calibrate(self, model: nn.Module, ctx: Context, when: Literal["start", "end"]) -> None:
        if when == "start" and self.data_init:
            batch = joined(ctx.calibration())
            if batch is None:
                raise SettingError(
                    "BatchlessNorm's data_init needs data: give apply a sample or batches, or set data_init=False"
                )
            _initialise(model, batch)

    def groups(self, model: nn.Module) -> dict[nn.Parameter, Rule]:
        rules = {p: Rule(decay=False) for layer in layers(model) for p in layer.parameters()}
        rules.update({p: Rule(decay=False, owned=True) for layer in layers(model) for p in (layer.mean, layer.log_std)})
        return rules

    def terms(self, model: nn.Module) -> dict[str, Tensor]:
        # Minus its own value, as in the official code: the gradient is the likelihood's, logged losses stay the task's.
        reached = [layer.nll() for layer in layers(model) if layer.collected]
        if not reached:
            if not int(model.pliant_step):  # type: ignore[arg-type]
                raise ContractError(
                    "no batchless norm has seen data since the last step: take the loss after a forward in train mode"
                )
            # Every branch that holds one was skipped in this step.
            return {}
        total = torch.stack(reached).sum()
        return {"likelihood": total - total.detach()}

    def on_forward(self, model: nn.Module, ctx: Context) -> None:
        for layer in layers(model):
            layer.reset_moments()

    def before_step(self, model: nn.Module, ctx: Context) -> None:
        natural = self.stat_grad == "natural" or (
            self.stat_grad == "auto" and isinstance(ctx.optimizer, torch.optim.SGD)
        )
        if not natural:
            return
        for layer in layers(model):
            mean, log_std = (ctx.gradient(p) for p in (layer.mean, layer.log_std))
            if mean is None or log_std is None:
                continue
            # The rate is the averages' own: it does not follow the schedule (card 14, section 5).
            to_mean, to_log_std = natural_gradient(mean, log_std, layer.log_std)
            layer.mean.sub_(to_mean, alpha=self.stat_rate)
            # In log units a plain step is a moving average to first order only and overshoots after large shifts. This
            # is the moving average of the variance exactly: sigma^2 <- (1 - a) sigma^2 + a E[(x - mu)^2].
            # The least factor is 1 - a; sums of unweighted micro-batches would go below it, and below 0.
            change = (-2.0 * self.stat_rate * to_log_std).clamp_min(-self.stat_rate)
            layer.log_std.add_(torch.log1p(change), alpha=0.5)
            layer.mean.grad = layer.log_std.grad = None

    def fold(self, model: nn.Module, ctx: Context) -> None:
        shared = tied(model)
        for path, layer, name, norm in attached(model, Layer):
            alone = shared.isdisjoint(layer.parameters(recurse=False))
            if alone and can_fold(layer) and path not in ctx.claims:
                scale = norm.weight.double() * torch.exp(-norm.log_std.double())
                fold_affine(layer, scale, norm.bias.double() - scale * norm.mean.double())
                detach(layer, name)


def layers(model: nn.Module) -> list[Layer]:
    """The model's batchless norms."""
    return [module for module in model.modules() if isinstance(module, Layer)]


@torch.no_grad()
def _initialise(model: nn.Module, batch: object) -> None:
    """One pass in which every layer takes its statistics from the first data that reaches it (card 14, 3.5)."""
    pending = set(layers(model))

    def fix(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if layer in pending:
            pending.discard(layer)  # type: ignore[arg-type]
            layer.start_from(args[0])  # type: ignore[operator]

    handles = [layer.register_forward_pre_hook(fix) for layer in layers(model)]
    try:
        with modes_kept(model):
            run(model.eval(), batch)
    finally:
        for handle in handles:
            handle.remove()
