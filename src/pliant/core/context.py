"""What a method may know about the run it takes part in."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .errors import TraceError


@dataclasses.dataclass(kw_only=True)
class Context:
    """The surroundings of a plan, calibration or step.

    sample: what the model is called with (a tensor, a tuple of arguments, or a dict of keyword arguments).
    batches: calibration batches, re-iterable: tensors, (input, target) pairs or dicts; the sample when none are given.
    objective: `objective(model, batch) -> loss`, for methods that need gradients before training.
    optimizer: the instance once attached. seed, step, total_steps: of the run. group: the process group or None.
    claims: paths of modules that a finalize stage has taken over from their own method.
    """

    sample: Any = None
    batches: Iterable[Any] | None = None
    objective: Callable[[nn.Module, Any], Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    seed: int = 0
    step: int = 0
    total_steps: int | None = None
    group: Any = None
    claims: set[str] = dataclasses.field(default_factory=set)

    @property
    def rank(self) -> int:
        """This process's number (0 without a process group)."""
        dist = torch.distributed
        return dist.get_rank(self.group) if dist.is_available() and dist.is_initialized() else 0

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The unscaled gradient: fused optimizers under a GradScaler see scaled ones."""
        scale = getattr(self.optimizer, "grad_scale", None)
        if parameter.grad is None or scale is None:
            return parameter.grad
        return parameter.grad / scale

    def sample_call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The sample as positional and keyword arguments; TraceError when none was given."""
        if self.sample is None:
            raise TraceError(
                "no sample was given, so the model's forward cannot be followed: pass sample=x, as you call the model"
            )
        return arguments(Sample(self.sample))

    def calibration(self) -> Iterator[Any]:
        """The calibration batches, or the sample alone."""
        if self.batches is not None:
            yield from self.batches
        elif self.sample is not None:
            yield Sample(self.sample)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Marks a value as the model's whole call, so that a tuple is not taken for an (input, target) pair."""

    value: Any


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments with which a model takes `batch`.

    A tensor is the input; a dict is keyword arguments; of an (input, target) pair the first is taken;
    a `Sample` holding a tuple is all the positional arguments.

    >>> arguments({"x": 1})
    ((), {'x': 1})
    >>> arguments(("input", "target"))
    (('input',), {})
    """
    if isinstance(batch, Sample):
        value = batch.value
        if isinstance(value, Mapping):
            return (), dict(value)
        return (tuple(value), {}) if isinstance(value, tuple | list) else ((value,), {})
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return (batch[0],), {}
    return (batch,), {}


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output on a batch of any of the usual forms, brought to the model's device as a loop would."""
    args, kwargs = arguments(batch)
    anchor = next(itertools.chain(model.parameters(), model.buffers()), None)
    if anchor is not None:
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(anchor.device), (args, kwargs))
    return model(*args, **kwargs)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Gives every module its own train or eval mode back at the end: `model.train()` would give all of them one."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def joined(batches: Iterable[Any]) -> Any:
    """One batch out of several tensors or (input, target) pairs, their inputs concatenated; None out of none.

    Batches of other forms cannot be joined: the first one stands for all.
    """
    given = list(batches)
    if len(given) <= 1:
        return given[0] if given else None
    inputs = [batch[0] if isinstance(batch, tuple | list) else batch for batch in given]
    return torch.cat(inputs) if all(isinstance(one, Tensor) for one in inputs) else given[0]
