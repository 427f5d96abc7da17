"""Checkpoints of models that a stack was applied to, with their optimizer, for any training loop.

pliant.train.save("net.safetensors", model, optimizer, extra={"epoch": 3})
extra = pliant.train.load("net.safetensors", model, optimizer)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core.applied import Applied, bind
from pliant.core.errors import CheckpointError, nearest
from pliant.core.migrate import migrate, rules
from pliant.core.stack import Stack

from .file import read, write
from .tree import flatten, rebuild

_COMPILED = "_orig_mod."


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes model, optimizer, the model's stack and `extra` (JSON values and tensors) to one .safetensors file.

    The names are those of the uncompiled, unwrapped model. A tensor that appears under two names is stored once. The
    file is replaced as a whole: whatever interrupts this, the old or the new checkpoint is there. CheckpointError when
    it cannot be written; nothing half-written remains.
    """
    tensors, meta = capture(model, optimizer)
    meta["extra"] = flatten(dict(extra or {}), "extra", tensors)
    write(path, tensors, meta)


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    sample: Any = None,
) -> dict[str, Any]:
    """Loads what `save` wrote into model and optimizer, in place, and returns `extra`.

    A model without a stack gets the one of the file first (sample: an input, which some methods need to follow the
    model); load it so before its optimizer is built. CheckpointError naming the differences when the model has another
    stack, other tensors or another optimizer.
    """
    tensors, meta = read(path)
    raw = unwrap(model)
    if meta["stack"] and not hasattr(raw, "_pliant"):
        if optimizer is not None:
            names = ", ".join(item["method"] for item in meta["stack"])
            raise CheckpointError(
                f"{path} was made with {names}, which the model lacks, so its optimizer does not fit. Load the model "
                "alone, which applies them; then build the optimizer from pliant.bind(model).groups(...), attach it "
                "and load both"
            )
        Stack.from_json(meta["stack"]).apply(raw, sample, seed=meta["stack_seed"])
    restore(raw, optimizer, tensors, meta, str(path))
    extra: dict[str, Any] = rebuild(meta["extra"], tensors)
    return extra


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module, out of torch.compile's and data parallelism's wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def capture(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of model, stack and optimizer as tensors and JSON."""
    raw = unwrap(model)
    applied = _applied(raw)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in raw.state_dict().items():
        plain = name.replace(_COMPILED, "")
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{plain} of the model's state is a {type(value).__name__}, not a tensor; keep it in a buffer"
            )
        view = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and view in seen:
            aliases[plain] = seen[view]
            continue
        seen[view] = plain
        tensors[f"model/{plain}"] = value
    meta: dict[str, Any] = {
        "aliases": aliases,
        "stack": applied.stack.to_json() if applied else [],
        "stack_seed": applied.seed if applied else 0,
        "stack_state": applied.state() if applied else {},
        "optimizer": None,
    }
    if optimizer is not None:
        state = flatten(optimizer.state_dict(), "optimizer", tensors)
        meta["optimizer"] = {"kind": type(optimizer).__name__, "state": state}
    return tensors, meta


def restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    where: str,
    applied: Applied | None = None,
) -> None:
    """Loads captured state in place. where: names the file in errors; applied: the one the optimizer is attached to."""
    raw = unwrap(model)
    applied = applied or _applied(raw)
    refuse_other_stack(meta["stack"], applied.stack.to_json() if applied else [], where)
    if applied:
        # Growth is replayed first: tensors have their final shapes only afterwards.
        before = {p for p in raw.parameters() if p.requires_grad}
        applied.load_state(meta["stack_state"])
        if optimizer is not None:
            migrate(optimizer, before, rules(raw, applied.stack.methods))
    raw.load_state_dict(_fitting(raw, tensors, meta["aliases"], where))
    if optimizer is None:
        return
    stored = meta["optimizer"]
    if stored is None:
        raise CheckpointError(f"{where} holds no optimizer; load it without one, or save(path, model, optimizer)")
    if stored["kind"] != type(optimizer).__name__:
        raise CheckpointError(
            f"{where} holds the state of {stored['kind']}, but the optimizer is {type(optimizer).__name__}; "
            "use the same kind"
        )
    try:
        optimizer.load_state_dict(rebuild(stored["state"], tensors))
    except ValueError as error:
        raise CheckpointError(
            f"{where}: the optimizer's groups differ ({error}); build it from applied.groups(...) as when it was saved"
        ) from error


def refuse_other_stack(stored: list[dict[str, Any]], present: list[dict[str, Any]], where: str) -> None:
    """CheckpointError naming each method and setting in which two stacks differ."""
    if stored == present:
        return
    old, new = ({item["method"]: item for item in stack} for stack in (stored, present))
    differences = [f"{name} is only in the checkpoint" for name in old.keys() - new.keys()]
    differences += [f"{name} is only in the model" for name in new.keys() - old.keys()]
    for name in old.keys() & new.keys():
        differences += [
            f"{name}.{key} was {old[name].get(key)!r} and is {new[name].get(key)!r}"
            for key in sorted(old[name].keys() | new[name].keys())
            if old[name].get(key) != new[name].get(key)
        ]
    told = "; ".join(sorted(differences)) or "the same methods in other numbers"
    raise CheckpointError(
        f"{where} was made with another stack: {told}. Apply the stack it was made with, or start anew"
    )


def _applied(model: nn.Module) -> Applied | None:
    return bind(model) if hasattr(model, "_pliant") else None


def _fitting(model: nn.Module, tensors: dict[str, Tensor], aliases: dict[str, str], where: str) -> dict[str, Tensor]:
    """The stored tensors under the names of this model's own state, all there and of the right shape."""
    stored = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
    stored |= {alias: stored[name] for alias, name in aliases.items()}
    own = {name.replace(_COMPILED, ""): (name, tensor) for name, tensor in model.state_dict().items()}
    extra = stored.keys() - own.keys()
    faults = [f"the model has no {name} ({nearest(name, own)})" for name in sorted(extra)]
    faults += [f"the checkpoint has no {name}" for name in sorted(own.keys() - stored.keys())]
    for name in sorted(own.keys() & stored.keys()):
        want, found = own[name][1], stored[name]
        if want.shape != found.shape or want.dtype != found.dtype:
            faults.append(f"{name} is {_kind(found)} in the checkpoint and {_kind(want)} in the model")
    if faults:
        more = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(faults[:6])}{more}")
    return {name: stored[plain] for plain, (name, _) in own.items()}


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
