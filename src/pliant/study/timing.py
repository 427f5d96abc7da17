"""Times and memory, from a pass of their own: serial, fresh processes, arms interleaved, warmed up, medians.

Runs that share a machine slow each other down, so nothing here comes from the study's parallel runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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

    Every measurement has a process of its own; a round measures every arm once, in an order that alternates, so that
    a slow spell of the machine meets all arms.
    """
    found: dict[str, list[Mapping[str, float]]] = {arm: [] for arm in stacks}
    for index in range(rounds):
        for arm in list(stacks) if index % 2 == 0 else reversed(list(stacks)):
            found[arm].append(_fresh(time_step, task, list(stacks[arm]), rates[arm], steps))
    return {arm: _medians(values, found[base]) for arm, values in found.items()}


def _medians(values: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> Row:
    return {
        "step_ms": statistics.median(value["step_ms"] for value in values),
        "step_ms_ratio": statistics.median(v["step_ms"] / b["step_ms"] for v, b in zip(values, base, strict=True)),
        "peak_mb": statistics.median(value["peak_mb"] for value in values),
    }


def _fresh(
    time_step: TimeStep, task: TaskLike, stack: Sequence[Mapping[str, Any]], rate: float, steps: int
) -> Mapping[str, float]:
    # loky's processes start without re-importing the user's main module, so scripts need no guard.
    from joblib.externals.loky import ProcessPoolExecutor

    with ProcessPoolExecutor(max_workers=1) as pool:
        return pool.submit(_measure, time_step, task, stack, rate, steps).result()


def _measure(
    time_step: TimeStep, task: TaskLike, stack: Sequence[Mapping[str, Any]], rate: float, steps: int
) -> Mapping[str, float]:
    import torch

    torch.set_num_threads(task.threads)
    return dict(time_step(task, rebuild(stack), lr=rate, steps=steps))
