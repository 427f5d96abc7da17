from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pliant.core.errors import SettingError
from pliant.data import ArrayData, Augment
from pliant.train import Optimizer, Schedule, Task

NAMED: dict[str, Any] = {"data": "digits", "model": "mlp", "steps": 200, "batch_size": 16}


def build_net() -> nn.Module:
    return nn.Linear(5, 3)


def test_json_round_trip_keeps_every_field() -> None:
    task = Task(
        **NAMED,
        accumulate=2,
        optimizer=Optimizer(name="adamw", lr=0.01, weight_decay=0.1, betas=(0.8, 0.95)),
        schedule=Schedule(name="step", warmup=0.1, milestones=(0.3, 0.6), gamma=0.5),
        augment=Augment(crop=2, flip=False),
        eval_every=7,
        valid_fraction=0.3,
        test_fraction=0.1,
        input="unit",
        precision="bf16",
        threads=2,
    )
    stored = json.loads(json.dumps(task.to_json()))
    assert Task.from_json(stored) == task
    assert Task.from_json(stored).identity == task.identity


def test_identity_changes_with_every_field() -> None:
    base = Task(**NAMED)
    others = {
        "data": "mnist",
        "model": {"name": "mlp", "hidden": [3]},
        "steps": 201,
        "batch_size": 17,
        "accumulate": 2,
        "optimizer": Optimizer(lr=0.2),
        "schedule": Schedule(name="cosine"),
        "augment": Augment(crop=1),
        "worst_score": 0.1,
        "eval_every": 11,
        "valid_fraction": 0.21,
        "test_fraction": 0.21,
        "input": "none",
        "calibration": 501,
        "precision": "bf16",
        "device": "cuda",
        "threads": 2,
    }
    only_one_choice = {"loss", "metric"}
    assert set(others) == {field.name for field in dataclasses.fields(Task)} - only_one_choice
    identities = {dataclasses.replace(base, **{field: value}).identity for field, value in others.items()}
    assert len(identities | {base.identity}) == len(others) + 1


def test_whole_and_real_numbers_are_one_setting() -> None:
    assert Task(**NAMED, optimizer=Optimizer(lr=1)).identity == Task(**NAMED, optimizer=Optimizer(lr=1.0)).identity


