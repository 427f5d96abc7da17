"""From a run's record to the number that is compared: targets, steps to them, censoring, diverged runs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from .contract import Row, TaskLike


@dataclasses.dataclass(frozen=True)
class Target:
    """The validation score to reach, and where it comes from."""

    value: float
    source: str


def best_score(row: Row, task: TaskLike) -> float:
    """Best validation score; the task's worst score when the run diverged."""
    return float(task.worst_score if row["status"] == "diverged" else row["best_valid"])


def steps_to_target(row: Row, target: float, task: TaskLike) -> int | None:
    """The first evaluated step whose validation score reaches the target; None when the budget ended before.

    A diverged run never reached it, whatever it scored on the way: nobody could use that model.
    """
    if row["status"] == "diverged":
        return None
    for step, score in zip(row["curve"]["step"], row["curve"]["valid_score"], strict=True):
        if score is not None and (score >= target if task.higher_is_better else score <= target):
            # An evaluation before the first step would make ratios of steps meaningless.
            return max(1, int(step))
    return None


def score_of(row: Row, metric: str, task: TaskLike) -> float:
    """The metric "test_score" or "valid_score" of a run."""
    if row["status"] == "diverged":
        return float(task.worst_score)
    return float(row["test_score"] if metric == "test_score" else row["best_valid"])


def base_target(rows: Sequence[Row], rate: float, task: TaskLike) -> Target:
    """The median best validation score of the base's tuning runs at its best rate.

    The compared runs must not set it: a target that the base's own compared runs reached by luck biases the comparison.
    """
    scores = [best_score(row, task) for row in rows]
    source = (
        f"the base's median best validation {task.unit} in its {len(scores)} tuning runs at learning rate {rate:g}, "
        "on seeds that are not compared"
    )
    return Target(statistics.median(scores), source)
