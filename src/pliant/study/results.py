"""The reading side of a study: its rows by arm, the tuned rates, the verdicts, the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pliant.core.errors import InputError, nearest

from . import table
from .contract import Row, TaskLike, describe
from .plan import StudyPlan
from .store import Key, Store
from .targets import score_of, steps_to_target
from .tuning import MOST_EXTENSIONS, Tuned, needs_tuning, tune
from .verdict import Rules, Sample, Verdict, judge


class _Missing(Exception):
    """A tuning run is not there yet."""


class Results:
    """A plan, its task and the store of its rows."""

    def __init__(self, plan: StudyPlan, task: TaskLike, store: Store) -> None:
        self.plan, self.task, self.store = plan, task, store

    # -- facts -------------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """The given title, or what is compared on what."""
        given = str(self.store.fact("title", ""))
        return given or f"{', '.join(self.plan.others)} against {self.plan.base}: {describe(self.plan.task)}"

    @property
    def recipe(self) -> str:
        """The recipe's text, when the study was started from one."""
        return str(self.store.fact("recipe", ""))

    @property
    def created(self) -> str:
        """When the plan was fixed, ISO 8601."""
        return str(self.store.fact("created", ""))

    @property
    def environment(self) -> dict[str, Any]:
        """Where the study was started."""
        return dict(self.store.fact("environment", {}))

    @property
    def timing(self) -> dict[str, Row]:
        """Arm -> step_ms, step_ms_ratio, peak_mb; empty before `Study.time`."""
        return dict(self.store.fact("timing", {}))

    @property
    def look(self) -> int:
        """1, and one more for every extension."""
        return len(self.store.looks())

    @property
    def seeds(self) -> tuple[int, ...]:
        """The compared seeds of all looks, in the order they were added."""
        return self.seeds_at(self.look)

    def seeds_at(self, look: int) -> tuple[int, ...]:
        """The compared seeds up to a look."""
        return tuple(seed for added in self.store.looks()[:look] for seed in added)

    @property
    def in_steps(self) -> bool:
        """Whether the primary metric is steps to a target."""
        return self.plan.metric == "steps_to_target"

    @property
    def unit(self) -> str:
        """Unit of the primary metric."""
        return "steps" if self.in_steps else self.task.unit

    @property
    def higher_is_better(self) -> bool:
        """Direction of the primary metric."""
        return not self.in_steps and self.task.higher_is_better

    # -- rows --------------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """All finished runs' records, sorted by phase, arm, rate, seed and salt."""
        return list(self.store.rows().values())

    def tuning_rows(self, arm: str) -> list[Row]:
        """An arm's tuning runs, by rate and seed."""
        return [row for key, row in self.store.rows().items() if key.phase == "tune" and key.arm == arm]

    def compared_rows(self, arm: str, look: int | None = None) -> list[Row]:
        """An arm's compared runs in the order of the seeds, up to a look; those not run yet are left out."""
        if self.tuned is None:
            return []
        keys = [self._compared_key(arm, seed, self.tuned) for seed in self.seeds_at(look or self.look)]
        return [row for key in keys if (row := self.store.row(key)) is not None]

    @property
    def tuned(self) -> Tuned | None:
        """The tuned rates and the target; None while tuning runs are missing."""

        def check(grid: Sequence[float]) -> None:
            if any(self.store.row(key) is None for key in self._tuning_keys(grid)):
                raise _Missing

        try:
            return tune(self.plan, self.task, self._rows_at, check)
        except _Missing:
            return None

    @property
    def complete(self) -> bool:
        """Whether all runs of all looks are there."""
        return self.tuned is not None and all(len(self.compared_rows(arm)) == len(self.seeds) for arm in self.plan.arms)

    def value(self, row: Row) -> float | None:
        """The primary metric of a compared run; None: the target was not reached."""
        if not self.in_steps:
            return score_of(row, self.plan.metric, self.task)
        assert self.tuned is not None and self.tuned.target is not None
        return steps_to_target(row, self.tuned.target.value, self.task)

    # -- verdicts ----------------------------------------------------------------------------------------------------

    def verdicts(self, look: int | None = None) -> list[Verdict]:
        """One verdict per arm against the base; look: as it stood at an earlier look."""
        look = self.look if look is None else look
        if not self.complete:
            raise InputError(f"there is no verdict yet: {self.missing()}; .resume() the study")
        last = self.plan.looks is not None and look >= self.plan.looks
        rules = Rules(
            unit=self.unit,
            higher_is_better=self.higher_is_better,
            margin=self.plan.margin,
            level=self.plan.level(look),
            next_level=None if last else self.plan.level(look + 1),
            conditions=describe(self.plan.task),
        )
        samples = {arm: self._sample(self.compared_rows(arm, look)) for arm in self.plan.arms}
        return judge(self.plan.base, samples[self.plan.base], {arm: samples[arm] for arm in self.plan.others}, rules)

    def verdict(self, arm: str) -> Verdict:
        """The verdict on one arm; prints as a sentence."""
        if arm not in self.plan.others:
            raise InputError(f"no arm {arm!r} is compared with the base: {nearest(arm, self.plan.others)}")
        return self.verdicts()[self.plan.others.index(arm)]

    def table(self) -> str:
        """The verdicts as a plain text table, the sentences below it."""
        costs = {arm: sum(row["steps"] for row in self._all_rows(arm)) for arm in self.plan.arms}
        return table.render(self.title, self.plan.base, self.verdicts(), costs, self.notes())

    def missing(self) -> str:
        """What has not been run, in words."""
        if self.tuned is None:
            return "tuning runs are missing"
        there, planned = (
            sum(len(self.compared_rows(arm)) for arm in self.plan.arms),
            len(self.plan.arms) * len(self.seeds),
        )
        return f"{planned - there} of {planned} compared runs are missing"

    def notes(self) -> list[str]:
        """What a reader of the verdicts must know beside them."""
        plan, tuned = self.plan, self.tuned
        found = []
        if plan.looks != 1:
            found.append(
                f"Look {self.look} is tested at {plan.level(self.look):g}, not {plan.alpha:g}: more seeds may be added "
                f"later, and the chance of a false alarm over all looks stays at {plan.alpha:g}."
            )
        for look in range(1, self.look if self.complete else 1):
            before = ", ".join(f"{verdict.arm}: {verdict.verdict}" for verdict in self.verdicts(look))
            found.append(f"At look {look}, with {len(self.seeds_at(look))} seeds: {before}.")
        if plan.salts:
            found.append(f"A/A arms, which differ from another arm in their random keys only: {', '.join(plan.salts)}.")
        if not needs_tuning(plan):
            found.append(f"Nothing was tuned: every arm ran at learning rate {plan.rates[0]:g}.")
        if len(plan.rates) > 1:
            found.append(
                f"Rates were chosen on {len(plan.tune_seeds)} tuning seeds; luck in that choice is part of what is "
                "compared, and more tune_seeds make it smaller."
            )
        if tuned is not None and len(tuned.grid) > len(plan.rates):
            found.append(
                "A best rate lay on the grid's edge, so the grid was extended for all arms, from "
                f"{plan.rates[0]:g}-{plan.rates[-1]:g} to {tuned.grid[0]:g}-{tuned.grid[-1]:g}."
            )
        if tuned is not None and tuned.on_edge:
            found.append(
                f"Still on the edge after {MOST_EXTENSIONS} extensions at an end: {', '.join(sorted(tuned.on_edge))}; "
                "a rate outside the grid may be better."
            )
        found += [f"Not finished: {key} ({error})." for key, (_, error) in self.store.failures().items()]
        return found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _sample(self, rows: Sequence[Row]) -> Sample:
        values = [self.value(row) for row in rows]
        return Sample(
            values=[float(self.task.steps) if value is None else float(value) for value in values],
            reached=[value is not None for value in values] if self.in_steps else None,
            diverged=sum(row["status"] == "diverged" for row in rows),
        )

    def _all_rows(self, arm: str) -> list[Row]:
        return self.tuning_rows(arm) + self.compared_rows(arm)

    def _key(self, phase: str, arm: str, rate: float, seed: int) -> Key:
        return Key(phase, arm, rate, seed, self.plan.salts.get(arm, ""))

    def _tuning_keys(self, grid: Sequence[float]) -> list[Key]:
        # Seed by seed, so that an interrupted study has whole pairs.
        return [
            self._key("tune", arm, rate, s) for s in self.plan.tune_seeds for rate in grid for arm in self.plan.arms
        ]

    def _compared_key(self, arm: str, seed: int, tuned: Tuned) -> Key:
        return self._key("compare", arm, tuned.rates[arm], seed)

    def _compared_keys(self, tuned: Tuned) -> list[Key]:
        return [self._compared_key(arm, seed, tuned) for seed in self.seeds for arm in self.plan.arms]

    def _rows_at(self, arm: str, rate: float) -> list[Row]:
        rows = (self.store.row(self._key("tune", arm, rate, seed)) for seed in self.plan.tune_seeds)
        return [row for row in rows if row is not None]
