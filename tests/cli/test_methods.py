from __future__ import annotations

from typing import Any

import pytest

from pliant.core import registry, stack
from pliant.core.stack import Pair


def test_lists_every_method_with_its_paper(pliant: Any) -> None:
    result = pliant("methods")
    assert result.code == 0
    lines = result.out.splitlines()
    for name in registry.names():
        line = next(line for line in lines if line.startswith(f"{name} "))
        assert registry.get(name).meta.paper in line
        assert registry.get(name).meta.summary in line
    assert "\x1b" not in result.out


def test_json_has_one_entry_per_method(pliant: Any) -> None:
    facts = {entry["name"]: entry for entry in pliant("methods", "--json").json}
    assert list(facts) == registry.names()
    assert facts["batch_norm"]["edits"] == ["site"]
    assert facts["batch_norm"]["class"] == "BatchNorm"


def test_conflicts_are_seen_from_both_sides(pliant: Any) -> None:
    facts = {entry["name"]: entry["conflicts"] for entry in pliant("methods", "--json").json}
    assert "batchless_norm" in facts["batch_norm"]
    for name, others in facts.items():
        assert name not in others
        assert all(name in facts[other] for other in others)


def test_a_note_is_no_conflict(pliant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def conflicts(a: Any, b: Any) -> list[Pair]:
        kind = "refused" if {a.name, b.name} == {"batch_norm", "weight_norm"} else "note"
        return [Pair(a.name, b.name, kind, "because")]

    monkeypatch.setattr(stack, "conflicts", conflicts)
    facts = {entry["name"]: entry["conflicts"] for entry in pliant("methods", "--json").json}
    assert facts["batch_norm"] == {"weight_norm": "because"}
    assert facts["stochastic_depth"] == {}
