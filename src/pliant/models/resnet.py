"""The CIFAR residual net of 6n+2 layers (He et al. 2016, section 4.2), as Huang et al. 2016 use it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.errors import InputError, SettingError


class Shortcut(nn.Module):
    """id(x) when shapes agree, else 2 x 2 average pooling and new channels of zeros: "option A", no parameters."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.extra = width - channels
        # A stride-2 convolution gives ceil(n/2); floor pooling would not fit its output on odd sizes.
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        return F.pad(x, (0, 0, 0, 0, 0, self.extra)) if self.extra else x


class BasicBlock(nn.Module):
    """H = ReLU(f(x) + id(x)), f = Conv3x3 - BN - ReLU - Conv3x3 - BN (Huang et al. 2016, eq. 1)."""

    def __init__(self, channels: int, width: int, stride: int, conv_bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=conv_bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=conv_bias)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = Shortcut(channels, width, stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(branch + self.shortcut(x))


class ResNet(nn.Module):
    """Conv3x3 - BN - ReLU, three groups of n blocks (groups 2 and 3 start with stride 2), average pool, linear."""

    def __init__(self, in_channels: int, classes: int, blocks: int, widths: Sequence[int], conv_bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=conv_bias)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        channels = widths[0]
        groups = []
        for number, width in enumerate(widths, 1):
            group = nn.Sequential()
            for index in range(blocks):
                group.append(BasicBlock(channels, width, 2 if number > 1 and index == 0 else 1, conv_bias))
                channels = width
            groups.append(group)
        self.layer1, self.layer2, self.layer3 = groups
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


def resnet(
    *,
    input_shape: Sequence[int],
    classes: int,
    depth: int = 20,
    widths: Sequence[int] = (16, 32, 64),
    conv_bias: bool = False,
) -> ResNet:
    """A CIFAR ResNet of depth = 6n + 2 layers: N x C x H x W float images to N x classes logits.

    depth: 20, 32, 44, 56, 110 in the papers. widths: channels of the three groups, not falling. conv_bias: as in the
    authors' Torch7 code (1,732,010 parameters at depth 110 on CIFAR-10), else without (1,727,962). Weights of
    convolutions by He et al. 2015, eq. 10 (fan-in, ReLU), their biases 0, batch norms 1 and 0, fc as torch does it.

    Raises SettingError for a depth that is not 6n + 2 and for impossible widths.

    >>> sum(p.numel() for p in resnet(input_shape=(3, 32, 32), classes=10).parameters())
    269722
    """
    if len(input_shape) != 3:
        raise InputError(f"resnet: one input has shape {tuple(input_shape)}, expected an image C x H x W; use 'mlp'")
    if depth < 8 or depth % 6 != 2:
        below = max(8, depth - (depth - 2) % 6)
        raise SettingError(f"resnet: depth={depth} is not 6n + 2; the nearest depths are {below} and {below + 6}")
    if len(widths) != 3 or widths[0] < 1 or list(widths) != sorted(widths):
        raise SettingError(
            f"resnet: widths={list(widths)}; expected three channel counts that do not fall, [16, 32, 64]"
        )
    return ResNet(input_shape[0], classes, (depth - 2) // 6, widths, conv_bias)


MODELS = {
    "resnet": resnet,
    "resnet20": partial(resnet, depth=20),
    "resnet32": partial(resnet, depth=32),
    "resnet44": partial(resnet, depth=44),
    "resnet56": partial(resnet, depth=56),
    "resnet110": partial(resnet, depth=110),
}
