from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from pliant.core.errors import CheckpointError
from pliant.train.tree import flatten, rebuild


def test_nested_state_comes_back_with_its_types() -> None:
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(4.0)}, 1: {"momentum_buffer": None}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "fused": True}],
        "~odd": 1,
    }
    tensors: dict[str, Tensor] = {}
    stored = json.loads(json.dumps(flatten(state, "optimizer", tensors)))
    again = rebuild(stored, tensors)
    torch.testing.assert_close(again.pop("state"), state.pop("state"), rtol=0, atol=0)
    assert again == state
    assert isinstance(again["param_groups"][0]["betas"], tuple)


def test_rebuilt_tensors_are_copies() -> None:
    tensors: dict[str, Tensor] = {}
    stored = flatten({"a": torch.zeros(2)}, "x", tensors)
    rebuild(stored, tensors)["a"].add_(1)
    assert float(rebuild(stored, tensors)["a"].sum()) == 0


def test_objects_are_refused_by_their_place() -> None:
    with pytest.raises(CheckpointError, match=r"extra/rng/0 is a Generator, which a checkpoint cannot hold"):
        flatten({"rng": [torch.Generator()]}, "extra", {})
