"""Pictures of models see every bit, hook and generator."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from pliant.testing.snapshot import changed, differing, generators, same, structure, tensors, worst


def test_same_sees_every_bit() -> None:
    zero = torch.zeros(2)
    assert same(zero, torch.zeros(2))
    assert not same(zero, -zero)
    assert not same(zero, torch.zeros(2, dtype=torch.float64))
    assert not same(zero, torch.zeros(1, 2))
    nan = torch.full((2,), float("nan"))
    assert same(nan, nan.clone())
    assert same(torch.arange(6).view(2, 3).t(), torch.arange(6).view(2, 3).t().contiguous())
    assert same(torch.tensor(True), torch.tensor(True))


def test_tensors_are_copies_and_include_gradients_and_unsaved_buffers() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("count", torch.zeros(()), persistent=False)
    net(torch.ones(1, 2)).sum().backward()
    before = tensors(net)
    assert set(before) == {"weight", "bias", "weight.grad", "bias.grad", "count"}
    net.count.add_(1)
    net.weight.grad.zero_()
    del net.bias
    assert set(differing(before, tensors(net))) == {"bias", "count", "weight.grad", "bias.grad"}


CHANGES: list[tuple[str, Callable[[nn.Module], object]]] = [
    ("a hook", lambda net: net[0].register_forward_hook(lambda *_: None)),
    ("a pre-hook of the root", lambda net: net.register_forward_pre_hook(lambda *_: None)),
    ("a child", lambda net: net[0].add_module("extra", nn.Identity())),
    ("another child", lambda net: net._modules.update({"0": nn.Linear(2, 2)})),
    ("a mode", lambda net: net[1].eval()),
    ("requires_grad", lambda net: net[0].weight.requires_grad_(False)),
    ("a plain attribute", lambda net: setattr(net[0], "in_features", 3)),
    ("a class", lambda net: setattr(net[1], "__class__", nn.Tanh)),
    ("a forward of its own", lambda net: setattr(net[0], "forward", lambda x: x)),
    ("another parameter", lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.detach()))),
]


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_structure_sees_the_change(change: Callable[[nn.Module], object]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    before = structure(net)
    assert not changed(before, structure(net))
    kept = change(net), list(net.modules())
    assert changed(before, structure(net))
    del kept


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("torch", lambda: torch.rand(())),
        ("numpy", lambda: np.random.rand()),  # noqa: NPY002
        ("random", random.random),
    ],
)
def test_generators_see_a_draw(name: str, draw: Callable[[], object]) -> None:
    with torch.random.fork_rng(devices=[]):
        before = generators()
        draw()
        assert changed(before, generators()) == [name]


def test_worst_is_relative_above_one_and_infinite_where_not_finite() -> None:
    assert worst(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5
    assert worst(torch.tensor([0.5]), torch.tensor([0.25])) == 0.25
    assert worst(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert worst(torch.tensor([float("nan")]), torch.zeros(1)) == float("inf")
    assert worst(torch.tensor([float("inf")]), torch.tensor([float("inf")])) == float("inf")
    assert worst(torch.zeros(0), torch.zeros(0)) == 0.0
