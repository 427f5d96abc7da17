"""What a stack did to a model, or would do: told to people as text, to programs as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from .edits import Edits


@dataclasses.dataclass(frozen=True)
class Entry:
    """One change (kind "change") or one place passed over (kind "skip") of one method."""

    method: str
    kind: str
    path: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Report:
    """order: methods as applied; notes: remarks on pairs and methods; parameters: trainable, before and after."""

    order: tuple[str, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    parameters: tuple[int, int]

    def changed(self, method: str | None = None) -> list[str]:
        """The paths that changed, of one method or all."""
        return [e.path for e in self.entries if e.kind == "change" and method in (None, e.method)]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        if not self.order:
            return "no methods: the model is as it was"
        lines = [f"order: {' → '.join(self.order)}"]
        for method in self.order:
            own = [entry for entry in self.entries if entry.method == method]
            changes = [entry for entry in own if entry.kind == "change"]
            lines.append(f"{method}: {len(changes)} change{'s' if len(changes) != 1 else ''}")
            width = max((len(entry.path) for entry in own), default=0)
            lines += [f"  {entry.path or '(the model)':<{width}}  {entry.detail}" for entry in changes]
            lines += [
                f"  {entry.path or '(the model)':<{width}}  left alone: {entry.detail}"
                for entry in own
                if entry.kind == "skip"
            ]
        lines += [f"note: {note}" for note in self.notes]
        before, after = self.parameters
        lines.append(f"trainable parameters: {before:,}" + (f" → {after:,}" if after != before else " (unchanged)"))
        return "\n".join(lines)


def entries(method: str, edits: Edits) -> list[Entry]:
    """A plan as report entries."""
    return [Entry(method, "change", edit.path, edit.detail) for edit in edits.changes] + [
        Entry(method, "skip", skip.path, skip.reason) for skip in edits.skipped
    ]


def trainable(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
