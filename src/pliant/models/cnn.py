"""A small plain convolutional net without normalisation: the base that methods are compared on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from pliant.core.errors import InputError, SettingError


class CNN(nn.Sequential):
    """Stages of Conv3x3 (same size), ReLU and 2 x 2 max pooling (odd sizes rounded up), then one linear layer.

    Modules: conv1, act1, pool1, conv2, act2, pool2, ..., flatten, fc. Input N x C x H x W, float, any size
    (8 x 8, 28 x 28, 32 x 32); output N x classes.

    widths: channels of each stage, default (16, 32, 64). Weights by He et al. 2015, eq. 10 (fan-in, ReLU), biases 0;
    fc as torch initialises it.

    >>> import torch
    >>> CNN(input_shape=(3, 32, 32), classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, *, input_shape: Sequence[int], classes: int, widths: Sequence[int] = (16, 32, 64)) -> None:
        if len(input_shape) != 3:
            raise InputError(f"cnn: one input has shape {tuple(input_shape)}, expected an image C x H x W; use 'mlp'")
        if not widths or any(width < 1 for width in widths):
            raise SettingError(f"cnn: widths={list(widths)}; expected positive numbers of channels, e.g. [16, 32, 64]")
        channels, height, side = input_shape
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, width in enumerate(widths, 1):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.get_parameter("bias"))
            layers[f"conv{number}"] = conv
            layers[f"act{number}"] = nn.ReLU()
            layers[f"pool{number}"] = nn.MaxPool2d(2, ceil_mode=True)
            channels, height, side = width, -(-height // 2), -(-side // 2)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels * height * side, classes)
        super().__init__(layers)


MODELS = {"cnn": CNN}
