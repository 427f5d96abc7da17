"""What commands print: results on stdout, messages on stderr; colours and boxes on a terminal only.

rich honours NO_COLOR. Piped output is plain text without escape codes, a table one line per row.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class Output:
    """as_json: results are printed by `data` alone, everything else is silent or goes to stderr."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def rich(self) -> bool:
        """Whether a person at a terminal reads stdout."""
        return not self.as_json and sys.stdout.isatty()

    def data(self, value: Any) -> None:
        """The result for programs; printed with --json only."""
        if self.as_json:
            print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))

    def line(self, text: str = "") -> None:
        """A line of the result for people."""
        if not self.as_json:
            print(text)

    def say(self, text: str) -> None:
        """A message about what is going on."""
        print(text, file=sys.stderr, flush=True)

    def heading(self, text: str) -> None:
        """A title above what follows."""
        if self.as_json:
            return
        if self.rich:
            from rich.console import Console
            from rich.text import Text

            Console().print(Text(f"\n{text}", style="bold"))
        else:
            print(f"\n{text}")

    def markdown(self, text: str) -> None:
        """Markdown, rendered on a terminal."""
        if self.rich:
            from rich.console import Console
            from rich.markdown import Markdown

            Console().print(Markdown(text))
        else:
            self.line(text.rstrip("\n"))

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str] | None = None
    ) -> None:
        """A table for people. styles: cell text -> rich style."""
        if self.as_json:
            return
        if not self.rich:
            print(plain_table(header, rows))
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for title in header:
            table.add_column(title, overflow="fold")
        for row in rows:
            # Text, never markup: names are the user's.
            table.add_row(*(Text(cell, style=(styles or {}).get(cell, "")) for cell in row))
        Console().print(table)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with blanks, the last one as long as it is; line breaks inside cells become blanks.

    >>> print(plain_table(["name", "n"], [["a", "1"], ["long", "22"]]))
    name  n
    ----  --
    a     1
    long  22
    """
    cells = [[" ".join(cell.split()) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    widths[-1] = min(widths[-1], 60)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
