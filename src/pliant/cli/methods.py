"""The methods: name, paper, what they do, what they edit, and what they cannot be combined with."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from .output import Output
from .parser import Parser

PARTS = {
    "terms": "adds to the loss",
    "loss": "replaces the loss",
    "before_step": "acts before a step",
    "after_step": "acts after a step",
}
"""Parts of a method that work outside the model's structure, in words."""


def configure(parser: Parser) -> None:
    """No arguments of its own."""


def execute(args: Namespace, out: Output) -> int:
    facts = describe()
    out.data(facts)
    out.table(
        ["name", "what it does", "edits", "not with", "paper"],
        [
            [f["name"], f["summary"], ", ".join(f["edits"]), ", ".join(sorted(f["conflicts"])) or "–", f["paper"]]
            for f in facts
        ],
    )
    out.line("\nmore about one of them: pliant card NAME")
    return 0


def describe() -> list[dict[str, Any]]:
    """Every registered method's facts; conflicts: name -> reason, as declared for the default settings."""
    from pliant.core import registry
    from pliant.core.method import overrides
    from pliant.core.stack import conflicts

    made = {name: registry.get(name)() for name in registry.names()}
    facts = []
    for name, method in made.items():
        refused = {
            other: pair.reason
            for other, second in made.items()
            for pair in conflicts(method, second)
            if other != name and pair.kind == "refused"
        }
        parts = [words for part, words in PARTS.items() if overrides(method, part)]
        facts.append(
            {
                "name": name,
                "class": type(method).__name__,
                "title": method.meta.title,
                "paper": method.meta.paper,
                "summary": method.meta.summary,
                "edits": [method.meta.phase.name.lower(), *parts],
                "conflicts": refused,
            }
        )
    return facts
