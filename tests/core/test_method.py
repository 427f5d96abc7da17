"""Settings as data: canonical forms, identity, refusals that name the right field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import pliant
from pliant.core import registry
from pliant.core.errors import SettingError
from pliant.core.method import Meta, Method, Phase, Setting, decode, digest, encode, overrides
from pliant.core.selectors import Residual

ALL = registry.names()


@dataclasses.dataclass(frozen=True)
class Inner(Setting):
    depth: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Method):
    rate: float = 0.5
    where: tuple[Any, ...] | None = None

    meta: ClassVar[Meta] = Meta(title="Toy", paper="none", summary="nothing", phase=Phase.VALUES)

    def validate(self) -> None:
        if self.rate < 0:
            raise SettingError("Toy.rate must not be negative")


@pytest.mark.parametrize("name", ALL)
def test_json_round_trip_keeps_the_method_and_its_identity(name: str):
    method = registry.get(name)()
    again = registry.method_from_json(json.loads(json.dumps(method.to_json())))
    assert again == method and again.identity == method.identity


@pytest.mark.parametrize("name", ALL)
def test_methods_pickle(name: str):
    method = registry.get(name)()
    assert pickle.loads(pickle.dumps(method)) == method


@pytest.mark.parametrize("name", ALL)
def test_calling_a_method_like_a_layer_says_which_layer_was_meant(name: str):
    kind = registry.get(name)
    with pytest.raises(TypeError, match=r"is a method, not a layer: put it in pliant\.Stack") as told:
        kind()(torch.zeros(2, 3))
    assert kind.meta.layer is None or kind.meta.layer in str(told.value)


def test_batch_norm_called_like_a_layer_names_it():
    with pytest.raises(TypeError, match=r"the layer is pliant\.nn\.BatchNorm1d"):
        pliant.BatchNorm()(torch.zeros(2, 3))


@pytest.mark.parametrize("name", ALL)
def test_methods_are_frozen_and_keyword_only(name: str):
    kind = registry.get(name)
    field = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), field, 1)
    with pytest.raises(TypeError):
        kind(None)


def test_identity_is_the_sha256_of_canonical_json_with_the_schema():
    expected = {"schema": 1, "method": "test_method", "rate": 0.5, "where": None}
    text = json.dumps(expected, sort_keys=True, separators=(",", ":"))
    assert Toy().identity == hashlib.sha256(text.encode()).hexdigest()


def test_every_field_is_part_of_the_identity():
    assert len({Toy().identity, Toy(rate=0.25).identity, Toy(where=("a",)).identity, Toy(where=("b",)).identity}) == 4


def test_lists_become_tuples_so_that_equal_settings_are_equal():
    assert Toy(where=["a", ["b"]]) == Toy(where=("a", ("b",)))
    assert hash(Toy(where=["a"])) == hash(Toy(where=("a",)))


@pytest.mark.parametrize("value", [torch.zeros(1), {"a": 1}, nn.ReLU(), len, {1}])
def test_fields_without_a_json_form_are_refused(value: object):
    with pytest.raises(SettingError, match=r"Toy\.where is a .*; a method's fields are numbers"):
        Toy(where=value)


def test_numbers_that_json_lacks_have_no_identity():
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"x": float("nan")})


def test_validate_runs_on_construction_and_on_build():
    with pytest.raises(SettingError, match="negative"):
        Toy(rate=-1.0)
    with pytest.raises(SettingError, match="negative"):
        Toy.build({"rate": -1.0})


def test_build_refuses_unknown_settings_with_the_nearest_name():
    with pytest.raises(SettingError, match="Toy has no setting 'rat': did you mean 'rate'"):
        Toy.build({"rat": 1.0})


def test_nested_settings_survive_json():
    value = (Inner(depth=3), Residual("a.*", branch="b"), 1.5, None)
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_unknown_nested_settings_are_named():
    with pytest.raises(SettingError, match="unknown nested setting 'Iner': did you mean 'Inner'"):
        decode({"setting": "Iner"})


def test_overrides_sees_only_what_a_method_fills():
    assert not overrides(Toy(), "terms")
    assert overrides(pliant.BatchlessNorm(), "terms") and not overrides(pliant.WeightNorm(), "terms")


def test_the_parts_a_method_leaves_out_do_nothing():
    model, ctx = nn.Linear(2, 2), pliant.Context()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    method = Toy()
    assert method.plan(model, ctx).changes == [] and method.groups(model) == {} and method.terms(model) == {}
    assert method.loss(len) is len
    method.calibrate(model, ctx, "start")
    for part in ("on_forward", "before_step", "after_step", "bake", "fold", "pack"):
        getattr(method, part)(model, ctx)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
