"""A plain multilayer perceptron; by default the 3 x 100 sigmoid net of Ioffe & Szegedy 2015, section 4.1."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from pliant.core.errors import SettingError, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class MLP(nn.Sequential):
    """h_l = f(W_l h_{l-1} + b_l), logits = W_out h_L + b_out.

    Modules: flatten, fc1, act1, fc2, act2, ..., out. Input N x (any shape), float; output N x classes.

    hidden: units of each hidden layer, default three layers of 100. activation: one of sigmoid, tanh, relu, leaky_relu,
    elu, gelu, silu. init_std: weights ~ N(0, init_std^2) and biases 0; None or 0 keep torch's initialisation. The paper
    says "small random Gaussian values" without a number; with 0.1 the sigmoid net starts learning, with 0.01 it never
    does (at learning rate 0.1, three hidden layers).

    Draws from torch's global generator, like every torch module.

    >>> import torch
    >>> MLP(input_shape=(1, 8, 8), classes=10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        classes: int,
        hidden: Sequence[int] = (100, 100, 100),
        activation: str = "sigmoid",
        init_std: float | None = 0.1,
    ) -> None:
        if any(units < 1 for units in hidden):
            raise SettingError(f"mlp: hidden={list(hidden)}; expected positive numbers of units, e.g. [100, 100, 100]")
        if activation not in ACTIVATIONS:
            raise SettingError(f"mlp: unknown activation {activation!r}: {nearest(activation, ACTIVATIONS)}")
        if init_std is not None and not init_std >= 0:
            raise SettingError(f"mlp: init_std={init_std}; expected a positive number, or 0 for torch's default")
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        width = math.prod(input_shape)
        for number, units in enumerate(hidden, 1):
            layers[f"fc{number}"] = nn.Linear(width, units)
            layers[f"act{number}"] = ACTIVATIONS[activation]()
            width = units
        layers["out"] = nn.Linear(width, classes)
        super().__init__(layers)
        if init_std:
            for module in self:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=init_std)
                    nn.init.zeros_(module.bias)


MODELS = {"mlp": MLP}
