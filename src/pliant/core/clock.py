"""The root hook: one per model, before every training forward.

It advances the model's step, lets methods draw gates and reset moments, and counts what the loop never used, so that a
forgotten line is an error instead of a method that silently does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .context import Context
from .errors import ContractError
from .method import Method, overrides

STEP = "pliant_step"
PATIENCE = 100
"""Training forwards without a use of what the stack declared, after which it is an error."""
ACCUMULATION = 10_000
"""The same for the step of an attached optimizer, which may gather the gradients of many forwards first."""


class Clock:
    """A forward pre-hook of the root. The step itself is the root's buffer `pliant_step`, saved with the model."""

    def __init__(self, methods: Sequence[Method], seed: int) -> None:
        self.drawing = [method for method in methods if overrides(method, "on_forward")]
        self.termed = [method.name for method in methods if overrides(method, "terms") or overrides(method, "loss")]
        self.stepped = [
            method.name for method in methods if overrides(method, "before_step") or overrides(method, "after_step")
        ]
        self.advancing = any(overrides(method, "advance") for method in methods)
        self.seed = seed
        self.without_terms = 0
        self.without_step = 0
        self.attached: int | None = None
        self._context = Context()
        self._buffer: Tensor | None = None
        self._version = self._step = 0

    @property
    def needed(self) -> bool:
        return bool(self.drawing or self.termed or self.stepped or self.advancing)

    def __call__(self, model: nn.Module, _: Any) -> None:
        # Between two training steps caches are cold and every Python call is dear: hence one flat function.
        if torch.compiler.is_compiling():
            if model.training:
                self._traced(model)
            return
        if not model.training or torch._C._current_graph_task_id() != -1:
            # A checkpointed forward that is run again must meet the step and the gates of the first time.
            return
        buffer: Tensor = model._buffers[STEP]  # type: ignore[assignment]
        if self._buffer is not buffer or self._version != buffer._version:
            self._look(buffer)
        if self.drawing:
            ctx = self._context
            ctx.seed, ctx.step = self.seed, self._step
            for method in self.drawing:
                method.on_forward(model, ctx)
        buffer.add_(1)
        self._step += 1
        self._version = buffer._version
        if torch.is_grad_enabled():
            self.without_terms += 1
            self.without_step += 1
            if self.without_terms > PATIENCE or self.without_step > PATIENCE:
                self._watch(model)

    def _traced(self, model: nn.Module) -> None:
        """Everything that is a tensor is traced; host-side draws and counts are for eager forwards."""
        for method in self.drawing:
            method.on_forward(model, Context(seed=self.seed))
        model.pliant_step.add_(1)  # type: ignore[operator]

    def step(self, buffer: Tensor) -> int:
        """The step on the host. The buffer is read only when something else has written it: a read syncs a GPU."""
        if self._buffer is not buffer or self._version != buffer._version:
            self._look(buffer)
        return self._step

    def _look(self, buffer: Tensor) -> None:
        self._buffer, self._version, self._step = buffer, buffer._version, int(buffer)

    def _watch(self, model: nn.Module) -> None:
        if self.without_terms > PATIENCE and self.termed:
            raise ContractError(
                f"{PATIENCE} training forwards passed and the loss never took the terms of {', '.join(self.termed)}: "
                "use criterion = applied.criterion(loss) for your loss (or add applied.terms() to it)"
            )
        # Told by identity: to a copy of the model nothing is attached, whatever its clock was copied from.
        patience = ACCUMULATION if self.attached == id(model) else PATIENCE
        if self.without_step > patience and self.stepped:
            raise ContractError(
                f"{patience} training forwards passed and the step part of {', '.join(self.stepped)} never ran: "
                "pass your optimizer through optimizer = applied.attach(optimizer), and step it"
            )
