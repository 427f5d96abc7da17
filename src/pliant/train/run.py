"""One training run from a task, a stack and a seed: the same numbers every time, also when killed in between."""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pliant.core.applied import Applied
from pliant.core.errors import SettingError
from pliant.core.method import Method
from pliant.core.report import trainable
from pliant.core.stack import Stack

from .file import read
from .loop import Plan, Position, train
from .progress import Progress
from .record import RunRecord
from .session import Session, as_stack, process, stored_run
from .task import Task
from .trackers import Tracker

STRETCH = 10
"""Steps timed together: long beside the clock's resolution, short enough for many repeats."""


@dataclasses.dataclass
class Trained:
    """A finished run with its objects: record, model (in train mode, statistics recalibrated), applied, task."""

    record: RunRecord
    model: nn.Module
    applied: Applied
    task: Task


def run(task: Task, methods: Stack | Sequence[Method] = (), **options: Any) -> RunRecord:
    """Trains and returns the numbers; the options are those of `fit`."""
    return fit(task, methods, **options).record


def fit(
    task: Task,
    methods: Stack | Sequence[Method] = (),
    *,
    seed: int = 0,
    lr: float | None = None,
    arm: str = "",
    phase: str = "train",
    salt: str = "",
    test: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    progress: Progress | None = None,
    trackers: Sequence[Tracker] = (),
) -> Trained:
    """Trains a new model on the task with the methods applied; returns the record and the trained model.

    seed: of split, initial weights, order, augmentation and the methods' noise; salt: other keys for all of these but
    the split. lr: instead of the task's. arm, phase: labels of the record. test: whether to read the test set, once, at
    the end. checkpoint: file to resume from when it exists and to write every `checkpoint_every` steps (default: at
    each validation) and after Ctrl-C. A run that was killed and started again gives the same record, bit for bit, on
    one machine with one thread count. Under torchrun every process takes its share of each batch.
    """
    if checkpoint_every is not None and checkpoint_every < 1:
        raise SettingError(f"checkpoint_every is {checkpoint_every}; expected a number of steps, at least 1")
    stack = as_stack(methods)
    path = None if checkpoint is None else Path(checkpoint)
    with process(task):
        session = Session(task, stack, seed, lr, salt)
        position = session.resume(path) if path is not None and path.exists() else Position()
        first = session.engine.rank == 0
        listeners: list[Tracker] = [*trackers, *([progress] if progress else [])] if first else []
        plan = Plan(
            steps=task.steps,
            eval_every=task.eval_every or task.steps,
            worst=task.worst_score,
            validate=lambda: session.score("valid"),
            finish=session.recalibrate,
            save_every=checkpoint_every or task.eval_every or task.steps,
            save=None if path is None else lambda position: session.save(path, position),
            report=_reporter(listeners) if listeners else None,
        )
        for listener in listeners:
            listener.start(
                {"task": task.to_json(), "stack": stack.to_json(), "seed": seed, "lr": session.rule.lr, "arm": arm},
                position.step,
                task.steps,
            )
        try:
            train(session.loop(position.step), plan, position)
        finally:
            for listener in listeners:
                listener.finish()
        return Trained(_record(session, position, arm, phase, test), session.model, session.applied, task)


def reopen(checkpoint: str | os.PathLike[str], *, data: Any = None, model: Any = None) -> Trained:
    """The run of a checkpoint as it stood there, its model rebuilt and loaded; nothing is trained.

    data, model: the dataset or callable, where the task was made with objects in memory. A run from a GPU opens on the
    CPU where there is none.
    """
    path = Path(checkpoint)
    meta = read(path)[1]
    stored = stored_run(meta, str(path))
    task = Task.from_json(stored["task"], data=data, model=model)
    elsewhere = task.device == "cuda" and not torch.cuda.is_available()
    if elsewhere:
        task = dataclasses.replace(task, device="cpu", precision="32")
    with process(task):
        session = Session(task, Stack.from_json(meta["stack"]), stored["seed"], stored["lr"], stored["salt"])
        position = session.resume(path, elsewhere=elsewhere)
        return Trained(_record(session, position, "", "train", False), session.model, session.applied, task)


def _record(session: Session, position: Position, arm: str, phase: str, test: bool) -> RunRecord:
    task, stack = session.task, session.stack
    scores = position.curve["valid_score"]
    worst = task.worst_score
    lost = position.status != "ok"
    return RunRecord(
        arm=arm,
        phase=phase,
        seed=session.seed,
        salt=session.salt,
        lr=session.rule.lr,
        stack=stack.to_json(),
        steps=position.step,
        status=position.status,
        curve=position.curve,
        best_valid=worst if lost else max(scores, default=worst),
        final_valid=worst if lost or not scores else scores[-1],
        test_score=None if not test else worst if lost else session.score("test").score,
        parameters=trainable(session.model),
        changes=str(session.applied.report) if stack.methods else "",
        seconds=position.seconds,
        threads=task.threads,
    )


def time_step(
    task: Task, methods: Stack | Sequence[Method] = (), lr: float | None = None, *, steps: int = 200, seed: int = 0
) -> dict[str, float]:
    """{"step_ms": median milliseconds of a training step, "peak_mb": peak memory of the process (GPU: of the device)}.

    steps: timed ones, in stretches of 10, after 20 untimed. Call it in a fresh process with nothing else running; the
    peak covers the process's whole life, so it is a cost to compare between arms, not the model's size.
    """
    with process(task):
        session = Session(task, as_stack(methods), seed, lr, "")
        loop = session.loop(0)
        loop.run(0, 2 * STRETCH)
        times = []
        for start in range(2 * STRETCH, 2 * STRETCH + steps, STRETCH):
            began = time.perf_counter()
            loop.run(start, start + STRETCH)
            times.append((time.perf_counter() - began) / STRETCH)
        peak = _peak_bytes(session.engine.device)
    return {"step_ms": 1e3 * statistics.median(times), "peak_mb": peak / 1e6}


def _peak_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _reporter(listeners: Sequence[Tracker]) -> Callable[[Position], None]:
    """Tells listeners where the run is, and the curve's new entry where there is one."""

    def report(position: Position) -> None:
        curve = position.curve
        fresh = bool(curve["step"]) and curve["step"][-1] == position.step
        values = {name: series[-1] for name, series in curve.items() if fresh and name != "step"}
        for listener in listeners:
            listener.log(position.step, values)

    return report
