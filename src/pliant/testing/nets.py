"""Small networks with data, named in `Meta.example`: what the battery tries a method on.

All weights are keyed, so the same name and seed give the same net on every machine, and no global generator is touched.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import keyed
from pliant.core.errors import SettingError, nearest
from pliant.core.objective import Outputs

Batch = tuple[Tensor, Tensor]
KEY = "testing"
"""First name of every key of the nets and their data."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A net and its data. make: builds the net; shape: of one input; classes: of its target; rows: of a batch."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int = 3
    rows: int = 8

    def net(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh net in train mode. Weights ~ N(0, 1/fan_in) and biases ~ U(-0.5, 0.5) by key; norms start at 1, 0."""
        with torch.random.fork_rng(devices=[]):
            net = self.make()
        with torch.no_grad():
            for path, module in net.named_modules():
                if isinstance(module, NORMS):
                    continue
                for name, parameter in module.named_parameters(recurse=False):
                    draw = keyed.generator(seed, KEY, path, name)
                    if parameter.dim() > 1:
                        wide = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                        parameter.copy_(wide / parameter[0].numel() ** 0.5)
                    else:
                        parameter.copy_(torch.rand(parameter.shape, generator=draw, dtype=torch.float64) - 0.5)
        return net.to(dtype)

    def batch(self, number: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
        """Inputs (rows, *shape) ~ N(0, 1) and integer targets (rows,), by key."""
        draw = keyed.generator(0, KEY, "batch", number)
        x = torch.randn((self.rows, *self.shape), generator=draw, dtype=torch.float64)
        return x.to(dtype), torch.randint(self.classes, (self.rows,), generator=draw)

    def batches(self, count: int, dtype: torch.dtype = torch.float32, start: int = 0) -> list[Batch]:
        """`count` different batches, from number `start`."""
        return [self.batch(start + number, dtype) for number in range(count)]

    def sample(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """An input to call the net with, of its own: no training batch holds it."""
        return self.batch(-1, dtype)[0]

    @staticmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(output, target)


NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm)


def _mlp(norm: bool = False) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = 4
    for number in (1, 2):
        layers[f"fc{number}"] = nn.Linear(width, 5)
        if norm:
            layers[f"bn{number}"] = nn.BatchNorm1d(5)
        layers[f"act{number}"] = nn.Sigmoid()
        width = 5
    layers["out"] = nn.Linear(width, 3)
    return nn.Sequential(layers)


def _cnn() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 4, 3, padding=1),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(4, 4, 3, stride=2, groups=2),
            act2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            out=nn.Linear(16, 3),
        )
    )


class Block(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)): the residual block of He et al. 2016."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.shortcut(x))


class PreactBlock(nn.Module):
    """x + conv2(relu(conv1(relu(x)))): pre-activation and free of norms, so that norms find places in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.act2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act2(self.conv1(self.act1(x))))


class AttentionBlock(nn.Module):
    """x + attention(ln1(x)), then x + fc2(gelu(fc1(ln2(x)))): a pre-norm transformer block with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln1(x)).chunk(3, dim=-1)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.proj(weights @ v)
        return x + self.fc2(self.act(self.fc1(self.ln2(x))))


class Mean(nn.Module):
    """The mean over positions of (N, T, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Recurrent(nn.Module):
    """An LSTM over (N, T, C) and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


def _residual(*blocks: nn.Module, norm: bool) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(2, 2, 3, padding=1))
    if norm:
        parts["bn"] = nn.BatchNorm2d(2)
    parts.update(act=nn.ReLU(), layers=nn.Sequential(*blocks), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    # The head is free of norms, so that a method for batch norms and one that brings norms both find places.
    parts.update(fc=nn.Linear(4 if norm else 2, 4), act_fc=nn.ReLU(), out=nn.Linear(4, 3))
    return nn.Sequential(parts)


EXAMPLES = {
    example.name: example
    for example in (
        Example("mlp", _mlp, (4,)),
        Example("mlp_bn", lambda: _mlp(norm=True), (4,)),
        Example("cnn", _cnn, (2, 6, 6)),
        Example("residual", lambda: _residual(Block(2, 2, 1), Block(2, 2, 1), Block(2, 4, 2), norm=True), (2, 5, 5)),
        Example("preact", lambda: _residual(PreactBlock(2), PreactBlock(2), PreactBlock(2), norm=False), (2, 5, 5)),
        Example("recurrent", Recurrent, (4, 3)),
        Example(
            "attention",
            lambda: nn.Sequential(
                OrderedDict(embed=nn.Linear(3, 4), block=AttentionBlock(4), mean=Mean(), out=nn.Linear(4, 3))
            ),
            (3, 3),
        ),
    )
}


def example(name: str) -> Example:
    """The example of this name; SettingError with the nearest names otherwise."""
    if name not in EXAMPLES:
        raise SettingError(f"there is no example net {name!r}: {nearest(name, EXAMPLES)}")
    return EXAMPLES[name]


def main(output: Tensor | Outputs) -> Tensor:
    """What a net returns, without its auxiliary heads."""
    return output.main if isinstance(output, Outputs) else output


def hold_statistics(net: nn.Module) -> None:
    """Puts the batch norms that a net has into eval mode, so that it does not mix the examples of a batch.

    Whether a method keeps parts of a batch and the whole batch equal can only be seen on a net that does so itself.
    """
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
