"""Runs spread over workers; the caller's `save` gets each record as it finishes, in the coordinator's process.

joblib spreads them: "loky" over this machine's cores, "dask" and "ray" over clusters. Workers set torch's threads from
the task, so their number never changes a number. A worker that dies (killed, out of memory, a crash in native code)
takes its pool with it: the runs that were under way are tried again one at a time, which shows whose fault it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import itertools
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pliant.core.errors import InputError, PliantError, nearest

from .contract import Row, Run, TaskLike, rebuild
from .store import Key

BACKENDS = ("loky", "dask", "ray")
MOST_ATTEMPTS = 3
"""Times a run may take its worker down before it counts as failed."""

Save = Callable[[Key, Row], None]
Fail = Callable[[Key, int, str], None]


class RunsFailed(PliantError):
    """Some runs could not be finished; all others are in the store."""


@dataclasses.dataclass(frozen=True)
class _Outcome:
    key: Key
    row: Row | None
    error: str = ""
    user_error: bool = False


@dataclasses.dataclass(frozen=True)
class Runner:
    """run: the training function; stacks: arm -> the methods' JSON; workers: processes (1: this process).

    workers None: as many as the machine or cluster has cores for, at the task's threads each.
    backend: "loky", "dask" (a distributed.Client must exist) or "ray".
    """

    run: Run
    task: TaskLike
    stacks: Mapping[str, Sequence[Mapping[str, Any]]]
    workers: int | None = None
    backend: str = "loky"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"the backend is {self.backend!r}: {nearest(self.backend, BACKENDS)}")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers is {self.workers}; expected at least 1, or None for one per core")

    @property
    def count(self) -> int:
        """The number of workers; -1 leaves it to the cluster."""
        if self.workers is not None:
            return self.workers
        if self.backend != "loky":
            return -1
        import joblib

        return max(1, joblib.cpu_count() // self.task.threads)

    def execute(self, keys: Sequence[Key], *, save: Save, fail: Fail) -> None:
        """Run every key once. RunsFailed names those that failed, after all others are saved."""
        failed: dict[Key, str] = {}

        def take(outcome: _Outcome) -> None:
            if outcome.row is not None:
                save(outcome.key, outcome.row)
            elif outcome.user_error:
                # The user's own mistake is the same in every run: stop at the first.
                raise InputError(f"{outcome.key}: {outcome.error}")
            else:
                failed[outcome.key] = outcome.error
                fail(outcome.key, 1, outcome.error)

        if self.backend == "loky" and self.count == 1:
            with _threads_restored():
                for key in keys:
                    take(self._job(key)())
        else:
            self._spread(keys, take, failed, fail)
        if failed:
            raise RunsFailed(_summary(failed))

    def _job(self, key: Key) -> functools.partial[_Outcome]:
        return functools.partial(_work, self.run, self.task, list(self.stacks[key.arm]), key)

    def _spread(
        self, keys: Sequence[Key], take: Callable[[_Outcome], None], failed: dict[Key, str], fail: Fail
    ) -> None:
        remaining = dict.fromkeys(keys)
        while remaining:
            for key in self._pool(remaining, take)[0]:
                del remaining[key]
                error = self._alone(key, take)
                if error:
                    failed[key] = f"its worker process died {MOST_ATTEMPTS} times ({error})"
                    fail(key, MOST_ATTEMPTS, failed[key])

    def _alone(self, key: Key, take: Callable[[_Outcome], None]) -> str:
        """Try a run that was under way when a worker died; alone in the pool, another death is its own."""
        error = ""
        for _ in range(MOST_ATTEMPTS - 1):
            suspects, error = self._pool({key: None}, take)
            if not suspects:
                return ""
        return error

    def _pool(self, remaining: dict[Key, None], take: Callable[[_Outcome], None]) -> tuple[list[Key], str]:
        """Run `remaining`, removing what is done; the runs under way and the error when a worker died."""
        started: dict[Key, None] = {}

        def jobs() -> Iterator[functools.partial[_Outcome]]:
            for key in list(remaining):
                started[key] = None
                yield self._job(key)

        outcomes = _ray(jobs(), self.task.threads) if self.backend == "ray" else self._joblib(jobs())
        with _closing(outcomes):
            while True:
                try:
                    outcome = next(outcomes)
                except StopIteration:
                    return [], ""
                except pickle.PicklingError as error:
                    raise InputError(
                        f"the task or the run function cannot be sent to a worker process ({error}): give the "
                        "model and data by name or as importable objects, or use workers=1"
                    ) from error
                except Exception as error:
                    # Errors of a run come back as outcomes, so this is the pool's.
                    suspects = [key for key in started if key in remaining]
                    if not suspects:
                        raise
                    return suspects, f"{type(error).__name__}: {str(error).partition('.')[0]}"
                remaining.pop(outcome.key)
                take(outcome)

    def _joblib(self, jobs: Iterator[functools.partial[_Outcome]]) -> Any:
        """Outcomes as they finish."""
        import joblib

        limits = {"inner_max_num_threads": self.task.threads} if self.backend == "loky" else {}
        if self.backend == "dask":
            _installed("distributed")
        with joblib.parallel_config(backend=self.backend, **limits):
            pool = joblib.Parallel(
                n_jobs=self.count, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs"
            )
            return pool(joblib.delayed(job)() for job in jobs)


def _ray(jobs: Iterator[functools.partial[_Outcome]], threads: int) -> Iterator[_Outcome]:
    """Outcomes as they finish. joblib's own Ray backend returns nothing before everything is done."""
    ray = _installed("ray")
    if not ray.is_initialized():
        ray.init()
    # A dead worker's run is tried again by us, who count, not by Ray.
    remote = ray.remote(num_cpus=threads, max_retries=0)(_call)
    slots = 2 * max(1, int(ray.cluster_resources()["CPU"]) // threads)
    running = [remote.remote(job) for job in itertools.islice(jobs, slots)]
    try:
        while running:
            (done,), running = ray.wait(running, num_returns=1)
            running += [remote.remote(job) for job in itertools.islice(jobs, 1)]
            yield ray.get(done)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _call(job: functools.partial[_Outcome]) -> _Outcome:
    return job()


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name!r} is not installed ({error}): pip install 'pliant[cluster]'") from error


