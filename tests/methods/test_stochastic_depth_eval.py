"""Stochastic depth in evaluation: the three scalings by hand, exact folding, population statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.core.gate import gates
from pliant.models import build

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


def resnet(depth: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return build({"name": "resnet", "depth": depth, "widths": [4, 4, 8]}, input_shape=(3, 8, 8), classes=3)


def apply(model: nn.Module, **settings: Any) -> pliant.Applied:
    seed = settings.pop("seed", 0)
    return pliant.Stack(pliant.StochasticDepth(**settings)).apply(model, sample=X, seed=seed)


def open_gates(model: nn.Module, pattern: tuple[bool, ...]) -> None:
    """Makes every training forward take this pattern, whatever is drawn."""

    def force(*_: Any) -> None:
        for (_, forward), is_open in zip(gates(model), pattern, strict=True):
            forward.open[:] = [is_open] * len(forward.open)

    model.register_forward_pre_hook(force)


def by_hand(model: Any, x: Tensor, factors: tuple[float, ...]) -> Tensor:
    """H_l = ReLU(factor_l f_l(H) + id_l(H)) with the model's own layers, block by block."""
    h = F.relu(model.bn1(model.conv1(x)))
    for block, factor in zip((*model.layer1, *model.layer2, *model.layer3), factors, strict=True):
        skip = block.shortcut(h)
        if factor:
            f = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(h)))))
            h = F.relu((f if factor == 1.0 else f * factor) + skip)
        else:
            h = F.relu(skip)
    return model.fc(h.mean((2, 3)))


@pytest.mark.parametrize(
    ("scale", "train", "evaluate"),
    [("test", (1, 1, 1), (0.8, 0.6, 0.4)), ("train", (1.25, 1 / 0.6, 2.5), (1, 1, 1)), ("none", (1, 1, 1), (1, 1, 1))],
)
def test_the_three_scalings(scale: Any, train: tuple[float, ...], evaluate: tuple[float, ...]):
    model, plain = resnet(), resnet()
    apply(model, p_last=0.4, scale=scale)
    open_gates(model, (True,) * 3)
    torch.testing.assert_close(model(X), by_hand(plain, X, train), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.eval()(X), by_hand(plain.eval(), X, evaluate), rtol=1e-5, atol=1e-6)


def trained(**settings: Any) -> tuple[nn.Module, pliant.Applied]:
    model = resnet()
    applied = apply(model, p_last=0.4, **settings)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.05, weight_decay=1e-4), momentum=0.9))
    criterion = applied.criterion(F.cross_entropy)
    for _ in range(6):
        criterion(model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, applied


@pytest.mark.parametrize("scale", ["test", "train", "none"])
def test_the_folded_net_is_the_evaluated_net_and_a_plain_net_again(scale: str):
    model, applied = trained(scale=scale)
    lean = applied.finalize()
    torch.testing.assert_close(lean(X), model.eval()(X), rtol=1e-5, atol=1e-5)
    plain = resnet()
    assert lean.state_dict().keys() == plain.state_dict().keys() and gates(lean) == []
    assert not any("forward" in vars(m) for m in lean.modules())
    plain.load_state_dict(lean.state_dict())
    assert torch.equal(plain.eval()(X), lean(X))


def test_folding_puts_p_into_the_last_norm_of_the_branch():
    model, applied = trained()
    lean = applied.finalize()
    for (path, forward), p in zip(gates(model), (0.8, 0.6, 0.4), strict=True):
        last, folded = model.get_submodule(path).bn2, lean.get_submodule(path).bn2
        torch.testing.assert_close(folded.weight, last.weight * p)
        torch.testing.assert_close(folded.bias, last.bias * p)
        assert forward.chances[0] == pytest.approx(p)


class Mlp(nn.Module):
    """x + fc2(relu(fc1(x))) twice; `tied` makes both blocks end in the same layer, `loop` runs fc2 twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(kind) for _ in range(2)))
        if kind == "tied":
            self.blocks[1].fc2 = self.blocks[0].fc2
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(x))


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc2(F.relu(self.fc1(x)))
        if self.kind == "loop":
            h = self.fc2(F.relu(h))
        if self.kind == "function":
            h = torch.tanh(h)
        return x + h


@pytest.mark.parametrize(("kind", "left"), [("plain", 0), ("tied", 2), ("loop", 2), ("function", 2)])
def test_a_factor_that_no_layer_can_take_exactly_stays_a_factor(kind: str, left: int):
    torch.manual_seed(0)
    model, x = Mlp(kind), torch.randn(5, 4)
    applied = pliant.Stack(pliant.StochasticDepth()).apply(model, sample=x)
    lean = applied.finalize()
    torch.testing.assert_close(lean(x), model.eval()(x), rtol=1e-5, atol=1e-6)
    assert len(gates(lean)) == left


def test_our_norm_behind_the_last_layer_takes_the_factor():
    torch.manual_seed(0)
    model, x = Mlp("plain"), torch.randn(9, 4)
    stack = pliant.Stack(
        pliant.BatchNorm(where=["**.fc2"]), pliant.StochasticDepth(), pliant.WeightNorm(data_init=False)
    )
    applied = stack.apply(model, sample=x)
    for _ in range(4):
        model(x)
    lean = applied.finalize()
    torch.testing.assert_close(lean(x), model.eval()(x), rtol=1e-5, atol=1e-6)
    assert lean.state_dict().keys() == Mlp("plain").state_dict().keys() and gates(lean) == []


def test_skipped_blocks_get_population_statistics_before_evaluation():
    model, applied = trained()
    applied.calibrate_end([X])
    reference = copy.deepcopy(model)
    # All branches run, scaled, and every norm meets its own batch: momentum 1 keeps the last.
    reference.eval()
    for m in reference.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.train()
            m.momentum = 1.0
    reference(X)
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pliant.bind(model).stack.methods[0].calibrate(model, pliant.Context(batches=None), "end")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_unused_parameters_are_announced():
    assert apply(resnet()).may_skip_parameters
