"""A study as one plain JSON dict: what the report draws and `--json` prints."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .contract import Row, TaskLike
from .signflip import SignFlip
from .targets import steps_to_target
from .tuning import Tuned

if TYPE_CHECKING:
    from .study import Study

SCHEMA = 1
"""Version of the summary's form."""


def summarise(study: Study) -> dict[str, Any]:
    """The summary of a study, complete or not: verdicts and tuned rates are missing where runs are."""
    plan, task = study.plan, study.task
    tuned = study.tuned
    target = None if tuned is None else tuned.target
    return {
        "schema": SCHEMA,
        "title": study.title,
        "created": study.created,
        "complete": study.complete,
        "plan": {
            **plan.to_json(),
            "hash": plan.hash,
            "seeds": list(study.seeds),
            "unit": study.unit,
            "higher_is_better": study.higher_is_better,
            "look": study.look,
            "level": plan.level(study.look),
            "steps": task.steps,
            "batch_size": plan.task.get("batch_size"),
        },
        "target": {
            "value": None if target is None else target.value,
            "source": "the metric needs no target" if target is None else target.source,
        },
        "verdicts": [verdict.to_json() for verdict in study.verdicts()] if study.complete else [],
        "arms": {arm: _arm(study, arm, tuned) for arm in plan.arms},
        "descriptive": _descriptive(study) if study.complete else [],
        "environment": study.environment,
        "recipe": study.recipe,
        "notes": study.notes(),
    }


def _arm(study: Study, arm: str, tuned: Tuned | None) -> dict[str, Any]:
    tuning, runs = study.tuning_rows(arm), study.compared_rows(arm)
    target = None if tuned is None or tuned.target is None else tuned.target.value
    values = [study.value(row) for row in runs]
    timing = study.timing.get(arm, {"step_ms": None, "step_ms_ratio": None, "peak_mb": None})
    return {
        "rate": None if tuned is None else tuned.rates[arm],
        "rate_on_edge": tuned is not None and arm in tuned.on_edge,
        "tuning": [_tuning_point(row, target, study.task) for row in tuning],
        "curves": {"step": _steps(runs), **{name: _band(runs, name) for name in ("valid_score", "train_loss")}},
        "values": values,
        "test_scores": [row["test_score"] for row in runs],
        "changes": runs[0]["changes"] if runs else "",
        "parameters": runs[0]["parameters"] if runs else None,
        "cost": {
            "tuning_steps": sum(row["steps"] for row in tuning),
            "run_steps": sum(row["steps"] for row in runs),
            "tuning_seconds": math.fsum(row["seconds"] for row in tuning),
            "run_seconds": math.fsum(row["seconds"] for row in runs),
        },
        "timing": {**timing, "seconds_to_target": _seconds(study, values, timing["step_ms"])},
    }


def _tuning_point(row: Row, target: float | None, task: TaskLike) -> dict[str, Any]:
    reached = None if target is None else steps_to_target(row, target, task)
    point = {"rate": row["lr"], "seed": row["seed"], "best_valid": row["best_valid"]}
    return {**point, "steps_to_target": reached, "status": row["status"]}


def _seconds(study: Study, values: Sequence[float | None], step_ms: float | None) -> float | None:
    """Mean steps to the target (the budget where it was missed) times the step time."""
    if step_ms is None or not values or study.plan.metric != "steps_to_target":
        return None
    return statistics.fmean(study.task.steps if v is None else v for v in values) * step_ms / 1e3


def _steps(runs: Sequence[Row]) -> list[int]:
    return max((row["curve"]["step"] for row in runs), key=len, default=[])


def _band(runs: Sequence[Row], name: str) -> dict[str, list[float | None]]:
    """Mean, smallest and largest over the seeds at each evaluation; runs that had diverged by then are left out."""
    mean: list[float | None] = []
    low: list[float | None] = []
    high: list[float | None] = []
    for index in range(len(_steps(runs))):
        here = [row["curve"][name][index] for row in runs if index < len(row["curve"][name])]
        finite = [value for value in here if value is not None and math.isfinite(value)]
        mean.append(statistics.fmean(finite) if finite else None)
        low.append(min(finite, default=None))
        high.append(max(finite, default=None))
    return {"mean": mean, "lo": low, "hi": high}


def _descriptive(study: Study) -> list[dict[str, Any]]:
    """Test scores of every arm, unadjusted, whatever the primary metric is."""
    scores = {arm: [row["test_score"] for row in study.compared_rows(arm)] for arm in study.plan.arms}
    if any(score is None for values in scores.values() for score in values):
        return []
    base = scores[study.plan.base]
    return [
        {
            "what": f"test {study.task.unit}",
            "arm": arm,
            **_spread(values),
            **_against(values, None if values is base else base),
        }
        for arm, values in scores.items()
    ]


def _spread(values: Sequence[float]) -> Mapping[str, float]:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}


def _against(values: Sequence[float], base: Sequence[float] | None) -> Mapping[str, Any]:
    if base is None:
        return {"difference": None, "ci95": None}
    test = SignFlip([a - b for a, b in zip(values, base, strict=True)])
    return {"difference": test.mean, "ci95": [end if math.isfinite(end) else None for end in test.interval(0.95)]}
