from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pliant.core.errors import InputError
from pliant.models.resnet import BasicBlock, resnet

CIFAR = {"input_shape": (3, 32, 32), "classes": 10}


@pytest.mark.parametrize(("conv_bias", "count"), [(True, 1_732_010), (False, 1_727_962)])
def test_published_parameter_counts_at_110_layers(conv_bias: bool, count: int) -> None:
    net = resnet(**CIFAR, depth=110, conv_bias=conv_bias)
    assert sum(p.numel() for p in net.parameters()) == count
    assert sum(isinstance(m, BasicBlock) for m in net.modules()) == 54


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56])
def test_depth_counts_weighted_layers(depth: int) -> None:
    net = resnet(**CIFAR, depth=depth)
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in net.modules()) == depth


def test_shapes_follow_the_paper() -> None:
    net = resnet(**CIFAR)
    sizes = {}
    for name in ("layer1", "layer2", "layer3"):
        net.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: sizes.__setitem__(name, tuple(o.shape[1:]))
        )
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_a_block_is_branch_plus_shortcut(stride: int, size: tuple[int, int]) -> None:
    block = BasicBlock(4, 4 * stride, stride, conv_bias=True).double()
    x = torch.rand(3, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = F.conv2d(x, block.conv1.weight, block.conv1.bias, stride=stride, padding=1)
    h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    h = F.conv2d(h.clamp(min=0), block.conv2.weight, block.conv2.bias, padding=1)
    h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    skip = torch.zeros_like(h)
    for i in range(skip.shape[2]):
        for j in range(skip.shape[3]):
            # The mean of what lies inside the image: cells at an odd border have fewer pixels.
            skip[:, :4, i, j] = x[:, :, stride * i : stride * i + stride, stride * j : stride * j + stride].mean((2, 3))
    torch.testing.assert_close(block(x), (h + skip).clamp(min=0))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 9), (1, 8, 8)])
def test_other_images(shape: tuple[int, int, int]) -> None:
    net = resnet(input_shape=shape, classes=3, depth=8, widths=[4, 8, 8])
    assert net(torch.zeros(2, *shape)).shape == (2, 3)


def test_initialisation() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = resnet(**CIFAR, depth=8, conv_bias=True)
    weight = net.layer3[0].conv2.weight
    expected = (2 / (9 * 64)) ** 0.5
    assert abs(weight.std() - expected) < 5 * expected / (2 * weight.numel()) ** 0.5
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert not module.bias.any()
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 21}, "depth=21 is not 6n . 2; the nearest depths are 20 and 26"),
        ({"depth": 2}, "the nearest depths are 8 and 14"),
        ({"depth": 19}, "the nearest depths are 14 and 20"),
        ({"widths": (16, 32)}, "expected three channel counts"),
        ({"widths": (32, 16, 64)}, "expected three channel counts"),
        ({"widths": (0, 16, 64)}, "expected three channel counts"),
        ({"input_shape": (64,)}, r"one input has shape \(64,\), expected an image"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resnet(**(CIFAR | options))
