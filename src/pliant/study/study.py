"""`compare`: the whole honest comparison, and the Study it leaves behind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant.core.errors import InputError

from .contract import Row, Run, TaskLike, default_run, load_task
from .environment import describe_machine
from .plan import Arms, StudyPlan, make_plan
from .results import Results
from .runner import Runner
from .store import Key, Store
from .summary import summarise
from .timing import TimeStep, default_time_step, time_arms
from .tuning import tune

Progress = Callable[[str, int, int], None]
"""progress(phase, done, total), called in the coordinator after each finished run."""

REPORTER = "pliant.report:write"
"""What `Study.report` calls, resolved by name when called: reports are built on studies, never the other way round."""


def compare(
    task: Any,
    arms: Arms,
    *,
    store: str | Path | None = None,
    workers: int | None = None,
    backend: str = "loky",
    run: Run | None = None,
    progress: Progress | None = None,
    title: str = "",
    recipe: str = "",
    **plan: Any,
) -> Study:
    """Compare arms with a base on the same seeds, data order, split and tuning budget; returns the finished Study.

    task: a `pliant.train.Task`; arms: name -> methods, one of them called "base" (or name it: base=).
    seeds: how many (default 8) or which; rates: the learning-rate grid that every arm is tuned on; metric:
    "steps_to_target" (default), "test_score" or "valid_score"; and tune_seeds, target, margin, alpha, looks, salts:
    see `pliant.study.plan.make_plan`. All of it is fixed and hashed before the first run.
    store: SQLite file; a killed study called again continues from it. workers: processes (default one per core);
    backend: "loky", "dask" or "ray". title, recipe: kept for the report.
    InputError: for a plan that cannot be honest (too few seeds, equal arms), or a store with another plan.
    """
    study = Study(
        make_plan(task, arms, **plan),
        task,
        Store(store),
        run=run,
        workers=workers,
        backend=backend,
        facts={"title": title, "recipe": recipe},
    )
    return study.resume(progress)


class Study(Results):
    """A planned comparison and its rows, in a store. `resume` runs what is missing; everything else reads."""

    def __init__(
        self,
        plan: StudyPlan,
        task: TaskLike,
        store: Store,
        *,
        run: Run | None = None,
        workers: int | None = None,
        backend: str = "loky",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(plan, task, store)
        self._run, self._workers, self._backend = run, workers, backend
        store.open(plan, {**(facts or {}), "environment": describe_machine(task.threads)})

    @classmethod
    def load(
        cls, path: str | Path, *, task: TaskLike | None = None, run: Run | None = None, workers: int | None = None
    ) -> Study:
        """The study in a file. task: needed only when the plan's task held objects in memory."""
        if not Path(path).is_file():
            raise InputError(f"there is no study at {path}: check the path")
        store = Store(path)
        plan = store.plan()
        return cls(plan, load_task(plan.task) if task is None else task, store, run=run, workers=workers)

    def save(self, path: str | Path) -> None:
        """Copy the study to another file."""
        self.store.copy(path)

    # -- running -----------------------------------------------------------------------------------------------------

    def resume(self, progress: Progress | None = None) -> Study:
        """Run what is missing: tuning, then the compared runs. A finished study runs nothing."""
        self.store.flush()
        runner = Runner(self._run or default_run(), self.task, self.plan.arms, self._workers, self._backend)

        def execute(keys: Sequence[Key]) -> None:
            missing = [key for key in keys if self.store.row(key) is None]
            done = len(keys) - len(missing)

            def save(key: Key, row: Row) -> None:
                nonlocal done
                self.store.add(key, row)
                done += 1
                if progress is not None:
                    progress(key.phase, done, len(keys))

            if missing:
                runner.execute(missing, save=save, fail=self.store.add_failure)

        tuned = tune(self.plan, self.task, self._rows_at, lambda grid: execute(self._tuning_keys(grid)))
        execute(self._compared_keys(tuned))
        return self

    def extend(self, more_seeds: int, progress: Progress | None = None) -> Study:
        """Add seeds as the next planned look, which is tested at alpha / 2^look; the rates and target stay."""
        if not self.complete:
            raise InputError(f"the study is not complete ({self.missing()}): .resume() it before extending it")
        if self.plan.looks is not None and self.look >= self.plan.looks:
            raise InputError(
                f"the plan has {self.plan.looks} look(s) and all of alpha is spent: more seeds now would raise the "
                "chance of a false alarm; plan a new study with more seeds"
            )
        if more_seeds < 1:
            raise InputError(f"more_seeds is {more_seeds}; expected at least 1")
        taken = set(self.seeds) | set(self.plan.tune_seeds)
        fresh = (seed for seed in range(max(self.seeds) + 1, max(taken) + more_seeds + 2) if seed not in taken)
        self.store.add_look(tuple(seed for seed, _ in zip(fresh, range(more_seeds), strict=False)))
        return self.resume(progress)

    def time(self, *, steps: int = 50, rounds: int = 3, time_step: TimeStep | None = None) -> Study:
        """Measure step time and peak memory of every arm in a serial pass of its own: `rounds` times `steps` steps."""
        tuned = self.tuned
        if tuned is None:
            raise InputError(f"the tuning is not complete ({self.missing()}): .resume() it before timing")
        found = time_arms(
            self.task,
            self.plan.arms,
            tuned.rates,
            self.plan.base,
            steps=steps,
            rounds=rounds,
            time_step=time_step or default_time_step(),
        )
        self.store.set_fact("timing", found)
        return self

    # -- handing on --------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """The study as one JSON dict, complete or not."""
        return summarise(self)

    def report(self, path: str | Path) -> Path:
        """Write the study as one self-contained HTML file."""
        module, _, name = REPORTER.partition(":")
        getattr(importlib.import_module(module), name)(self.summary(), path)
        return Path(path)
