"""The training loop: a stretch of steps with nothing in between, and what happens between stretches.

A step of a plain run is what one writes by hand: `zero_grad`, forward, `backward`, `step`. Evaluation, checkpoints,
the watch for divergence and progress all sit at the ends of stretches, so that a step pays for none of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .engine import Engine
from .evaluate import Scores
from .record import new_curve, number

CHECK_EVERY = 50
"""Steps between two looks at the loss: often enough to stop a diverged run, too rare to cost anything."""


@dataclasses.dataclass
class Position:
    """Where a run is, as JSON types: with the tensors of model and optimizer it is all that a resume needs.

    loss_sum, loss_count: of the batch losses since the last evaluation.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    status: str = "ok"
    seconds: float = 0.0
    curve: dict[str, list[Any]] = dataclasses.field(default_factory=new_curve)


class Interrupt:
    """Turns the first Ctrl-C into a flag that the loop reads between steps; the second one acts at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        # Python allows signal handlers in the main thread only; elsewhere Ctrl-C is not ours to catch.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Loop:
    """Everything a step touches.

    criterion: `criterion(output, target) -> mean loss` with the stack's terms; feed: the batches, from the first step;
    rates: sets the learning rates for a step (None: they stay); advance: called with the batch after each step,
    says whether the structure changed (None: nothing grows); accumulate: micro-batches per batch.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        feed: Iterator[tuple[Tensor, Tensor]],
        engine: Engine,
        *,
        rates: Callable[[int], None] | None = None,
        advance: Callable[[tuple[Tensor, Tensor]], bool] | None = None,
        accumulate: int = 1,
    ) -> None:
        self.model, self.criterion, self.optimizer, self.feed, self.engine = model, criterion, optimizer, feed, engine
        self.rates, self.advance, self.accumulate = rates, advance, accumulate
        self.loss, self.backward, self.step = engine.wrap(model, criterion, optimizer)
        self.interrupt = Interrupt()

    def run(self, start: int, stop: int) -> list[float]:
        """Does the steps start, ..., stop - 1 and returns their losses; fewer when interrupted or the model grew."""
        loss_of, backward, step = self.loss, self.backward, self.step
        groups, feed = self.optimizer.param_groups, self.feed
        whole = self.accumulate == 1 and self.engine.world == 1 and self.engine.device.type == "cpu"
        losses: list[Tensor] = []
        self.model.train()
        for index in range(start, stop):
            if self.rates is not None:
                self.rates(index)
            # At the start of the step: freeing the gradients at its end makes malloc give pages back to the system
            # and fault them in again, 5-7 % of a step. Not zero_grad(): its profiling costs 1 % of a small one.
            for group in groups:
                for parameter in group["params"]:
                    parameter.grad = None
            x, y = next(feed)
            if whole:
                loss = loss_of(x, y)
                backward(loss)
                losses.append(loss.detach())
            else:
                losses.append(self._backward_in_parts(x, y))
            step()
            if self.advance is not None and self.advance((x.to(self.engine.device), y.to(self.engine.device))):
                # What wraps the model for data parallelism knows its old parameters.
                self.loss, self.backward, self.step = self.engine.wrap(self.model, self.criterion, self.optimizer)
                break
            if self.interrupt.asked:
                break
        return self._total(losses)

    def _backward_in_parts(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradient of the mean loss over the whole batch, from this process's micro-batches.

        Each micro-batch's mean loss counts with its share n_i/N of the examples, so unequal parts are exact too.
        """
        engine, total = self.engine, len(y)
        parts = engine.world * self.accumulate
        mine = range(engine.rank * self.accumulate, (engine.rank + 1) * self.accumulate)
        xs, ys = torch.tensor_split(x, parts), torch.tensor_split(y, parts)
        done = torch.zeros((), device=engine.device)
        for part in mine:
            inputs, target = xs[part].to(engine.device), ys[part].to(engine.device)
            last = part == mine[-1]
            with contextlib.nullcontext() if last else engine.unsynchronised():
                loss = self.loss(inputs, target) * (len(target) / total)
                # Data parallelism averages the gradients over processes; shares are to be summed.
                self.backward(loss * engine.world if engine.world > 1 else loss)
            done = done + loss.detach()
        return done

    def _total(self, losses: list[Tensor]) -> list[float]:
        """The stretch's losses summed over processes, fetched in one go."""
        return self.engine.reduce(torch.stack(losses).double()).tolist() if losses else []


@dataclasses.dataclass(kw_only=True)
class Plan:
    """What happens between stretches of steps.

    eval_every, save_every: steps between validations and between checkpoints; worst: score of a diverged run.
    validate: scores the model as it is; finish: recalibrates before the last validation; save: writes a checkpoint
    (None: there is none); report: progress and trackers.
    """

    steps: int
    eval_every: int
    worst: float
    validate: Callable[[], Scores]
    finish: Callable[[], None]
    save_every: int
    save: Callable[[Position], None] | None = None
    report: Callable[[Position], None] | None = None

    def next_stop(self, step: int) -> int:
        """The next step at which anything happens."""
        gaps = (self.eval_every, CHECK_EVERY, self.save_every)
        return min(self.steps, *(step - step % gap + gap for gap in gaps))

    def due(self, gap: int, step: int) -> bool:
        return step % gap == 0 or step == self.steps


def train(loop: Loop, plan: Plan, position: Position) -> None:
    """Trains from `position` to the plan's end, or until the loss is no number; `position` is updated throughout.

    Raises KeyboardInterrupt after Ctrl-C, once the step is finished and a checkpoint is written.
    """
    with loop.interrupt.guard():
        while position.step < plan.steps and position.status == "ok":
            began = time.perf_counter()
            losses = loop.run(position.step, plan.next_stop(position.step))
            position.step += len(losses)
            # One by one in this order: the sum must not depend on where stretches end, or a resumed run would differ.
            for loss in losses:
                position.loss_sum += loss
            position.loss_count += len(losses)
            _look(loop, plan, position)
            position.seconds += time.perf_counter() - began
            over = position.status != "ok"
            if plan.save and (over or loop.interrupt.asked or plan.due(plan.save_every, position.step)):
                plan.save(position)
            if plan.report:
                plan.report(position)
            if loop.interrupt.asked:
                raise KeyboardInterrupt


def _look(loop: Loop, plan: Plan, position: Position) -> None:
    """Validates where it is due and notices divergence, at the same steps however the run was interrupted."""
    lost = plan.due(CHECK_EVERY, position.step) and not math.isfinite(position.loss_sum)
    if not lost and not plan.due(plan.eval_every, position.step):
        return
    mean = position.loss_sum / position.loss_count
    lost = not math.isfinite(mean)
    valid = Scores(math.nan, plan.worst, 0)
    if not lost:
        loop.engine.share_buffers(loop.model)
        if position.step == plan.steps:
            plan.finish()
        valid = plan.validate()
        lost = not math.isfinite(valid.loss)
    position.status = "diverged" if lost else "ok"
    position.curve["step"].append(position.step)
    position.curve["train_loss"].append(number(mean))
    position.curve["valid_loss"].append(number(valid.loss))
    position.curve["valid_score"].append(plan.worst if lost else valid.score)
    position.loss_sum, position.loss_count = 0.0, 0
