"""The compatibility page, from what the battery finds.

python -m pliant.testing.compatibility > docs/compatibility.md
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from pliant.core import registry
from pliant.core.method import Meta, Method

from .pairs import STEPS, Outcome, try_pair

_SIGNS = {"trains": "✓", "refused": "✗", "apart": "–"}
_FACTS = {
    "whole": "whole net, one graph",
    "parts": "in parts, gates in Python",
    "before": "not while training",
    "exact": "equal to one process",
    "per_rank": "own noise per process",
    "needs_sync": "own statistics per process",
}


def markdown() -> str:
    """The page about all registered methods."""
    classes = {name: registry.get(name) for name in registry.names()}
    pairs = {(a, b): try_pair(classes[a], classes[b]) for a, b in itertools.combinations(classes, 2)}
    return "\n".join(
        [
            "# Which methods go together",
            "",
            "Made by `python -m pliant.testing.compatibility` from what the battery finds; do not edit.",
            "",
            "## Every pair in one stack",
            "",
            f"✓ both in one stack train {STEPS} steps and finalize on a small net; ✗ refused with `ConflictError`, for "
            "the reason below;",
            "– no example net holds places for both. A number points to a note.",
            "",
            *_matrix(list(classes), pairs),
            "",
            *_reasons(pairs),
            "## Each method alone",
            "",
            "Declared in the method's `meta` and tested. *Function*: whether applying it keeps what the net computes.",
            "*Off*: settings with which training is bit for bit that of the plain net. *Accumulation*: whether",
            "micro-batches give the gradients of the whole batch. *Processes*: data parallel training.",
            "Batch norms that a net has of its own see the micro-batch or the process's part in any case.",
            "",
            *_facts(classes),
            "",
        ]
    )


def _matrix(names: Sequence[str], pairs: dict[tuple[str, str], Outcome]) -> Iterable[str]:
    numbers = _numbers(pairs)

    def cell(row: str, column: str) -> str:
        if row == column:
            return ""
        outcome = pairs[min(row, column), max(row, column)]
        notes = " ".join(str(numbers[note]) for note in outcome.notes)
        return f"{_SIGNS[outcome.kind]} {notes}".strip()

    return _table(["", *names], [[name, *(cell(name, other) for other in names)] for name in names])


def _numbers(pairs: dict[tuple[str, str], Outcome]) -> dict[str, int]:
    reasons = dict.fromkeys(note for outcome in pairs.values() for note in outcome.notes)
    return {reason: number for number, reason in enumerate(reasons, 1)}


def _reasons(pairs: dict[tuple[str, str], Outcome]) -> Iterable[str]:
    for reason, number in _numbers(pairs).items():
        yield f"{number}. {reason}"
    yield ""


def _facts(classes: dict[str, type[Method]]) -> Iterable[str]:
    def function(meta: Meta) -> str:
        if meta.function == "preserves":
            return "kept"
        return "changed" if meta.preserving is None else f"kept with {_settings(meta.preserving)}, else changed"

    rows = [
        [
            name,
            function(cls.meta),
            "–" if cls.meta.off is None else _settings(cls.meta.off),
            _FACTS[cls.meta.compile],
            "exact" if cls.meta.accumulation == "exact" else "per micro-batch",
            _FACTS[cls.meta.processes] + (", with find_unused_parameters" if cls.meta.may_skip_parameters else ""),
        ]
        for name, cls in classes.items()
    ]
    return _table(["method", "function", "off", "torch.compile", "accumulation", "processes"], rows)


def _settings(settings: object) -> str:
    return ", ".join(f"`{key}={value!r}`" for key, value in dict(settings).items())  # type: ignore[call-overload]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = [head, ["-" * max(width, 3) for width in widths], *rows]
    return [f"| {' | '.join(item.ljust(width) for item, width in zip(line, widths, strict=True))} |" for line in lines]


if __name__ == "__main__":
    print(markdown(), end="")
