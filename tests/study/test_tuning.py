from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pliant.core.errors import InputError
from pliant.study.plan import make_plan
from pliant.study.simulated import SimulatedTask
from pliant.study.tuning import MOST_EXTENSIONS, Tuned, tune

TASK = SimulatedTask()
Curve = Callable[[str, float, int], tuple[float, int]]
"""(arm, rate, tune seed) -> best score, step at which it is reached"""


def tuned(curve: Curve, **settings: Any) -> tuple[Tuned, list[tuple[float, ...]]]:
    settings = {"rates": [0.1, 1.0, 10.0], "salts": {"other": "x"}, **settings}
    plan = make_plan(TASK, {"base": [], "other": []}, **settings)
    grids: list[tuple[float, ...]] = []

    def rows(arm: str, rate: float) -> list[dict[str, Any]]:
        assert rate in grids[-1], "a rate was read before it was run"
        return [_row(*curve(arm, rate, seed)) for seed in plan.tune_seeds]

    def run_grid(grid: Sequence[float]) -> None:
        grids.append(tuple(grid))

    return tune(plan, TASK, rows, run_grid), grids


def _row(best: float, step: int) -> dict[str, Any]:
    status = "ok" if best > 0 else "diverged"
    return {"status": status, "best_valid": best, "curve": {"step": [step, 600], "valid_score": [best, best]}}


def test_scores_choose_the_highest_mean_of_each_arm() -> None:
    scores = {("base", 1.0): (0.9, 0.7), ("base", 0.1): (0.85, 0.7), ("other", 1.0): (0.9, 0.9)}
    found, grids = tuned(
        lambda arm, rate, seed: (scores.get((arm, rate), (0.5, 0.5))[seed - 1000], 300), metric="test_score"
    )
    assert found.rates == {"base": 1.0, "other": 1.0}
    assert found.target is None
    assert grids == [(0.1, 1.0, 10.0)]
    assert not found.on_edge


def test_steps_choose_the_fewest_median_steps_to_the_bases_median_best() -> None:
    # The base scores 0.90 and 0.91 at rate 1: the target is 0.905. The other arm scores highest at 0.1 but late.
    best = {"base": {0.03: 0.5, 0.1: 0.6, 1.0: 0.9, 10.0: 0.8}, "other": {0.03: 0.5, 0.1: 0.95, 1.0: 0.93, 10.0: 0.9}}
    late = {0.1: 400, 1.0: 200}

    def curve(arm: str, rate: float, seed: int) -> tuple[float, int]:
        return best[arm][rate] + (seed - 1000) / 100, late.get(rate, 300)

    found, _ = tuned(curve, rates=[0.03, 0.1, 1.0, 10.0])
    assert found.target is not None
    assert found.target.value == pytest.approx(0.905)
    assert found.rates == {"base": 1.0, "other": 1.0}


def test_one_quick_run_beside_a_miss_does_not_choose_a_rate() -> None:
    """The base sets its target at rate 0.1; at rate 1 one run is quick and the other is lost."""
    best = {(0.1, 1000): 0.90, (0.1, 1001): 0.92, (1.0, 1000): 0.95, (1.0, 1001): 0.40}
    late = {0.1: 400, 1.0: 20}
    found, _ = tuned(lambda arm, rate, seed: (best.get((rate, seed), 0.3), late.get(rate, 300)))
    assert found.target is not None and found.target.value == pytest.approx(0.91)
    assert found.rates == {"base": 0.1, "other": 0.1}


def test_equal_steps_are_decided_by_the_score_and_equal_scores_by_the_smaller_rate() -> None:
    found, _ = tuned(lambda arm, rate, seed: (0.8 if rate == 1.0 else 0.7, 300), target=0.5)
    assert found.rates["base"] == 1.0
    found, _ = tuned(lambda arm, rate, seed: (0.8, 300 if rate == 0.1 else 200), target=0.5)
    assert found.rates["base"] == 1.0


def test_a_winner_on_the_edge_extends_the_grid_for_all_arms() -> None:
    # The other arm is best at 100, the next rate outside the grid, which then has rates on both sides.
    best = {"base": {1.0: 0.9}, "other": {10.0: 0.8, 100.0: 0.9}}
    found, grids = tuned(lambda arm, rate, seed: (best[arm].get(rate, 0.5), 300), metric="test_score")
    assert grids == [(0.1, 1.0, 10.0), (0.1, 1.0, 10.0, 100.0), (0.1, 1.0, 10.0, 100.0, 1000.0)]
    assert found.rates == {"base": 1.0, "other": 100.0}
    assert not found.on_edge


@pytest.mark.parametrize("sign", [1, -1])
def test_the_extension_is_bounded_and_the_edge_is_reported(sign: int) -> None:
    def curve(arm: str, rate: float, seed: int) -> tuple[float, int]:
        return (
            0.5 + sign * 0.01 * min(max(rate, 1e-4), 1e4) ** 0.1 if arm == "other" else 0.5 + 0.1 * (rate == 1.0)
        ), 300

    found, grids = tuned(curve, metric="test_score")
    assert len(grids) == 1 + MOST_EXTENSIONS
    assert len(found.grid) == 3 + MOST_EXTENSIONS
    assert found.on_edge == {"other"}
    assert found.rates["other"] == (1000.0 if sign > 0 else 0.001)


def test_one_rate_is_never_extended() -> None:
    found, grids = tuned(lambda arm, rate, seed: (0.8, 300), rates=[1.0])
    assert grids == [(1.0,)]
    assert found.target is not None
    assert not found.on_edge


def test_nothing_to_choose_runs_nothing() -> None:
    found, grids = tuned(lambda arm, rate, seed: (0.8, 300), rates=[1.0], target=0.9, tune_seeds=0)
    assert grids == []
    assert found.target is not None
    assert found.target.value == 0.9


def test_a_base_that_always_diverges_sets_no_target() -> None:
    with pytest.raises(InputError, match="diverged in all its tuning runs"):
        tuned(lambda arm, rate, seed: (0.0 if arm == "base" else 0.9, 300))


def test_a_diverged_rate_is_not_chosen() -> None:
    found, _ = tuned(lambda arm, rate, seed: (0.0 if rate >= 10 else 0.9 - 0.1 * (rate < 1), 300), metric="valid_score")
    assert found.rates == {"base": 1.0, "other": 1.0}
