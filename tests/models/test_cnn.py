from __future__ import annotations

import pytest
import torch

from pliant.core.errors import InputError
from pliant.models.cnn import CNN


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 5), (1, 1, 1)])
def test_adapts_to_the_image(shape: tuple[int, int, int]) -> None:
    net = CNN(input_shape=shape, classes=7)
    assert net(torch.zeros(2, *shape)).shape == (2, 7)
    names = [name for name, _ in net.named_children()]
    assert names[:3] == ["conv1", "act1", "pool1"]
    assert names[-3:] == ["pool3", "flatten", "fc"]
    assert not any("norm" in type(m).__name__.lower() for m in net.modules())


def test_widths_and_parameters() -> None:
    net = CNN(input_shape=(1, 8, 8), classes=10, widths=[4, 6])
    assert sum(p.numel() for p in net.parameters()) == (4 * 9 + 4) + (6 * 4 * 9 + 6) + (6 * 2 * 2 * 10 + 10)


def test_initialisation_keeps_the_signal() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CNN(input_shape=(3, 32, 32), classes=10, widths=(64, 64))
    assert abs(net.conv2.weight.std() - (2 / (9 * 64)) ** 0.5) < 5 * (2 / (9 * 64)) ** 0.5 / (2 * 9 * 64 * 64) ** 0.5
    assert not net.conv1.bias.any()


def test_bad_settings() -> None:
    with pytest.raises(InputError, match=r"one input has shape \(64,\), expected an image C x H x W; use 'mlp'"):
        CNN(input_shape=(64,), classes=10)
    for widths in ([], [8, 0]):
        with pytest.raises(InputError, match="expected positive numbers of channels"):
            CNN(input_shape=(1, 8, 8), classes=10, widths=widths)
