"""What one training run leaves behind: numbers, never objects."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from . import checks


def new_curve() -> dict[str, list[Any]]:
    """An empty curve: one entry per evaluation in each list."""
    return {"step": [], "train_loss": [], "valid_loss": [], "valid_score": []}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One training run. Two runs are the same run when all fields but `seconds` agree (`same`).

    arm: name in a study, "" outside; phase: "tune", "compare" or "train"; salt: other keys for A/A studies' arms.
    stack: the methods' JSON; steps: done; status: "ok" or "diverged".
    curve: "step", "train_loss" (mean of the batch losses since the previous evaluation, the stack's terms included),
    "valid_loss", "valid_score"; a loss that is no finite number is None.
    best_valid, final_valid: validation scores; test_score: read once at the end, only when asked. A diverged run has
    the task's worst score in all three. parameters: trainable ones; changes: the surgery's report ("" for none).
    seconds: wall time, descriptive only; threads: torch's threads.
    """

    arm: str
    phase: str
    seed: int
    salt: str
    lr: float
    stack: list[dict[str, Any]]
    steps: int
    status: str
    curve: dict[str, list[Any]]
    best_valid: float
    final_valid: float
    test_score: float | None
    parameters: int
    changes: str
    seconds: float
    threads: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunRecord:
        return checks.build(cls, values, "RunRecord")

    def same(self, other: RunRecord) -> bool:
        """Equality of everything but the measured time."""
        return dataclasses.replace(self, seconds=0.0) == dataclasses.replace(other, seconds=0.0)


def number(value: float) -> float | None:
    """A number that JSON can hold: None for nan and infinities."""
    return value if math.isfinite(value) else None
