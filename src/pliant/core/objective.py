"""Losses: the user's base loss and the stack's own terms as one callable, and as one module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from .context import arguments

if TYPE_CHECKING:
    from .applied import Applied


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a net with auxiliary heads returns: the main output, then the others."""

    main: Tensor
    aux: tuple[Tensor, ...] = ()


# torch.export and everything else that walks through outputs finds the tensors in it.
register_dataclass(Outputs, serialized_type_name="pliant.Outputs")


class Criterion:
    """criterion(output, target) = loss(output, target) + sum of the stack's terms (the terms in train mode only)."""

    def __init__(self, applied: Applied, base: Callable[..., Tensor]) -> None:
        self.applied = applied
        for method in applied.stack.methods:
            base = method.loss(base)
        self.base = base
        self.terms = applied.has_terms

    def __call__(self, output: Any, *target: Any, **options: Any) -> Tensor:
        loss = self.base(output, *target, **options)
        self.applied.mark_terms()
        if self.terms and self.applied.model.training and torch.is_grad_enabled():
            for term in self.applied.terms().values():
                loss = loss + term
        return loss


class Objective(nn.Module):
    """objective(input, target) = criterion(model(input), target): what probes and initialisers differentiate."""

    def __init__(self, model: nn.Module, criterion: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, batch: Any, target: Tensor) -> Tensor:
        args, kwargs = arguments(batch)
        return self.criterion(self.model(*args, **kwargs), target)
