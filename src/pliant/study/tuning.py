"""The same grid and budget for every arm, on seeds that are not compared.

The criterion: for scores, the highest mean best validation score. For steps to target, the fewest median steps among
the rates at which every tuning run reaches the target; where there is none, the highest mean best validation score
again, so that one lucky run does not choose a rate at which others fail. The target itself comes from the base's rate
with the best mean score. Equal rates are decided for the smaller one. A winner on the grid's edge extends the grid for
all arms, at most MOST_EXTENSIONS times at each end.

What the test of the compared runs cannot see is luck in tuning: an arm at an unlucky rate really is worse. More tuning
seeds make it rarer; the self-test measures how much it adds to the false alarms.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from pliant.core.errors import InputError

from .contract import Row, TaskLike
from .plan import StudyPlan
from .targets import Target, base_target, best_score, steps_to_target

MOST_EXTENSIONS = 2
"""Times the grid may grow at each end."""

Rows = Callable[[str, float], Sequence[Row]]
"""(arm, rate) -> its tuning rows, in the order of the plan's tuning seeds."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """grid: all rates tried, ascending; rates: arm -> its winner; on_edge: arms whose winner is still the outermost."""

    grid: tuple[float, ...]
    rates: dict[str, float]
    on_edge: frozenset[str]
    target: Target | None


def needs_tuning(plan: StudyPlan) -> bool:
    """Whether anything is chosen on the tuning seeds: a rate among several, or the target."""
    return len(plan.rates) > 1 or needs_target(plan)


def needs_target(plan: StudyPlan) -> bool:
    """Whether the base's tuning runs set the target."""
    return plan.metric == "steps_to_target" and plan.target is None


def tune(plan: StudyPlan, task: TaskLike, rows: Rows, run_grid: Callable[[Sequence[float]], None]) -> Tuned:
    """Run the grid (`run_grid` runs what is missing), choose, extend while a winner is on the edge.

    The outcome depends on the plan and the tuning rows alone, so a resumed study chooses the same.
    """
    if not needs_tuning(plan):
        return Tuned(plan.rates, dict.fromkeys(plan.arms, plan.rates[0]), frozenset(), _planned(plan))
    grid, below, above = plan.rates, 0, 0
    while True:
        run_grid(grid)
        chosen, target, winners = _choose(plan, task, rows, grid)
        if len(grid) == 1:
            return Tuned(grid, chosen, frozenset(), target)
        grow_down = grid[0] in winners and below < MOST_EXTENSIONS
        grow_up = grid[-1] in winners and above < MOST_EXTENSIONS
        if not (grow_down or grow_up):
            on_edge = frozenset(arm for arm, rate in chosen.items() if rate in (grid[0], grid[-1]))
            return Tuned(grid, chosen, on_edge, target)
        if grow_down:
            grid, below = (_beyond(grid[0], grid[1]), *grid), below + 1
        if grow_up:
            grid, above = (*grid, _beyond(grid[-1], grid[-2])), above + 1


def _planned(plan: StudyPlan) -> Target | None:
    return None if plan.target is None else Target(plan.target, "a number in the plan")


def _choose(
    plan: StudyPlan, task: TaskLike, rows: Rows, grid: Sequence[float]
) -> tuple[dict[str, float], Target | None, set[float]]:
    sign = -1.0 if task.higher_is_better else 1.0

    def by_score(arm: str, rate: float) -> float:
        return sign * statistics.fmean(best_score(row, task) for row in rows(arm, rate))

    winners, target = set(), _planned(plan)
    if needs_target(plan):
        rate = min(grid, key=lambda rate: by_score(plan.base, rate))
        if all(row["status"] == "diverged" for row in rows(plan.base, rate)):
            raise InputError(
                f"the base {plan.base!r} diverged in all its tuning runs at rates {grid[0]:g} to {grid[-1]:g}, so it "
                "sets no target: give lower rates, or a target"
            )
        winners.add(rate)
        target = base_target(rows(plan.base, rate), rate, task)

    def badness(arm: str, rate: float) -> tuple[float, ...]:
        if plan.metric != "steps_to_target" or target is None:
            return (by_score(arm, rate),)
        steps = [steps_to_target(row, target.value, task) for row in rows(arm, rate)]
        reached = [s for s in steps if s is not None]
        if len(reached) < len(steps):
            # One quick run beside one that missed says less about a rate than the scores of both.
            return 1.0, by_score(arm, rate), 0.0
        return 0.0, statistics.median(reached), by_score(arm, rate)

    chosen = {arm: min(grid, key=lambda rate: badness(arm, rate)) for arm in plan.arms}
    return chosen, target, winners | set(chosen.values())


def _beyond(edge: float, inner: float) -> float:
    """The next rate outside the grid, in the same ratio, rounded so that it prints as it is stored."""
    return float(f"{edge * edge / inner:.3g}")
