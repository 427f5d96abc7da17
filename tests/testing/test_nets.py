"""The example nets: keyed, small, and what their names promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pliant.core.errors import SettingError
from pliant.testing import EXAMPLES, example
from pliant.testing.nets import hold_statistics
from pliant.testing.snapshot import differing, generators, tensors


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_net_is_a_function_of_its_seed(name: str) -> None:
    before = generators()
    one, again, other = (tensors(example(name).net(seed)) for seed in (0, 0, 1))
    assert not differing(one, again)
    assert differing(one, other)
    assert generators() == before


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_net_trains_on_its_batches(name: str, dtype: torch.dtype) -> None:
    chosen = example(name)
    net = chosen.net(dtype=dtype)
    first, second = chosen.batches(2, dtype)
    assert first[0].shape == (chosen.rows, *chosen.shape)
    assert first[0].dtype == dtype
    assert not torch.equal(first[0], second[0])
    output = net(first[0])
    assert output.shape == (chosen.rows, chosen.classes)
    chosen.loss(output, first[1]).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) < 500, "a check tries every parameter: keep the nets small"


def test_the_residual_net_has_three_blocks_and_a_head_without_norms() -> None:
    modules = dict(example("residual").net().named_modules())
    assert sum(path.endswith("bn2") for path in modules) == 3
    assert isinstance(modules["fc"], nn.Linear)
    assert isinstance(modules["act_fc"], nn.ReLU)


def test_held_statistics_make_rows_independent() -> None:
    chosen = example("mlp_bn")
    x = chosen.sample(torch.float64)
    net = chosen.net(dtype=torch.float64)
    assert not torch.allclose(net(x)[:4], net(x[:4]))
    hold_statistics(net)
    assert torch.allclose(net(x)[:4], net(x[:4]), rtol=1e-12)
    assert net.training


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"'mlpp'.*did you mean 'mlp'"):
        example("mlpp")
