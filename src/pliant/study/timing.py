"""Times and memory, from a pass of their own: serial, fresh processes, arms interleaved, warmed up, medians.

Runs that share a machine slow each other down, so nothing here comes from the study's parallel runs.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pliant.core.errors import PliantError

from .contract import Row, TaskLike, rebuild

TimeStep = Callable[..., Mapping[str, float]]
"""time_step(task, methods, lr, steps) -> {"step_ms": median after warm-up, "peak_mb": peak memory}."""


def default_time_step() -> TimeStep:
    """`pliant.train.time_step`."""
    from pliant import train

    return train.time_step


def time_arms(
    task: TaskLike,
    stacks: Mapping[str, Sequence[Mapping[str, Any]]],
    rates: Mapping[str, float],
    base: str,
    *,
    steps: int,
    rounds: int,
    time_step: TimeStep,
) -> dict[str, Row]:
    """Per arm {"step_ms", "step_ms_ratio", "peak_mb"}: medians over rounds; ratios to the base within a round.

    A round measures every arm once, in an order that alternates, so that a slow spell of the machine meets all arms.
    One new process pays for the imports; every measurement is a fork of it on Linux, so that neither
    memory nor state passes from arm to arm.
    """
    # loky's processes start without re-importing the user's main module, so scripts need no guard.
    from joblib.externals.loky import ProcessPoolExecutor

    order = [
        (arm, list(stacks[arm]), rates[arm])
        for index in range(rounds)
        for arm in (list(stacks) if index % 2 == 0 else reversed(list(stacks)))
    ]
    with ProcessPoolExecutor(max_workers=1) as pool:
        measured = pool.submit(_measure_all, time_step, task, order, steps).result()
    found: dict[str, list[Mapping[str, float]]] = {arm: [] for arm in stacks}
    for (arm, _, _), values in zip(order, measured, strict=True):
        found[arm].append(values)
    return {arm: _medians(values, found[base]) for arm, values in found.items()}


def _medians(values: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> Row:
    return {
        "step_ms": statistics.median(value["step_ms"] for value in values),
        "step_ms_ratio": statistics.median(v["step_ms"] / b["step_ms"] for v, b in zip(values, base, strict=True)),
        "peak_mb": statistics.median(value["peak_mb"] for value in values),
    }


def _measure_all(
    time_step: TimeStep, task: TaskLike, order: Sequence[tuple[str, Sequence[Mapping[str, Any]], float]], steps: int
) -> list[Mapping[str, float]]:
    import torch

    torch.set_num_threads(task.threads)
    # Building an optimizer imports the compiler, once; forks inherit it. Nothing here may start torch's thread pool,
    # which does not survive a fork.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    if task.threads == 1 and not torch.cuda.is_available():
        # Nor does one thread need a pool: the forks inherit the data and what reading it imported.
        _, own, rate = order[0]
        _measure(time_step, task, own, rate, steps)
    return [_apart(functools.partial(_measure, time_step, task, own, rate, steps)) for _, own, rate in order]


def _measure(
    time_step: TimeStep, task: TaskLike, stack: Sequence[Mapping[str, Any]], rate: float, steps: int
) -> Mapping[str, float]:
    return time_step(task, rebuild(stack), lr=rate, steps=steps)


def _apart(measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """`measure()` in a fork of this process; in the process itself where there is no fork."""
    # On macOS a fork of a process that has used Accelerate may hang.
    if not sys.platform.startswith("linux"):
        return dict(measure())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, a fork must not run the parent's exit handlers.
        try:
            os.close(reader)
            try:
                answer: Mapping[str, Any] = dict(measure())
            except BaseException as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            with os.fdopen(writer, "w") as pipe:
                json.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"error": "the process ended without a word (out of memory?)"}
    if "error" in answer:
        raise PliantError(f"timing a step failed: {answer['error']}; the study's rows and verdicts stand without it")
    return answer
