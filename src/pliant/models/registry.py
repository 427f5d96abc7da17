"""Models by name, file or module: every file beside this one adds the names in its `MODELS`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from pliant.core.errors import InputError, nearest
from pliant.models.imports import find_factory, short_reason

Factory = Callable[..., Any]
Spec = str | Mapping[str, Any] | Factory


@cache
def model_factories() -> dict[str, Factory]:
    """The built-in names and what builds each, gathered from the `MODELS` of every module in this package."""
    found: dict[str, Factory] = {}
    package = importlib.import_module("pliant.models")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda entry: entry.name):
        found |= getattr(importlib.import_module(f"pliant.models.{module.name}"), "MODELS", {})
    return found


def build(spec: Spec, *, input_shape: Sequence[int], classes: int, root: Path | None = None) -> nn.Module:
    """A new model for inputs of `input_shape` (without the batch dimension) and `classes` classes.

    spec: a built-in name ("mlp", "cnn", "resnet20"); "file.py:factory"; "package.module:factory"; a dict with "name"
    (any of these) and the factory's own keys, {"name": "mlp", "hidden": [64], "activation": "relu"}; or a callable.
    A factory is called with those of `input_shape` and `classes` that it accepts, and the dict's other keys.
    root: where relative paths start and modules are also searched, default the current directory.

    Weights are drawn from torch's global generator: seed it first.

    Raises InputError for unknown names and keys, missing files and attributes, failing imports and factories, and a
    factory that returns no torch.nn.Module.

    >>> build({"name": "mlp", "hidden": [32]}, input_shape=(64,), classes=10).fc1
    Linear(in_features=64, out_features=32, bias=True)
    """
    options: dict[str, Any] = {}
    target: Any = spec
    if isinstance(spec, Mapping):
        if "name" not in spec:
            raise InputError(
                f"model: key 'name' is missing (found {', '.join(map(str, spec)) or 'nothing'}); add name='mlp'"
            )
        options = {key: value for key, value in spec.items() if key != "name"}
        target = spec["name"]
    if isinstance(target, nn.Module):
        raise InputError(
            f"model: got a built {type(target).__name__}; give a function that builds it, "
            "so that every run starts from weights of its own"
        )
    if isinstance(target, str):
        label, factory = target, _resolve(target, Path.cwd() if root is None else Path(root))
    elif callable(target):
        label, factory = getattr(target, "__qualname__", repr(target)), target
    else:
        raise InputError(
            f"model: got a {type(target).__name__}, expected a name, 'file.py:factory', a dict or a callable"
        )
    arguments = _arguments(label, factory, {"input_shape": tuple(input_shape), "classes": classes}, options)
    try:
        model = factory(**arguments)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"model {label!r} failed while it was built: {short_reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {label!r} returned a {type(model).__name__}, expected a torch.nn.Module; return the model"
        )
    return model


def _resolve(name: str, root: Path) -> Factory:
    if ":" in name:
        return find_factory(name, root)
    factories = model_factories()
    if name not in factories:
        raise InputError(
            f"unknown model {name!r}: {nearest(name, factories)}; "
            "for a model of your own write file.py:factory or package.module:factory"
        )
    return factories[name]


def _arguments(label: str, factory: Factory, given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What to call the factory with: the facts it asks for and the user's options, which it must know."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        raise InputError(f"model {label!r} does not tell its parameters; wrap it in a Python function") from None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    # A name such as resnet20 has fixed its depth.
    fixed = factory.keywords if isinstance(factory, partial) else {}
    accepted = {p.name for p in named} - set(fixed)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in options:
        if key in given:
            raise InputError(f"model {label!r}: {key!r} comes from the data; remove it from the recipe")
        if key not in accepted and not open_ended:
            raise InputError(f"model {label!r} has no option {key!r}: {nearest(key, accepted - set(given))}")
    arguments = options | {key: value for key, value in given.items() if key in accepted or open_ended}
    for p in named:
        if p.default is p.empty and p.name not in arguments:
            raise InputError(
                f"model {label!r} needs {p.name!r}; give it in the recipe: {{name = {label!r}, {p.name} = ...}}"
            )
    return arguments
