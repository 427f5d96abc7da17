"""How far a study is: bars with the time left on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

EVERY = 10.0
"""Seconds between two lines when nobody watches a terminal."""

PHASES = {"tune": "tuning", "compare": "comparing"}


class StudyProgress:
    """Called with (phase, done, total) after each run, between `with` entry and exit.

    compared: compared runs planned; they are still to come while the tuning runs, and count in the time left.
    """

    def __init__(self, compared: int) -> None:
        self._compared = compared
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._began = self._told = time.monotonic()
        self._finished = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._finished += 1
        left = self._left(phase, done, total)
        name = PHASES.get(phase, phase)
        if self._bar is not None:
            if phase not in self._tasks:
                for task in self._tasks.values():
                    self._bar.update(task, left="")
                self._tasks[phase] = self._bar.add_task(name, total=total, left="")
            self._bar.update(self._tasks[phase], completed=done, total=total, left=left)
            return
        now = time.monotonic()
        if now - self._told >= EVERY or done == total:
            self._told = now
            print(f"{name} {done}/{total}{', ' + left if left else ''}", file=sys.stderr, flush=True)

    def _left(self, phase: str, done: int, total: int) -> str:
        """Runs differ little in length, so the mean of those finished here foretells the rest."""
        remaining = total - done + (self._compared if phase == "tune" else 0)
        if not remaining:
            return ""
        seconds = (time.monotonic() - self._began) / self._finished * remaining
        return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"
