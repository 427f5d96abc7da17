"""State of any shape (optimizers, scalers) as JSON plus named tensors, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pliant.core.errors import CheckpointError

_TENSOR, _TUPLE, _ITEMS = "~tensor", "~tuple", "~items"


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON types; each tensor in it goes into `tensors` under a name that starts with `name`.

    Tuples and dicts with keys other than strings are marked, so that `rebuild` gives back the same types.
    """
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {_TENSOR: name}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("~") for key in value):
            return {key: flatten(item, f"{name}/{key}", tensors) for key, item in value.items()}
        return {_ITEMS: [[key, flatten(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [flatten(item, f"{name}/{place}", tensors) for place, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; keep tensors, numbers, strings, lists "
        "and dicts of them in the state"
    )


def rebuild(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`. Tensors are copies, aligned like torch's own."""
    if isinstance(value, list):
        return [rebuild(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]].clone()
    if _TUPLE in value:
        return tuple(rebuild(item, tensors) for item in value[_TUPLE])
    if _ITEMS in value:
        return {key: rebuild(item, tensors) for key, item in value[_ITEMS]}
    return {key: rebuild(item, tensors) for key, item in value.items()}
