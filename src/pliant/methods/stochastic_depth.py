"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382) for the residual blocks of any model."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import nn

from pliant.core import keyed
from pliant.core.context import Context, run
from pliant.core.edits import Edits
from pliant.core.errors import SettingError
from pliant.core.gate import Gates, NamedBranch, find_gates, gates, ungate
from pliant.core.method import Meta, Method, Phase
from pliant.core.selectors import Where
from pliant.core.sites import RunChild
from pliant.nn import recalibrate
from pliant.nn.fold import can_fold, fold_affine, tied
from pliant.ops.stochastic_depth import SCHEDULES, expected_active, survival


@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticDepth(Method):
    """H_l = b_l f_l(H_{l-1}) + shortcut, b_l ~ Bernoulli(p_l) once per minibatch; with b_l = 0 f_l is not computed.

    p_last: survival probability of the last block, 0.5. schedule: "paper" p_l = 1 - l/L (1 - p_last), "timm"
    (the first block always survives), "uniform", or one probability per branch.
    scale: "test" multiplies branches by p_l in evaluation (the paper); "train" divides by p_l in training; "none".
    where: patterns of blocks, or pliant.Residual(path, branch) for blocks that cannot be traced (default: all found).
    recalibrate: bring the statistics of batch norms up to date before evaluation (skipped blocks see fewer batches).
    """

    p_last: float = 0.5
    schedule: str | tuple[float, ...] = "paper"
    scale: Literal["test", "train", "none"] = "test"
    where: Where | None = None
    recalibrate: bool = True

    meta: ClassVar[Meta] = Meta(
        title="Stochastic depth",
        paper="Huang, Sun, Liu, Sedra & Weinberger 2016, arXiv 1603.09382",
        summary="skip residual branches at random while training; all of them run, scaled, afterwards",
        phase=Phase.GATE,
        tags=frozenset({"skips", "stochastic_depth"}),
        layer="pliant.nn.StochasticDepth",
        function="changes",
        off={"p_last": 1.0, "schedule": "uniform"},
        compile="parts",
        # One gate per minibatch: micro-batches draw their own, so they do not sum to the big batch.
        accumulation="per_batch",
        may_skip_parameters=True,
        example="residual",
    )

    def validate(self) -> None:
        if not 0.0 <= self.p_last <= 1.0:
            raise SettingError(
                f"StochasticDepth.p_last={self.p_last}; a survival probability lies in [0, 1] (1 - drop rate)"
            )
        if self.scale not in ("test", "train", "none"):
            raise SettingError(f"StochasticDepth.scale={self.scale!r}; choose test, train or none")
        if isinstance(self.schedule, str) and self.schedule not in SCHEDULES:
            raise SettingError(f"StochasticDepth.schedule={self.schedule!r}; choose {', '.join(SCHEDULES)} or a tuple")

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        found, skipped = find_gates(model, ctx, self.where)
        edits = Edits(skipped=skipped)
        total = sum(gate.count for gate in found)
        if total:
            chances = survival(total, self.p_last, self.schedule)
            at = 0
            for gate in found:
                own = chances[at : at + gate.count]
                at += gate.count
                told = ", ".join(f"p={p:.3g}" for p in own)
                edits.changes.append(
                    dataclasses.replace(
                        gate, chances=own, factors=tuple(map(self._factors, own)), detail=f"{gate.detail}; {told}"
                    )
                )
            edits.notes.append(f"{expected_active(chances):.4g} of {total} branches run in an average training step")
        return edits.require(
            "residual branch (looked for shortcut + branch(x) in every block's forward)",
            'name blocks that cannot be traced with where=[pliant.Residual("layers.*", branch="body")]',
        )

    def _factors(self, p: float) -> tuple[float, float]:
        if self.scale == "test":
            return 1.0, p
        return (1.0 / p if self.scale == "train" and p > 0 else 1.0), 1.0

    def on_forward(self, model: nn.Module, ctx: Context) -> None:
        blocks = [forward for _, forward in gates(model)]
        count = sum(len(forward.chances) for forward in blocks)
        drawn = iter(keyed.host_uniforms(count, ctx.seed, "stochastic_depth", ctx.step))
        for forward in blocks:
            forward.open[:] = [next(drawn) < p for p in forward.chances]

    def calibrate(self, model: nn.Module, ctx: Context, when: Literal["start", "end"]) -> None:
        if when == "end" and self.recalibrate and ctx.batches is not None:
            recalibrate(model, ctx.calibration(), forward=run)

    def fold(self, model: nn.Module, ctx: Context) -> None:
        """Multiplies p_l into the last layer of each branch, exactly; the block is then what it was before."""
        shared = tied(model)
        for path, forward in gates(model):
            block = model.get_submodule(path)
            targets = [_last_layer(block, forward, number, shared) for number in range(len(forward.factors))]
            due = [factors[1] for factors in forward.factors]
            if all(target is not None or factor == 1.0 for target, factor in zip(targets, due, strict=True)):
                for target, factor in zip(targets, due, strict=True):
                    if target is not None and factor != 1.0:
                        _scale(target, factor)
                ungate(block)


def _last_layer(
    block: nn.Module, forward: Gates | NamedBranch, number: int, shared: set[nn.Parameter]
) -> nn.Module | None:
    """The layer that can take a branch's factor into its weights, or None."""
    name = forward.last(number)
    if name is None:
        return None
    layer = block.get_submodule(name)
    for hook in layer._forward_hooks.values():
        if not isinstance(hook, RunChild):
            return None
        layer = layer._modules[hook.name]  # type: ignore[assignment]
    norm = isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine
    alone = shared.isdisjoint(layer.parameters(recurse=False))
    return layer if alone and (norm or can_fold(layer)) else None


@torch.no_grad()
def _scale(layer: nn.Module, factor: float) -> None:
    if can_fold(layer):
        scale = torch.full((_outputs(layer),), factor, dtype=torch.float64)
        fold_affine(layer, scale, torch.zeros_like(scale))
        return
    layer.weight.mul_(factor)  # type: ignore[operator,union-attr]
    if layer.bias is not None:
        layer.bias.mul_(factor)  # type: ignore[operator]


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]