@contextlib.contextmanager
def _closing(outcomes: Any) -> Iterator[None]:
    """Cancel what is still running when the loop is left early; joblib's warning about that would hide the reason."""
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            outcomes.close()


_prepared = False


def _work(run: Run, task: TaskLike, stack: Sequence[Mapping[str, Any]], key: Key) -> _Outcome:
    """One run in a worker. Never raises: an exception would be taken for the pool's."""
    import torch

    if torch.get_num_threads() != task.threads:
        torch.set_num_threads(task.threads)
    _prepare()
    try:
        record = run(
            task,
            rebuild(stack),
            seed=key.seed,
            lr=key.rate,
            arm=key.arm,
            phase=key.phase,
            salt=key.salt,
            test=key.phase == "compare",
        )
        return _Outcome(key, record.to_json())
    except InputError as error:
        return _Outcome(key, None, str(error), user_error=True)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return _Outcome(key, None, f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})")


def _prepare() -> None:
    """Once a process: what torch's import left behind need not be searched again by every garbage collection."""
    global _prepared
    if not _prepared:
        gc.freeze()
        _prepared = True


@contextlib.contextmanager
def _threads_restored() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summary(failed: Mapping[Key, str]) -> str:
    lines: Iterable[str] = (f"  {key}: {error}" for key, error in list(failed.items())[:5])
    more = f"\n  and {len(failed) - 5} more" if len(failed) > 5 else ""
    runs = f"{len(failed)} run{'s' if len(failed) > 1 else ''} could not be finished"
    return f"{runs} (all others are stored; the same study run again retries only these):\n" + "\n".join(lines) + more
