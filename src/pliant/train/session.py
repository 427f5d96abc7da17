"""One run's objects: data, model, stack, optimizer and loop, built from keys, stored and restored bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import keyed
from pliant.core.errors import CheckpointError, InputError
from pliant.core.method import Method, overrides
from pliant.core.objective import Outputs
from pliant.core.stack import Stack
from pliant.models import build

from .checkpoint import capture, restore
from .engine import Engine, engine_for
from .evaluate import Scores, evaluate
from .feed import RECALIBRATION, Source, source
from .file import read, write
from .loop import Loop, Position
from .task import LOSSES, Task


def as_stack(methods: Stack | Sequence[Method]) -> Stack:
    return methods if isinstance(methods, Stack) else Stack(*methods)


@contextlib.contextmanager
def process(task: Task) -> Iterator[None]:
    """Torch's thread count from the task, and the global generators given back as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    devices = [torch.cuda.current_device()] if task.device == "cuda" and torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_num_threads(threads)


class Session:
    """Built inside `process(task)`. Everything random is keyed by (seed, salt), except the split, keyed by the seed.

    So arms with the same seed share the split, and with the same salt also initial weights, order and augmentation.
    """

    def __init__(self, task: Task, stack: Stack, seed: int, lr: float | None, salt: str) -> None:
        self.task, self.stack, self.seed, self.salt = task, stack, seed, salt
        self.rule = task.optimizer if lr is None else dataclasses.replace(task.optimizer, lr=lr)
        may_skip = any(method.meta.may_skip_parameters for method in stack.methods)
        self.engine: Engine = engine_for(task, may_skip)
        self.source = source(task, seed)
        self.key = keyed.derive(seed, "batches", salt)
        torch.manual_seed(keyed.derive(seed, "init", salt))
        self.model: nn.Module = build(task.model, input_shape=self.source.input_shape, classes=self.source.classes)
        self.model.to(self.engine.device)
        _try(self.model, self.source, self.engine.device)
        calibration = self.source.sample(task.calibration, task.calibration, self.key, self.engine.device)
        loss = LOSSES[task.loss]
        self.applied = stack.apply(
            self.model,
            sample=next(iter(calibration))[0][: task.batch_size],
            batches=calibration,
            objective=lambda model, batch: loss(model(batch[0]), batch[1]),
            total_steps=task.steps,
            seed=keyed.derive(seed, "stack", salt),
        )
        self.criterion = self.applied.criterion(loss)
        groups = self.applied.groups(lr=self.rule.lr, weight_decay=self.rule.weight_decay)
        self.optimizer = self.applied.attach(self.rule.build(groups), total_steps=task.steps)
        # A user's own modules (torch.nn.Dropout) draw from the global generator: it starts from a key as well.
        torch.manual_seed(keyed.derive(seed, "global", salt))

    def loop(self, start: int) -> Loop:
        """The loop whose next step is `start`."""
        feed = self.source.stream(self.task, self.key, start)
        rates = self._rates() if self.task.schedule.moves else None
        return Loop(
            self.model,
            self.criterion,
            self.optimizer,
            feed,
            self.engine,
            rates=rates,
            advance=self._advance if any(overrides(method, "advance") for method in self.stack.methods) else None,
            accumulate=self.task.accumulate,
        )

    def _advance(self, batch: tuple[Tensor, Tensor]) -> bool:
        """Lets methods change the structure; whether one did."""
        before = len(self.applied.state()["log"])
        self.applied.advance(batch)
        return len(self.applied.state()["log"]) > before

    def _rates(self) -> Callable[[int], None]:
        schedule, steps, lr, optimizer = self.task.schedule, self.task.steps, self.rule.lr, self.optimizer

        def set_rates(step: int) -> None:
            rate = lr * schedule.factor(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]

        return set_rates

    def score(self, part: str) -> Scores:
        """Exact scores on "valid" or "test"."""
        engine = self.engine
        return evaluate(
            self.model,
            self.source.evaluation(part, engine.rank, engine.world, engine.device),
            loss=LOSSES[self.task.loss],
            forward=engine.infer(self.model),
            reduce=engine.reduce,
        )

    def recalibrate(self) -> None:
        """Statistics for evaluation from training batches, at the end."""
        size = self.task.batch_size
        # Whole batches only: a remainder of one example has no batch statistics.
        count = min(RECALIBRATION, len(self.source.train.rows) // size) * size
        self.applied.calibrate_end(self.source.sample(count, size, self.key, self.engine.device))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, path: Path, position: Position) -> None:
        """The whole run as one file; by the first process only."""
        if self.engine.rank != 0:
            return
        tensors, meta = capture(self.model, self.optimizer)
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.engine.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.engine.device)
        meta["extra"] = {}
        meta["run"] = {
            **self._facts(),
            "identity": self.task.identity,
            "position": dataclasses.asdict(position),
            "scaler": self.engine.state(),
        }
        write(path, tensors, meta)

    def resume(self, path: Path, *, elsewhere: bool = False) -> Position:
        """Takes up the run of a checkpoint. CheckpointError naming what differs when it is of another run.

        elsewhere: on purpose with another device or precision than the run was trained with.
        """
        tensors, meta = read(path)
        stored = stored_run(meta, str(path))
        if not elsewhere:
            refuse_other_run({key: stored[key] for key in self._facts()}, self._facts(), str(path))
        restore(self.model, self.optimizer, tensors, meta, str(path), self.applied)
        if not elsewhere:
            self.engine.load_state(stored["scaler"])
        torch.set_rng_state(tensors["rng/cpu"])
        if "rng/cuda" in tensors and self.engine.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.engine.device)
        return Position(**stored["position"])

    def _facts(self) -> dict[str, Any]:
        return {"task": self.task.to_json(), "seed": self.seed, "salt": self.salt, "lr": self.rule.lr}


def stored_run(meta: dict[str, Any], where: str) -> dict[str, Any]:
    """The run's part of a checkpoint's JSON."""
    if "run" not in meta:
        raise CheckpointError(
            f"{where} was written by pliant.train.save, not by a training run; read it with pliant.train.load, or name "
            "another file for this run"
        )
    run: dict[str, Any] = meta["run"]
    return run


def refuse_other_run(stored: dict[str, Any], present: dict[str, Any], where: str) -> None:
    """CheckpointError naming each fact (task.steps, seed, lr, ...) in which two runs differ."""
    differences = _differences(stored, present, "")
    if differences:
        raise CheckpointError(
            f"{where} belongs to another run: {'; '.join(differences)}. Delete it, name another "
            "file, or restore the settings"
        )


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [text for key in keys for text in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path} was {old!r} and is {new!r}"]


def _try(model: nn.Module, source: Source, device: torch.device) -> None:
    """One forward of two examples in eval mode: a model that does not fit the data is bad input, not a crash later."""
    batch, _ = next(iter(source.sample(2, 2, 0, device)))
    try:
        with torch.no_grad():
            output = model.eval()(batch)
    except Exception as error:
        raise InputError(
            f"the model cannot take this data: two examples, shape {tuple(batch.shape)}, fail with "
            f"{type(error).__name__}: {error}. Build it for input_shape={source.input_shape}"
        ) from error
    finally:
        model.train()
    main = output.main if isinstance(output, Outputs) else output
    if not isinstance(main, Tensor) or main.shape != (2, source.classes):
        found = tuple(main.shape) if isinstance(main, Tensor) else type(main).__name__
        raise InputError(
            f"the model returns {found} for two examples; "
            f"expected one score for each of the {source.classes} classes, (2, {source.classes})"
        )
