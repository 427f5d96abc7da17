"""Lightning Fabric where one raw process does not suffice: data parallelism, GPUs, scaled 16-bit precision.

Fabric sets up devices, processes, autocast and the gradient scaler. Its wrappers of module and optimizer are left
out: they cost 4-6 % of a small network's step and take outputs apart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core.errors import InputError

from .engine import Criterion, Step, processes, widen
from .task import Task

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class _Loss(nn.Module):
    """loss(x, y), terms and all, as the module that data parallelism wraps.

    Wrapped around the model alone it would see a stack's terms reach parameters that the forward did not use, and fail
    where it has to look for unused ones (stochastic depth beside batchless norm).
    """

    def __init__(self, forward: Callable[[Tensor], Any], model: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.model = model  # whose parameters are to be synchronised
        self._forward, self._criterion = forward, criterion

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self._criterion(self._forward(x), y)


class Distributed:
    """The engine over Fabric: one process for each device, started by torchrun, or one process on a GPU.

    may_skip: whether a step may leave parameters without a gradient (skipped branches), which data parallelism must
    then look for.
    """

    def __init__(self, task: Task, may_skip: bool = False) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

        self.world = processes()
        if task.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"the task wants device 'cuda', but torch {torch.__version__} sees no GPU; set device = \"cpu\""
            )
        if task.batch_size < self.world * task.accumulate:
            raise InputError(
                f"batch_size = {task.batch_size} cannot be shared by {self.world} processes x {task.accumulate} "
                f"micro-batches; raise it to at least {self.world * task.accumulate}"
            )
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.world)))
        self.fabric: Any = Fabric(
            accelerator=task.device,
            devices=local,
            num_nodes=self.world // local,
            strategy=DDPStrategy(find_unused_parameters=may_skip) if self.world > 1 else "auto",
            precision=_PRECISION[task.precision],  # type: ignore[arg-type]
        )
        self.fabric.launch()
        self.rank: int = self.fabric.global_rank
        self.device: torch.device = self.fabric.device
        self._parallel: nn.Module | None = None

    def wrap(self, model: nn.Module, criterion: Criterion, optimizer: torch.optim.Optimizer) -> Step:
        strategy = self.fabric.strategy
        parallel: nn.Module = strategy.setup_module(_Loss(self.infer(model), model, criterion))
        self._parallel = parallel
        return parallel, self.fabric.backward, lambda: strategy.optimizer_step(optimizer)

    def infer(self, model: nn.Module) -> Callable[[Tensor], Any]:
        def forward(x: Tensor) -> Any:
            with self.fabric.autocast():
                return widen(model(x))

        return forward

    def unsynchronised(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def reduce(self, value: Tensor) -> Tensor:
        total: Tensor = self.fabric.all_reduce(value, reduce_op="sum")
        return total

    def share_buffers(self, model: nn.Module) -> None:
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.fabric.strategy.precision.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        self.fabric.strategy.precision.load_state_dict(state)
