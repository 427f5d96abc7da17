from __future__ import annotations

import functools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.core.errors import InputError, SettingError
from pliant.study.runner import MOST_ATTEMPTS, Runner, RunsFailed
from pliant.study.simulated import SimulatedTask, simulated_run
from pliant.study.store import Key

KEYS = [Key("compare", "base", 0.3, seed) for seed in range(6)]


def execute(run: Any, workers: int, keys: list[Key] = KEYS, threads: int = 1) -> tuple[dict[Key, Any], list[Any]]:
    rows: dict[Key, Any] = {}
    failures: list[Any] = []
    runner = Runner(run, SimulatedTask(threads=threads), {"base": []}, workers)
    runner.execute(keys, save=rows.__setitem__, fail=lambda *failure: failures.append(failure))
    return rows, failures


# When a pool is stopped early, loky's manager thread may look for a job that was just cancelled and end with a
# KeyError, which pytest notices in whatever test comes next; the pool is thrown away then anyhow.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

# Workers cannot import test modules, so what they run is made here, inside functions: cloudpickle sends it by value.


def crashing(folder: Path, seed_dies: int, times: int) -> Any:
    """A run that takes its process down the first `times` times it is given one seed."""

    def run(task: Any, methods: Any, *, seed: int, **call: Any) -> Any:
        if seed == seed_dies:
            marks = len(list(folder.iterdir()))
            if marks < times:
                (folder / f"{marks}").touch()
                os._exit(1)
        return simulated_run(task, methods, seed=seed, **call)

    return run


def test_workers_give_the_same_rows_as_one_process() -> None:
    assert execute(simulated_run, 1) == execute(simulated_run, 2)
    assert len(execute(simulated_run, 2)[0]) == len(KEYS)


def test_the_run_gets_what_its_key_says() -> None:
    seen: list[Any] = []

    def run(task: Any, methods: Any, **call: Any) -> Any:
        seen.append((methods, call))
        return simulated_run(task, methods, **call)

    execute(run, 1, [Key("compare", "base", 0.3, 7, "salt"), Key("tune", "base", 0.1, 8)])
    assert seen == [
        ([], {"seed": 7, "lr": 0.3, "arm": "base", "phase": "compare", "salt": "salt", "test": True}),
        ([], {"seed": 8, "lr": 0.1, "arm": "base", "phase": "tune", "salt": "", "test": False}),
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_come_from_the_task_and_ours_are_put_back(workers: int) -> None:
    def run(task: Any, methods: Any, **call: Any) -> Any:
        record = simulated_run(task, methods, **call)
        object.__setattr__(record, "threads", torch.get_num_threads())
        return record

    before = torch.get_num_threads()
    for threads in (1, 2):
        rows, _ = execute(run, workers, KEYS[:2], threads)
        assert [row["threads"] for row in rows.values()] == [threads] * 2
    assert torch.get_num_threads() == before


def test_a_dead_workers_run_is_tried_again(tmp_path: Path) -> None:
    rows, failures = execute(crashing(tmp_path, 3, times=1), 2)
    assert rows == execute(simulated_run, 1)[0]
    assert failures == []


def test_a_run_that_always_kills_its_worker_fails_by_name_and_alone(tmp_path: Path) -> None:
    saved: dict[Key, Any] = {}
    failures: list[Any] = []
    runner = Runner(crashing(tmp_path, 3, times=99), SimulatedTask(), {"base": []}, 2)
    with pytest.raises(
        RunsFailed, match=r"1 run could not be finished.*\n.*compare run of arm 'base'.*seed 3.*died 3 times"
    ):
        runner.execute(KEYS, save=saved.__setitem__, fail=lambda *failure: failures.append(failure))
    assert set(saved) == set(KEYS) - {KEYS[3]}
    assert [failure[:2] for failure in failures] == [(KEYS[3], MOST_ATTEMPTS)]
    assert len(list(tmp_path.iterdir())) == MOST_ATTEMPTS


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_raises_fails_by_name_and_the_others_are_saved(workers: int) -> None:
    def run(task: Any, methods: Any, *, seed: int, **call: Any) -> Any:
        if seed == 2:
            raise RuntimeError("shape mismatch")
        return simulated_run(task, methods, seed=seed, **call)

    saved: dict[Key, Any] = {}
    runner = Runner(run, SimulatedTask(), {"base": []}, workers)
    with pytest.raises(RunsFailed, match=r"seed 2: RuntimeError: shape mismatch \(.*line \d+\)"):
        runner.execute(KEYS, save=saved.__setitem__, fail=lambda *_: None)
    assert set(saved) == set(KEYS) - {KEYS[2]}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_users_own_mistake_stops_at_the_first_run(workers: int) -> None:
    def run(task: Any, methods: Any, **call: Any) -> Any:
        raise SettingError("no such data set")

    with pytest.raises(InputError, match=r"compare run of arm 'base'.*no such data set"):
        execute(run, workers)


def test_an_error_while_saving_stops_the_workers() -> None:
    def save(key: Key, row: Any) -> None:
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the disk is full"):
        Runner(simulated_run, SimulatedTask(), {"base": []}, 2).execute(KEYS, save=save, fail=lambda *_: None)


def test_what_cannot_be_sent_to_a_worker_is_refused() -> None:
    class Locked(SimulatedTask):
        def __reduce__(self) -> Any:
            raise pickle.PicklingError("cannot pickle a lock")

    with pytest.raises(InputError, match="cannot be sent to a worker process"):
        Runner(simulated_run, Locked(), {"base": []}, 2).execute(KEYS, save=lambda *_: None, fail=lambda *_: None)


def test_impossible_settings_are_refused() -> None:
    make = functools.partial(Runner, simulated_run, SimulatedTask(), {"base": []})
    with pytest.raises(InputError, match="did you mean 'loky'"):
        make(backend="lokey")
    with pytest.raises(InputError, match="workers is 0"):
        make(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the clusters' own
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_clusters_give_the_same_rows_and_survive_a_dead_worker(backend: str, tmp_path: Path) -> None:
    if backend == "dask":
        distributed = pytest.importorskip("distributed")
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        stop = distributed.Client(cluster).shutdown
    else:
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False)
        stop = ray.shutdown
    try:
        rows: dict[Key, Any] = {}
        runner = Runner(crashing(tmp_path, 3, times=1), SimulatedTask(), {"base": []}, backend=backend)
        runner.execute(KEYS, save=rows.__setitem__, fail=lambda *_: None)
    finally:
        stop()
    assert rows == execute(simulated_run, 1)[0]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_missing_cluster_library_names_the_extra(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("ray", "ray.util", "ray.util.joblib", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    runner = Runner(simulated_run, SimulatedTask(), {"base": []}, backend=backend)
    with pytest.raises(InputError, match=r"pip install 'pliant\[cluster\]'"):
        runner.execute(KEYS, save=lambda *_: None, fail=lambda *_: None)
