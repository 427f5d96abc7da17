"""A package outside of pliant that offers methods, as far as its entry point goes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest

from pliant.core import registry


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`gain` is importable and registered under pliant.methods."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "plugin"))
    real = importlib.metadata.entry_points
    offered = importlib.metadata.EntryPoint("gain", "gain:Gain", registry.GROUP)

    def entry_points(**options: str) -> importlib.metadata.EntryPoints:
        found = real(**options)
        return importlib.metadata.EntryPoints([*found, offered]) if options.get("group") == registry.GROUP else found

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry._modules.cache_clear()
    registry.get.cache_clear()
    yield
    monkeypatch.undo()
    registry._modules.cache_clear()
    registry.get.cache_clear()
