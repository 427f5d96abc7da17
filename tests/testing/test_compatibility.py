"""docs/compatibility.md is what the battery finds, and tells it right."""

from __future__ import annotations

import itertools
from pathlib import Path

from pliant.core import registry
from pliant.testing.compatibility import markdown
from pliant.testing.pairs import try_pair

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        "run: python -m pliant.testing.compatibility > docs/compatibility.md"
    )


def test_some_net_holds_places_for_every_two_methods() -> None:
    classes = [registry.get(name) for name in registry.names()]
    apart = [(a.__name__, b.__name__) for a, b in itertools.combinations(classes, 2) if try_pair(a, b).kind == "apart"]
    assert not apart, f"no net of pliant.testing.nets holds places for {apart}; add one"


def test_a_declared_conflict_and_a_note_are_told() -> None:
    page = markdown()
    table = page.partition("Each method alone")[0].splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table if line.startswith("| ")}
    columns = [name.strip() for name in rows[""]]
    assert rows["batch_norm"][columns.index("batchless_norm")].strip().startswith("✗")
    assert rows["weight_norm"][columns.index("stochastic_depth")].strip() == "✓"
    assert "two normalisations on one site" in page
    assert "redundant in front of a batch norm" in page
