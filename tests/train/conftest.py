from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pliant.data import ArrayData
from pliant.train import Task


@pytest.fixture(scope="session")
def blobs() -> ArrayData:
    """Three overlapping clouds of 150 points in 5 dimensions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(150) % 3
    return ArrayData(torch.randn(150, 5, generator=generator) + y[:, None], y, name="blobs")


@pytest.fixture(scope="session")
def make_task(blobs: ArrayData) -> Callable[..., Task]:
    """A task that trains in a fraction of a second; keyword arguments replace its fields."""

    def make(**fields: Any) -> Task:
        model = {"name": "mlp", "hidden": [12], "activation": "tanh"}
        defaults: dict[str, Any] = {"data": blobs, "model": model, "steps": 40, "batch_size": 20, "eval_every": 10}
        return Task(**{**defaults, **fields})

    return make
