"""The verdicts as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from .verdict import Verdict
from .wording import interval, number, probability

WIDTH = 110


def render(title: str, base: str, verdicts: Sequence[Verdict], costs: Mapping[str, int], notes: Sequence[str]) -> str:
    """Title, one row per arm, the sentences and the notes; costs: arm -> steps trained, tuning included."""
    header = ("arm", "verdict", base, "arm's", "difference", "95 % interval", "p (Holm)", "pairs", "steps trained")
    body = [
        (
            verdict.arm,
            verdict.verdict,
            number(verdict.base_mean, verdict.unit),
            number(verdict.arm_mean, verdict.unit),
            f"{number(verdict.difference, verdict.unit)} {verdict.unit}",
            interval(verdict.ci95, verdict.unit),
            probability(verdict.p_holm),
            str(verdict.pairs),
            f"{costs[verdict.arm]} ({base} {costs[base]})",
        )
        for verdict in verdicts
    ]
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *body)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    words = [textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in (*map(str, verdicts), *notes)]
    return "\n".join([title, "", *lines, "", *words])
