"""How a step reaches the hardware. One process in 32 bits needs nothing; everything else is in `fabric`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pliant.core.objective import Outputs

from .task import Task

Criterion = Callable[[Any, Tensor], Tensor]
Step = tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Any], Callable[[], Any]]


class Engine(Protocol):
    """rank, world: this process and their number; device: where the model lives.

    `wrap` gives the three calls of a step: loss(x, y), backward(loss) and step().
    """

    rank: int
    world: int
    device: torch.device

    def wrap(self, model: nn.Module, criterion: Criterion, optimizer: torch.optim.Optimizer) -> Step: ...

    def unsynchronised(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, a backward leaves gradients unreduced (all micro-batches but the last)."""
        ...

    def infer(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """The model's call for evaluation: same precision, no communication."""
        ...

    def reduce(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        ...

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process the first one's buffers, so that all evaluate the same model."""
        ...

    def state(self) -> dict[str, Any]:
        """The gradient scaler's state, as JSON types."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class Single:
    """One process on the CPU: the raw module, `loss.backward` and `optimizer.step`, with no wrapper around them."""

    rank = 0
    world = 1
    device = torch.device("cpu")

    def __init__(self, precision: str = "32") -> None:
        self.precision = precision

    def wrap(self, model: nn.Module, criterion: Criterion, optimizer: torch.optim.Optimizer) -> Step:
        forward = self.infer(model)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return criterion(forward(x), y)

        return loss, Tensor.backward, optimizer.step

    def infer(self, model: nn.Module) -> Callable[[Tensor], Any]:
        if self.precision == "32":
            return model

        def forward(x: Tensor) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return widen(model(x))

        return forward

    def unsynchronised(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def reduce(self, value: Tensor) -> Tensor:
        return value

    def share_buffers(self, model: nn.Module) -> None:
        """There is no other process."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """There is no scaler."""


def widen(output: Any) -> Any:
    """Low-precision outputs as float32, so that the loss is computed in full precision."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    if isinstance(output, Outputs):
        return Outputs(widen(output.main), tuple(widen(item) for item in output.aux))
    return output


def processes() -> int:
    """How many processes a launcher such as torchrun has started this run with."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def engine_for(task: Task, may_skip: bool = False) -> Engine:
    """The raw loop where it suffices, Lightning Fabric for more processes, other devices or scaled precision.

    may_skip: whether a step may leave parameters without a gradient.
    """
    if processes() == 1 and task.device == "cpu":
        return Single(task.precision)
    from .fabric import Distributed

    return Distributed(task, may_skip)
