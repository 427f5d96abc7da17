"""Population statistics for a finished network's batch norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core.context import modes_kept, run
from pliant.core.errors import InputError


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> list[str]:
    """E = mean_b(mu_b), Var = mean_b(m/(m - 1) var_b) over training batches, weights fixed (Ioffe & Szegedy, alg. 2).

    Replaces the running statistics of every batch norm in `model`, torch's or pliant's, by the plain mean over
    `batches` of each batch's mean and unbiased variance. While it runs, these batch norms use batch statistics and all
    other modules are in eval mode; afterwards every module's mode and momentum are as before.

    batches: any iterable of training batches. A tensor is given to the model as it is; of a tuple or list, such as
    (x, y), the first entry is; a dict is given as keyword arguments. Tensors are moved to the model's device.
    forward: `forward(model, batch)` runs one batch of any other kind.

    Returns the names of the batch norms that were recalibrated. Left as they were are frozen ones, those without
    running statistics, and those that no batch reached (an auxiliary head that eval mode skips).

    Raises InputError without batches, for batches of an unknown kind, and where statistics come out not finite; the
    model is then as before.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and module.running_mean is not None
        and not getattr(module, "frozen", False)
    }
    if not norms:
        return []
    momenta = {name: norm.momentum for name, norm in norms.items()}
    before = {name: _read(norm) for name, norm in norms.items()}
    try:
        with modes_kept(model):
            # Assigned, not model.eval(): a module's own train() may do more, such as merging weights.
            for module in model.modules():
                module.training = False
            for norm in norms.values():
                norm.training, norm.momentum = True, None
                norm.reset_running_stats()
            seen = False
            for batch in batches:
                seen = True
                (forward or _run)(model, batch)
        if not seen:
            raise InputError("recalibrate got no batches: the iterable was empty or already used up; give a fresh one")
        for name, norm in norms.items():
            _check_finite(name, norm)
    except BaseException:
        for name, norm in norms.items():
            _write(norm, before[name])
        raise
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
    reached = []
    for name, norm in norms.items():
        if int(norm.num_batches_tracked):
            reached.append(name)
        else:
            _write(norm, before[name])
    return reached


def _run(model: nn.Module, batch: Any) -> Any:
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(batch, Mapping) and not isinstance(first, Tensor):
        raise InputError(
            f"recalibrate cannot run a batch of type {type(batch).__name__} (tensor, (tensor, ...) or dict expected): "
            "give forward=, a function (model, batch) that runs one"
        )
    return run(model, batch)


def _read(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    return norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()


def _write(norm: nn.modules.batchnorm._BatchNorm, values: tuple[Tensor, Tensor, Tensor]) -> None:
    for buffer, value in zip((norm.running_mean, norm.running_var, norm.num_batches_tracked), values, strict=True):
        buffer.copy_(value)


def _check_finite(name: str, norm: nn.modules.batchnorm._BatchNorm) -> None:
    if not bool(torch.isfinite(norm.running_mean).all() & torch.isfinite(norm.running_var).all()):
        raise InputError(
            f"recalibrating batch norm '{name}' gave statistics that are not finite: its input held NaN or inf; "
            "look for a bad batch or a diverged model"
        )
