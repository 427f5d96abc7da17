"""Nets that are built in rarer ways: tied weights, batch norms without a shift, buffers that are views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pliant


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.embedding(tokens))))


class TiedLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("net", [TiedHead, TiedLayers])
def test_weight_norm_on_tied_weights_is_baked_apart(net: type[nn.Module]):
    torch.manual_seed(0)
    model = net()
    sample = torch.randint(0, 7, (12,)) if net is TiedHead else torch.randn(12, 4)
    lean = pliant.Stack(pliant.WeightNorm()).apply(model, sample=sample).finalize()
    torch.testing.assert_close(lean(sample), model(sample))
    assert not [name for name, _ in lean.named_parameters() if "parametrizations" in name]


class ShiftlessBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


class WithView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("mix", torch.ones(1, 1).expand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) @ self.mix)


def test_a_buffer_that_sees_one_element_as_many_is_left_alone():
    torch.manual_seed(0)
    model, x = WithView(), torch.randn(9, 4)
    stack = pliant.Stack(pliant.BatchlessNorm(position="before_activation"), pliant.WeightNorm())
    lean = stack.apply(model, sample=x).finalize()
    torch.testing.assert_close(lean(x), model.eval()(x))
    assert torch.equal(model.mix, torch.ones(4, 4))


def test_survival_folds_into_a_batch_norm_without_a_shift():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    model = nn.Sequential(ShiftlessBlock(), ShiftlessBlock())
    applied = pliant.Stack(pliant.StochasticDepth()).apply(model, sample=x)
    lean = applied.finalize()
    torch.testing.assert_close(lean[1].norm.weight, torch.full((3,), 0.5))
    torch.testing.assert_close(lean(x), model.eval()(x))
