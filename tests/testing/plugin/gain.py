"""A method as another package would write it: a trained, noisy gain behind every linear layer."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pliant.core import keyed
from pliant.core.context import Context
from pliant.core.edits import Edits
from pliant.core.errors import SettingError
from pliant.core.method import Meta, Method, Phase, Rule
from pliant.core.sites import Attach, attached, detach, find_sites
from pliant.nn.fold import can_fold, fold_affine


class GainLayer(nn.Module):
    """y = weight * x * (1 + noise * (u - 1/2)) in training with keyed u ~ U(0, 1), y = weight * x in evaluation."""

    step: Tensor

    def __init__(self, features: int, noise: float, key: int) -> None:
        super().__init__()
        self.noise, self.key = noise, key
        self.weight = nn.Parameter(torch.ones(features))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.noise:
            return x * self.weight * (1 + self.noise * (self.draw(x) - 0.5))
        return x * self.weight

    def draw(self, x: Tensor) -> Tensor:
        return keyed.uniform(x.shape, self.key, self.step, dtype=x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain(Method):
    """A gain of `start` with multiplicative noise, held below 2 and drawn to 1 by `penalty` * sum (weight - 1)^2."""

    start: float = 1.0
    noise: float = 0.5
    penalty: float = 0.25
    where: tuple[str, ...] | None = None

    layer: ClassVar[type[GainLayer]] = GainLayer
    meta: ClassVar[Meta] = Meta(
        title="Gain",
        paper="none",
        summary="a noisy gain",
        phase=Phase.SITE,
        tags=frozenset({"gain"}),
        layer="gain.GainLayer",
        function="changes",
        off={"noise": 0.0, "penalty": 0.0},
        preserving={"noise": 0.0},
        processes="per_rank",
        accumulation="per_batch",
        example="mlp",
    )

    def validate(self) -> None:
        if not 0 <= self.noise < 1:
            raise SettingError(f"Gain.noise={self.noise}; expected 0 <= noise < 1")

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        sites, skipped = find_sites(model, ctx, self.where, "before_activation")
        changes: list[Any] = [
            Attach(
                path=site.path,
                name="gain",
                make=lambda site=site: self.layer(
                    site.shape[-1], self.noise, keyed.derive(ctx.seed, "gain", site.path)
                ),
                detail="a gain",
                tensors=(f"{site.path}.gain.weight",),
            )
            for site in sites
            if site.channel_dim == len(site.shape) - 1
        ]
        return Edits(changes=changes, skipped=skipped).require("linear layer before an activation", "use where=[...]")

    def calibrate(self, model: nn.Module, ctx: Context, when: Literal["start", "end"]) -> None:
        if when == "start":
            for layer in self.layers(model):
                nn.init.constant_(layer.weight, self.start)

    def groups(self, model: nn.Module) -> dict[nn.Parameter, Rule]:
        return {layer.weight: Rule(decay=False) for layer in self.layers(model)}

    def terms(self, model: nn.Module) -> dict[str, Tensor]:
        squares = [(layer.weight - 1).square().sum() for layer in self.layers(model)]
        return {"pull": self.penalty * torch.stack(squares).sum()}

    def on_forward(self, model: nn.Module, ctx: Context) -> None:
        for layer in self.layers(model):
            layer.step.copy_(model.pliant_step)

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        for layer in self.layers(model):
            layer.weight.clamp_(max=2.0)

    def fold(self, model: nn.Module, ctx: Context) -> None:
        for path, layer, name, gain in attached(model, GainLayer):
            if can_fold(layer) and path not in ctx.claims:
                fold_affine(layer, gain.weight, torch.zeros_like(gain.weight))
                detach(layer, name)

    @staticmethod
    def layers(model: nn.Module) -> list[GainLayer]:
        return [module for module in model.modules() if isinstance(module, GainLayer)]
