"""Batch-norm scale initialisation and slow scale updates (Davis & Frank 2022, arXiv 2110.13989)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import nn

from pliant.core.context import Context
from pliant.core.edits import Edits, Skip, Values
from pliant.core.errors import SettingError
from pliant.core.method import Meta, Method, Phase, Rule

_Norm = nn.modules.batchnorm._BatchNorm
_OTHER_NORMS = (nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BNScaleInit(Method):
    """gamma starts at gamma0 < 1 in every batch norm and learns at lr / slowdown; decay only on weights proper.

    gamma0: 0.1, the authors' starting point (they suggest 0.05 to 0.5; short trainings want 0.5, card 08).
    slowdown: c = 100. force: also re-initialise scales that have been trained.
    """

    gamma0: float = 0.1
    slowdown: float = 100.0
    force: bool = False

    meta: ClassVar[Meta] = Meta(
        title="Batch-norm scale initialisation",
        paper="Davis & Frank 2022, arXiv 2110.13989",
        summary="start batch-norm scales below 1 and let them learn slowly",
        phase=Phase.VALUES,
        tags=frozenset({"bn_scale_init"}),
        function="changes",
        off={"gamma0": 1.0, "slowdown": 1.0},
        # It only sets values; the batch norms it needs mix batches.
        accumulation="per_batch",
        processes="needs_sync",
        example="mlp_bn",
    )

    def validate(self) -> None:
        if not 0 < self.gamma0 <= 1:
            raise SettingError(f"BNScaleInit.gamma0={self.gamma0}; expected 0 < gamma0 <= 1 (the paper: 0.1)")
        if not self.slowdown >= 1:
            raise SettingError(f"BNScaleInit.slowdown={self.slowdown}; expected at least 1 (the paper: 100)")

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        edits = Edits()
        for path, norm in _norms(model):
            if norm.weight is None:
                edits.skipped.append(Skip(path, "no scale: built with affine=False"))
            elif bool((norm.weight == 0).all()):
                edits.skipped.append(Skip(path, "its scale starts at 0 on purpose (zero-init residual branch)"))
            elif not self.force and not bool((norm.weight == 1).all()):
                mean = norm.weight.detach().mean().item()
                raise SettingError(
                    f"the batch norm {path!r} has trained scales (mean {mean:.3g}, not 1), which BNScaleInit would "
                    "overwrite; apply it before training, or set force=True"
                )
            else:
                edits.changes.append(
                    Values(
                        path=path,
                        detail=f"scale starts at {self.gamma0:g}, learns at lr/{self.slowdown:g}",
                        tensors=(f"{path}.weight", f"{path}.bias"),
                    )
                )
        return edits.require(
            "batch norm with a scale", "put pliant.BatchNorm() into the stack, or use a model with batch norms"
        )

    def calibrate(self, model: nn.Module, ctx: Context, when: Literal["start", "end"]) -> None:
        if when != "start":
            return
        with torch.no_grad():
            for _, norm in _norms(model):
                if norm.weight is not None and not bool((norm.weight == 0).all()):
                    norm.weight.fill_(self.gamma0)
                    if norm.bias is not None:
                        norm.bias.zero_()

    def groups(self, model: nn.Module) -> dict[nn.Parameter, Rule]:
        # By name and module, not by shape: the authors' code also slows down Linear(n, 1) weights (card 08).
        rules = {p: Rule(decay=False) for name, p in model.named_parameters() if "bias" in name.rpartition(".")[2]}
        rules |= {p: Rule(decay=False) for m in model.modules() if isinstance(m, _OTHER_NORMS) for p in m.parameters()}
        for _, norm in _norms(model):
            if norm.weight is not None:
                rules[norm.weight] = Rule(lr_scale=1.0 / self.slowdown, decay=False)
        return rules


def _norms(model: nn.Module) -> list[tuple[str, _Norm]]:
    return [(path, module) for path, module in model.named_modules() if isinstance(module, _Norm)]
