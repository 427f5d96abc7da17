from __future__ import annotations

from typing import Any

import pytest

from pliant.core import registry


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> str:
    text = "# Batch normalisation\n\nUse it in *convolutional* nets.\n"
    monkeypatch.setattr(registry, "card", lambda name: text if name == "batch_norm" else "")
    return text


def test_piped_card_is_the_file(pliant: Any, card: str) -> None:
    assert pliant("card", "batch_norm") == (0, card, "")


def test_class_names_are_taken_too(pliant: Any, card: str) -> None:
    assert pliant("card", "BatchNorm").out == card


def test_json(pliant: Any, card: str) -> None:
    found = pliant("card", "batch_norm", "--json").json
    assert found["name"] == "batch_norm"
    assert found["card"] == card
    assert found["paper"] == registry.get("batch_norm").meta.paper


def test_a_typo_names_the_nearest(pliant: Any) -> None:
    result = pliant("card", "weight_nrom")
    assert result.code == 2
    assert "did you mean 'weight_norm'" in result.err
