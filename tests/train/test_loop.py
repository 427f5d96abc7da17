from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.registry import get
from pliant.core.stack import Stack
from pliant.train import Optimizer, Scores, Task, fit
from pliant.train.engine import Single
from pliant.train.loop import CHECK_EVERY, Loop, Plan, Position, train

Batch = tuple[Tensor, Tensor]


def feed(dtype: torch.dtype = torch.float64, size: int = 10, start: int = 0) -> Iterator[Batch]:
    for index in itertools.count(start):
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(size, 4, generator=generator, dtype=dtype)
        yield x, torch.randint(0, 3, (size,), generator=generator)


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def make_loop(model: nn.Module, batches: Iterator[Batch] | None = None, **options: Any) -> Loop:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    return Loop(model, F.cross_entropy, optimizer, feed() if batches is None else batches, Single(), **options)


def test_a_step_is_the_hand_written_one() -> None:
    model = make_net()
    twin = copy.deepcopy(model)
    losses = make_loop(model).run(0, 5)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9)
    expected = []
    for x, y in itertools.islice(feed(), 5):
        optimizer.zero_grad()
        loss = F.cross_entropy(twin(x), y)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("parts", [2, 3, 10])
def test_accumulation_is_the_big_batch(parts: int) -> None:
    whole, split = make_net(), make_net()
    one, many = make_loop(whole).run(0, 4), make_loop(split, accumulate=parts).run(0, 4)
    assert many == pytest.approx(one, abs=1e-13)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_accumulation_counts_a_stacks_own_terms_once(make_task: Callable[..., Task]) -> None:
    # The term of a parameter-only objective does not depend on the batch: split in parts it must not be added again.
    penalty = 0.01
    whole, split = make_net(), make_net()

    def criterion(model: nn.Module) -> Callable[..., Tensor]:
        return lambda output, target: (
            F.cross_entropy(output, target) + penalty * sum(p.square().sum() for p in model.parameters())
        )

    for model, parts in ((whole, 1), (split, 3)):
        loop = make_loop(model, accumulate=parts)
        loop.criterion = criterion(model)
        loop.run(0, 3)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_growth_ends_a_stretch_and_wraps_the_model_anew() -> None:
    model = make_net()
    wrapped: list[int] = []

    class Counting(Single):
        def wrap(self, model: nn.Module, criterion: Any, optimizer: torch.optim.Optimizer) -> Any:
            wrapped.append(1)
            return super().wrap(model, criterion, optimizer)

    seen: list[Batch] = []

    def advance(batch: Batch) -> bool:
        seen.append(batch)
        return len(seen) == 3

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = Loop(model, F.cross_entropy, optimizer, feed(), Counting(), advance=advance)
    assert len(loop.run(0, 10)) == 3 and len(wrapped) == 2
    assert len(loop.run(3, 10)) == 7 and len(wrapped) == 2
    assert all(torch.equal(batch[0], other[0]) for batch, other in zip(seen, feed(), strict=False))


def make_plan(loop: Loop, events: list[tuple[str, int]], position: Position, **options: Any) -> Plan:
    def validate() -> Scores:
        events.append(("validate", position.step))
        return Scores(1.0, 0.5, 10)

    settings: dict[str, Any] = {"steps": 23, "eval_every": 10, "save_every": 7, **options}
    return Plan(
        worst=-1.0,
        validate=settings.pop("validate", validate),
        finish=lambda: events.append(("finish", position.step)),
        save=lambda position: events.append(("save", position.step)),
        report=lambda position: events.append(("report", position.step)),
        **settings,
    )


def test_events_fall_on_their_steps() -> None:
    events: list[tuple[str, int]] = []
    position = Position()
    loop = make_loop(make_net())
    train(loop, make_plan(loop, events, position), position)
    for kind, steps in {
        "validate": [10, 20, 23],
        "finish": [23],
        "save": [7, 14, 21, 23],
        "report": [7, 10, 14, 20, 21, 23],
    }.items():
        assert [step for name, step in events if name == kind] == steps
    assert events.index(("finish", 23)) < events.index(("validate", 23)) < events.index(("save", 23))
    assert position.curve["step"] == [10, 20, 23]


def test_train_loss_is_the_mean_since_the_last_validation_however_stretches_fall() -> None:
    losses = make_loop(make_net()).run(0, 230)
    expected = [math.fsum(losses[a:b]) / (b - a) for a, b in ((0, 100), (100, 200), (200, 230))]
    curves = []
    for every in (1, 7, 230):
        position = Position()
        loop = make_loop(make_net())
        train(loop, make_plan(loop, [], position, steps=230, eval_every=100, save_every=every), position)
        assert position.curve["train_loss"] == pytest.approx(expected, abs=1e-13)
        curves.append(position.curve)
    assert curves[0] == curves[1] == curves[2]


def test_a_lost_run_stops_at_the_next_look_at_the_worst_score() -> None:
    def poisoned() -> Iterator[Batch]:
        for index, (x, y) in enumerate(feed()):
            yield (x * math.nan if index == 12 else x), y

    for save_every in (1, 1000):
        events: list[tuple[str, int]] = []
        position = Position()
        loop = make_loop(make_net(), poisoned())
        plan = make_plan(loop, events, position, steps=1000, eval_every=400, save_every=save_every)
        train(loop, plan, position)
        assert (position.status, position.step) == ("diverged", CHECK_EVERY)
        assert position.curve == {
            "step": [CHECK_EVERY], "train_loss": [None], "valid_loss": [None], "valid_score": [-1.0]
        }  # fmt: skip
        assert events[-2:] == [("save", CHECK_EVERY), ("report", CHECK_EVERY)]
        assert not any(kind == "validate" for kind, _ in events)


def test_an_infinite_validation_loss_is_divergence() -> None:
    position = Position()
    loop = make_loop(make_net())
    train(loop, make_plan(loop, [], position, validate=lambda: Scores(math.inf, 0.9, 10)), position)
    assert (position.status, position.step) == ("diverged", 10)
    assert position.curve["valid_loss"] == [None] and position.curve["valid_score"] == [-1.0]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_precision_trains_finite(make_task: Callable[..., Task], precision: str) -> None:
    task = make_task(precision=precision, optimizer=Optimizer(lr=0.2), accumulate=2)
    record = fit(task, Stack(get("batch_norm")())).record
    assert record.status == "ok" and record.final_valid > 0.5
    assert all(math.isfinite(loss) for loss in record.curve["train_loss"])


def test_bf16_computes_in_bf16_and_takes_the_loss_in_float32() -> None:
    seen: list[torch.dtype] = []
    model = make_net().float()
    model[2].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[index]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = Single("bf16").wrap(model, lambda output, y: output.sum(), optimizer)[0]
    assert loss(torch.ones(2, 4), torch.zeros(2)).dtype == torch.float32
    assert seen == [torch.bfloat16]
