"""pliant: make neural networks take training well and run cheaply, and prove it.

Everything is loaded on first use: `import pliant` costs next to nothing beyond torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from ._version import __version__

_HOMES = {
    "Stack": "core.stack",
    "Method": "core.method",
    "Meta": "core.method",
    "Rule": "core.method",
    "Phase": "core.method",
    "Context": "core.context",
    "Residual": "core.selectors",
    "Objective": "core.objective",
    "Outputs": "core.objective",
    "Applied": "core.applied",
    "bind": "core.applied",
    "PliantError": "core.errors",
    "Task": "train",
    "Recipe": "train",
    "save": "train",
    "load": "train",
    "export": "ship",
    "compare": "study",
    "Study": "study",
}
_PACKAGES = frozenset(
    [
        "core",
        "ops",
        "kernels",
        "nn",
        "methods",
        "models",
        "data",
        "optim",
        "train",
        "probes",
        "study",
        "advise",
        "report",
        "ship",
        "tasks",
        "claims",
        "testing",
        "cli",
        "functional",
    ]
)

__all__ = ["__version__", *_HOMES, *sorted(_PACKAGES)]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    else:
        from .core import registry
        from .core.errors import InputError

        if name.startswith("_"):
            raise AttributeError(f"module 'pliant' has no attribute {name!r}")
        try:
            value = registry.get(name)
        except InputError as error:
            raise AttributeError(f"module 'pliant' has no attribute {name!r}; {error}") from error
        if value.__name__ != name:
            raise AttributeError(f"module 'pliant' has no attribute {name!r}; did you mean {value.__name__!r}?")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from .core import registry

    return sorted({*__all__, *(registry.get(name).__name__ for name in registry.names())})
