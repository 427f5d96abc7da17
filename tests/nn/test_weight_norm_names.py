"""Checkpoints of torch's weight norm load into ours, and ours into torch's."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import weight_norm as old_weight_norm

import pliant
from pliant.core.errors import InputError
from pliant.nn import from_torch_names, to_torch_names

X = torch.linspace(-1, 1, 2 * 3 * 5 * 5).view(2, 3, 5, 5)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(48, 2))


def torchs(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = net()
    for index, dim in ((0, 0), (2, 1), (4, 0)):
        parametrizations.weight_norm(model[index], dim=dim)
        with torch.no_grad():
            model[index].parametrizations.weight.original0.mul_(1.5)
    return model


def ours(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = net()
    pliant.Stack(pliant.WeightNorm(data_init=False)).apply(model)
    return model


def test_torchs_checkpoint_in_ours():
    source, target = torchs(0), ours(1)
    target.load_state_dict(from_torch_names(source.state_dict()))
    torch.testing.assert_close(target(X), source(X))


def test_ours_in_torchs():
    source, target = ours(0), torchs(1)
    state = source.state_dict()
    target.load_state_dict(to_torch_names(state))
    torch.testing.assert_close(target(X), source(X))
    assert from_torch_names(to_torch_names(state)).keys() == state.keys()


def test_the_old_names():
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for layer in source:
            old_weight_norm(layer)
    target = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    pliant.Stack(pliant.WeightNorm(data_init=False)).apply(target)
    target.load_state_dict(from_torch_names(source.state_dict()))
    torch.testing.assert_close(target(X.view(-1, 5)[:, :4]), source(X.view(-1, 5)[:, :4]))


def test_what_torch_cannot_hold_is_refused():
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2))
    pliant.Stack(pliant.WeightNorm(data_init=False)).apply(model)
    with pytest.raises(InputError, match="per group"):
        to_torch_names(model.state_dict())
    with pytest.raises(InputError, match="finalize"):
        to_torch_names({"0.parametrizations.weight.0.mask.scores": torch.ones(1)})


def test_other_names_stay():
    state = {"fc.weight": torch.ones(1), "weight_g": torch.ones(1)}
    assert from_torch_names(state).keys() == to_torch_names(state).keys() == state.keys()
