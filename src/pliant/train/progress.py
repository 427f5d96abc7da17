"""What a person sees while a run trains: a bar on a terminal, a plain line for each validation elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO


class Progress:
    """A tracker for people. stream: where to write (stderr by default, so that stdout stays data); metric: its name.

    On a terminal: a bar with rate, time left and the last score. Piped: one plain line for each validation, no colour.
    """

    def __init__(self, stream: TextIO | None = None, metric: str = "accuracy") -> None:
        self.stream = sys.stderr if stream is None else stream
        self.metric = metric
        self._bar: Any = None
        self._began = (0, 0.0)
        self._steps = 0

    def start(self, facts: Mapping[str, Any], step: int, steps: int) -> None:
        self._began, self._steps = (step, time.perf_counter()), steps
        if not self.stream.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn(str(facts.get("arm") or "train")),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
            console=Console(file=self.stream),
        )
        self._bar.add_task("", total=steps, completed=step, rate="", told="")
        self._bar.start()

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        rate = f"{self._rate(step):.0f} steps/s"
        names = {"valid_score": f"valid {self.metric}", "valid_loss": "valid loss", "train_loss": "train loss"}
        told = [f"{names[key]} {_short(values[key])}" for key in names if key in values]
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, rate=rate, **({"told": told[0]} if told else {}))
        elif told:
            self.stream.write(f"step {step}/{self._steps}  {'  '.join(told)}  {rate}\n")
            self.stream.flush()

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self, step: int) -> float:
        first, began = self._began
        return (step - first) / max(time.perf_counter() - began, 1e-9)


def _short(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4f}"
