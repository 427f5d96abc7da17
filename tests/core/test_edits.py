"""Edits: what they change, what they keep, and conflicts over one place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pliant.core.edits import DropBias, Edit, Edits, Replace, Skip, Values, make_like
from pliant.core.errors import ConflictError, NoMatchError


def test_replace_exchanges_a_module_and_gives_the_old_one_to_its_maker():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.ReLU())
    seen = []
    Replace(path="0.1", detail="", make=lambda old: seen.append(old) or nn.Tanh()).apply(model)
    assert isinstance(model[0][1], nn.Tanh) and isinstance(seen[0], nn.ReLU) and isinstance(model[1], nn.ReLU)


def test_the_root_cannot_be_replaced():
    with pytest.raises(NoMatchError, match="wrap it in a module"):
        Replace(path="", detail="", make=lambda old: old).apply(nn.ReLU())


def test_dropping_a_bias_leaves_the_layer_bias_free():
    model = nn.Sequential(nn.Linear(2, 3))
    DropBias(path="0", detail="").apply(model)
    assert model[0].bias is None and [name for name, _ in model.named_parameters()] == ["0.weight"]
    x = torch.ones(1, 2)
    assert torch.equal(model(x), x @ model[0].weight.T)


def test_values_change_no_structure():
    model = nn.Linear(2, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    Values(path="", detail="", tensors=("weight",)).apply(model)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_a_slot_is_filled_once():
    edits = Edits(changes=[Replace(path="0", detail="", make=lambda old: nn.Tanh())])
    filled: dict[tuple[str, str], str] = {}
    edits.apply(nn.Sequential(nn.ReLU()), filled, "first")
    assert filled == {("0", "module"): "first"}
    with pytest.raises(ConflictError, match="second and first both want the 'module' slot of '0'; keep one of them"):
        edits.apply(nn.Sequential(nn.ReLU()), filled, "second")


def test_an_edit_must_say_how_it_is_made():
    with pytest.raises(TypeError, match=r"Edit must define apply\(model\)"):
        Edit(path="", detail="").apply(nn.ReLU())


def test_an_empty_plan_tells_what_was_looked_for_passed_over_and_what_helps():
    edits = Edits(skipped=[Skip("fc", "too small"), Skip("", "no room")])
    with pytest.raises(NoMatchError) as told:
        edits.require("wide layer", "widen one")
    assert str(told.value) == "found no wide layer (passed over: fc: too small; the model: no room); widen one"
    full = Edits(changes=[Values(path="", detail="")])
    assert full.require("a", "b") is full


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_new_modules_live_like_their_neighbours(training: bool, dtype: torch.dtype):
    made = make_like(nn.Linear(2, 2, dtype=dtype).train(training), lambda: nn.BatchNorm1d(2))
    assert made.weight.dtype is dtype and made.training is training
    assert made.num_batches_tracked.dtype is torch.int64
