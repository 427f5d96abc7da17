"""Exact evaluation: each example counts once, however many processes share the work."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core.context import modes_kept
from pliant.core.errors import InputError
from pliant.core.objective import Outputs


@dataclasses.dataclass(frozen=True)
class Scores:
    """loss: mean over the examples; score: fraction of right predictions; count: of predictions."""

    loss: float
    score: float
    count: int


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in the mode that it itself had."""
    with modes_kept(model):
        model.eval()
        yield


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    loss: Callable[..., Tensor] = nn.functional.cross_entropy,
    forward: Callable[[Tensor], Any] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Scores:
    """loss = Σ losses / count and score = Σ right / count over all examples, in eval mode.

    batches: (x, y) with y class numbers (N,) or (N, T), the model's output being (N, classes) or (N, classes, T).
    loss: `loss(output, target, reduction="sum")`; forward: calls the model (default: the model itself).
    reduce: the sum over processes of a float64 tensor; each process then brings batches of its own examples, none
    repeated to fill a batch, so odd sizes are exact.
    """
    call = model if forward is None else forward
    # Kept as tensors and fetched once: a fetch for each batch would wait for the device each time.
    losses, rights, count = [], [], 0
    with evaluating(model):
        for x, y in batches:
            output = call(x)
            output = output.main if isinstance(output, Outputs) else output
            losses.append(loss(output, y, reduction="sum"))
            rights.append((output.argmax(dim=1) == y).sum())
            count += y.numel()
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    sums = torch.tensor([0.0, 0.0, count], dtype=torch.float64, device=device)
    if losses:
        sums[0] = torch.stack(losses).double().sum()
        sums[1] = torch.stack(rights).sum()
    total, right, seen = (sums if reduce is None else reduce(sums)).tolist()
    if seen == 0:
        raise InputError("there is nothing to evaluate on: 0 examples; give a larger valid_fraction or test_fraction")
    return Scores(total / seen, right / seen, int(seen))
