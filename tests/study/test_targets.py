from __future__ import annotations

import dataclasses
from typing import Any

from pliant.study.simulated import SimulatedTask
from pliant.study.targets import base_target, best_score, score_of, steps_to_target

TASK = SimulatedTask()


def row(scores: list[float | None], status: str = "ok", first: int = 30) -> dict[str, Any]:
    steps = [first + 30 * i for i in range(len(scores))]
    known = [score for score in scores if score is not None]
    return {
        "status": status,
        "best_valid": max(known),
        "test_score": known[-1],
        "curve": {"step": steps, "valid_score": scores},
    }


def test_the_first_evaluation_at_the_target_counts() -> None:
    assert steps_to_target(row([0.1, 0.5, 0.4, 0.6]), 0.5, TASK) == 60
    assert steps_to_target(row([0.1, 0.5, 0.4, 0.6]), 0.6, TASK) == 120
    assert steps_to_target(row([None, 0.5]), 0.5, TASK) == 60


def test_a_missed_target_is_none() -> None:
    assert steps_to_target(row([0.1, 0.5]), 0.50001, TASK) is None


def test_lower_scores_reach_the_target_where_lower_is_better() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Loss(SimulatedTask):
        @property
        def higher_is_better(self) -> bool:
            return False

    assert steps_to_target(row([0.9, 0.5, 0.4]), 0.5, Loss()) == 60


def test_a_diverged_run_never_reached_anything_and_scores_the_worst() -> None:
    diverged = row([0.9, 0.95], status="diverged")
    assert steps_to_target(diverged, 0.5, TASK) is None
    assert best_score(diverged, TASK) == score_of(diverged, "test_score", TASK) == TASK.worst_score


def test_an_evaluation_before_the_first_step_counts_as_one_step() -> None:
    assert steps_to_target(row([0.9], first=0), 0.5, TASK) == 1


def test_the_metric_is_read_where_it_says() -> None:
    assert score_of(row([0.1, 0.7, 0.6]), "test_score", TASK) == 0.6
    assert score_of(row([0.1, 0.7, 0.6]), "valid_score", TASK) == 0.7


def test_the_target_is_the_median_best_of_the_given_rows() -> None:
    target = base_target([row([0.1, 0.7]), row([0.2, 0.8]), row([0.9], status="diverged")], 0.3, TASK)
    assert target.value == 0.7
    assert "median best validation accuracy in its 3 tuning runs at learning rate 0.3" in target.source
