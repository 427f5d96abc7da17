"""Bitwise pictures of a model and of the global generators, and what differs between two of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


def tensors(model: nn.Module) -> Tensors:
    """Copies of all parameters, their gradients and all buffers, saved ones or not, by name."""
    found = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    found |= {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The names that only one side has or whose tensors are not bitwise equal."""
    return [
        name
        for name in dict.fromkeys([*one, *other])
        if name not in one or name not in other or not same(one[name], other[name])
    ]


def structure(model: nn.Module) -> dict[str, Any]:
    """By path and attribute: types, identities of children, parameters, buffers and hooks, modes and plain values."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[path] = (type(module), id(module))
        for name, value in vars(module).items():
            found[f"{path}: {name}"] = _look(value)
        for name, parameter in module.named_parameters(recurse=False):
            found[f"{path}: {name}.requires_grad"] = parameter.requires_grad
    return found


def _look(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((key, id(item)) for key, item in value.items())
    return value if isinstance(value, str | bool | int | float | type(None)) else id(value)


def changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ or that only one side has."""
    missing = object()
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key, missing) != other.get(key, missing)]


def generators() -> dict[str, Any]:
    """The states of the global generators of torch, numpy and Python."""
    # The legacy generator is read because it is what numpy.random's plain functions draw from.
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.random.get_state(legacy=False)["state"]["key"].tobytes()  # noqa: NPY002
        + str(np.random.get_state(legacy=False)["state"]["pos"]).encode(),  # noqa: NPY002
        "random": random.getstate(),
    }


def worst(one: Tensor, other: Tensor) -> float:
    """max |one - other| / max(1, max |other|): inf where either is not finite or the shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    first, second = one.detach().double(), other.detach().double()
    gap, scale = float((first - second).abs().max()), max(1.0, float(second.abs().max()))
    return gap / scale if math.isfinite(gap) and math.isfinite(scale) else float("inf")
