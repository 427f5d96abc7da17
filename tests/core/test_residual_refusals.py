"""Additions that are no residual sums, and branches that cannot be left out: refused, with the reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.residual import Program, cut


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)


class InplaceShortcut(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(self.relu(x)))


class InplaceShortcutView(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x.view(-1, 4).relu_()).view_as(x))


class InplaceThroughIdentity(Block):
    """Dropout in evaluation returns its very input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.relu(self.drop(x)))


class InplaceAfterReading(Block):
    """The shortcut is rectified in place after the branch has read the raw one."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.b(self.a(x))
        return out + F.relu(x, inplace=True)


class InplaceMinusEquals(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.b(self.a(x))
        x -= 1.0
        return out + x


class UsedOutside(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.a(x)
        return (x + self.b(out)) * out


class SharedWithShortcutLater(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.a(x)
        return x + out, out


class Twins(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


class Apart(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(self.a.bias).expand(3, 4) + self.b(x)


class Bare(Block):
    """What holds no parameters is no branch: skipping an activation or a dropout is another thing."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(torch.tanh(x))


class NoSum(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * x


class Broadcast(Block):
    """A sum of unequal shapes is no residual sum: the shortcut alone would have another shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0) + self.a(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (InplaceShortcut, "'relu' changes 'x' in place, outside its branch; use inplace=False"),
        (InplaceShortcutView, "changes 'view' in place, outside its branch"),
        (InplaceThroughIdentity, "in place, outside its branch"),
        (InplaceAfterReading, "changes 'x' in place after the branch has read it; use inplace=False"),
        (InplaceMinusEquals, "'isub' changes 'x' in place after the branch has read it"),
        (UsedOutside, "the branch's value 'a' is also used by 'mul'"),
        (SharedWithShortcutLater, "the branch's value 'a' is also used by 'output'"),
        (Twins, "both operands of 'add' hold 1 layers with parameters, so neither is the shortcut"),
        (Bare, "both operands of 'add' hold 0 layers with parameters"),
        (Apart, "the operands of 'add' have no common origin"),
        (NoSum, "adds no two equally shaped tensors"),
        (Broadcast, "adds no two equally shaped tensors"),
    ],
)
def test_what_is_no_usable_branch_is_refused_with_the_reason(kind: type[nn.Module], reason: str):
    block = kind().eval() if kind is InplaceThroughIdentity else kind()
    found = cut(block, ((torch.randn(3, 4),), {}))
    assert isinstance(found, str) and reason in found


def test_in_place_on_the_branchs_own_values_is_fine():
    class Own(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.relu(self.a(x)))

    assert isinstance(cut(Own(), ((torch.randn(3, 4),), {})), Program)
