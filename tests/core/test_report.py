"""What a stack did, as text for people and JSON for programs."""

from __future__ import annotations

import json

from torch import nn

from pliant.core.edits import Edits, Skip, Values
from pliant.core.report import Entry, Report, entries, trainable


def report() -> Report:
    plan = Edits(
        changes=[Values(path="fc1", detail="made smaller"), Values(path="", detail="wrapped")],
        skipped=[Skip("layers.10.fc", "its output is the model's output")],
    )
    told = entries("foo", plan) + entries("bar", Edits(changes=[Values(path="x", detail="y")]))
    return Report(("foo", "bar"), tuple(told), ("foo with bar: no need",), (1000, 1250))


def test_the_text_tells_order_changes_reasons_notes_and_parameters():
    assert str(report()) == "\n".join(
        [
            "order: foo → bar",
            "foo: 2 changes",
            "  fc1           made smaller",
            "  (the model)   wrapped",
            "  layers.10.fc  left alone: its output is the model's output",
            "bar: 1 change",
            "  x  y",
            "note: foo with bar: no need",
            "trainable parameters: 1,000 → 1,250",
        ]
    )


def test_unchanged_parameters_and_empty_stacks_say_so():
    assert str(Report((), (), (), (5, 5))) == "no methods: the model is as it was"
    assert str(Report(("a",), (), (), (5, 5))).endswith("trainable parameters: 5 (unchanged)")


def test_changed_paths_of_one_method_and_of_all():
    assert report().changed() == ["fc1", "", "x"]
    assert report().changed("bar") == ["x"] and report().changed("none") == []


def test_reports_are_json_and_compare_by_value():
    data = json.loads(json.dumps(report().to_json()))
    assert data["order"] == ["foo", "bar"] and data["parameters"] == [1000, 1250]
    assert data["entries"][2]["kind"] == "skip" and data["entries"][2]["method"] == "foo"
    assert report() == report() and Entry("a", "change", "b", "c") != Entry("a", "skip", "b", "c")


def test_trainable_counts_numbers_that_learn():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert trainable(model) == 3 * 4 + 4 + 2 * 4
    model[0].weight.requires_grad_(False)
    assert trainable(model) == 4 + 2 * 4