def test_objects_in_memory_are_stored_by_digest_and_name(blobs: ArrayData) -> None:
    task = Task(**{**NAMED, "data": blobs, "model": build_net})
    stored = task.to_json()
    assert stored["data"] == {"digest": blobs.digest}
    assert stored["model"]["callable"].endswith(":build_net")
    again = ArrayData(blobs.x.clone(), blobs.y.clone(), name="another name")
    assert dataclasses.replace(task, data=again).identity == task.identity
    with pytest.raises(SettingError, match=r"Task\.data was an object in memory .*from_json\(\.\.\., data=\.\.\.\)"):
        Task.from_json(stored)
    with pytest.raises(SettingError, match=r"Task\.model .*model=\.\.\."):
        Task.from_json(stored, data=blobs)
    assert Task.from_json(stored, data=blobs, model=build_net) == task


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, r"Task\.steps is 0; expected a whole number of at least 1"),
        ({"steps": 3.0}, r"Task\.steps is 3\.0"),
        ({"batch_size": True}, r"Task\.batch_size is True"),
        ({"accumulate": 17}, r"Task\.accumulate is 17; expected at most batch_size = 16"),
        ({"loss": "mse"}, r"Task\.loss is 'mse'; expected choose from: cross_entropy"),
        ({"metric": "acuracy"}, r"Task\.metric is 'acuracy'; .*did you mean 'accuracy'"),
        ({"input": "unti"}, r"Task\.input .*did you mean 'unit'"),
        ({"precision": "16"}, r"Task\.precision is '16'; .*on the CPU"),
        ({"device": "tpu"}, r"Task\.device"),
        ({"valid_fraction": 0.0}, r"Task\.valid_fraction is 0\.0; expected a number in \(0, 1\)"),
        ({"valid_fraction": 0.6, "test_fraction": 0.5}, r"valid_fraction, test_fraction is \(0\.6, 0\.5\)"),
        ({"worst_score": math.nan}, r"Task\.worst_score is nan"),
        ({"data": 3}, r"Task\.data is 3; expected a name"),
        ({"model": 3}, r"Task\.model is 3"),
        ({"augment": {"crop": -1}}, r"Augment\.crop is -1; expected a number of pixels"),
        ({"augment": {"crop": "4"}}, r"Augment\.crop is '4'"),
        ({"augment": {"pad": 4}}, r"Task\.augment has no field 'pad'"),
        ({"optimizer": {"lr": 0}}, r"Optimizer\.lr is 0; expected a number in \(0, inf\)"),
        ({"optimizer": {"lrr": 0.1}}, r"Task\.optimizer has no field 'lrr': did you mean 'lr'"),
        ({"optimizer": {"momentum": 1.0}}, r"Optimizer\.momentum is 1\.0"),
        ({"optimizer": {"nesterov": True}}, r"Optimizer\.nesterov is True; .*momentum"),
        ({"optimizer": {"nesterov": 1}}, r"Optimizer\.nesterov is 1; expected true or false"),
        ({"optimizer": {"betas": [0.9]}}, r"Optimizer\.betas is \[0\.9\]; expected 2 numbers"),
        ({"optimizer": "adam"}, r"Task\.optimizer is 'adam'; expected a table"),
        ({"schedule": {"milestones": [0.7, 0.2]}}, r"Schedule\.milestones .*rising"),
        ({"schedule": {"warmup": 1}}, r"Schedule\.warmup is 1"),
    ],
)
def test_refusals_name_field_found_and_expected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Task(**{**NAMED, **fields})


def test_from_json_refuses_unknown_and_missing_fields() -> None:
    with pytest.raises(SettingError, match=r"no field 'bach_size': did you mean 'batch_size'"):
        Task.from_json({**NAMED, "bach_size": 3})
    with pytest.raises(SettingError, match=r"Task lacks batch_size"):
        Task.from_json({key: value for key, value in NAMED.items() if key != "batch_size"})


def test_validations_default_to_twenty() -> None:
    assert Task(**NAMED).eval_every == 10
    assert Task(**{**NAMED, "steps": 3}).eval_every == 1


def test_schedules_follow_their_formulas() -> None:
    total = 40
    cosine = Schedule(name="cosine", warmup=0.1)
    expected = [(s + 1) / 4 if s < 4 else (1 + math.cos(math.pi * (s - 4) / 36)) / 2 for s in range(total)]
    assert [cosine.factor(s, total) for s in range(total)] == pytest.approx(expected, abs=1e-15)
    step = Schedule(name="step", milestones=(0.5, 0.75), gamma=0.1)
    assert [step.factor(s, total) for s in (0, 19, 20, 29, 30, 39)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert not Schedule().moves and Schedule(warmup=0.5).moves and cosine.moves


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_are_torchs_own(name: str, momentum: float, make_task: Callable[..., Task]) -> None:
    weight = nn.Parameter(torch.ones(3))
    groups = [{"params": [weight], "lr": 0.5, "weight_decay": 0.1, "lr_scale": 5.0, "owned": False}]
    optimizer = Optimizer(name=name, lr=0.1, momentum=momentum, weight_decay=0.1, betas=(0.5, 0.6)).build(groups)
    assert type(optimizer).__name__.lower() == name
    kept = optimizer.param_groups[0]
    assert (kept["lr"], kept["weight_decay"], kept["lr_scale"]) == (0.5, 0.1, 5.0)
    assert kept["momentum"] == momentum if name == "sgd" else kept["betas"] == (0.5, 0.6)
