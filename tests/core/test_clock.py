"""The root hook: counts training forwards, survives every way of resuming, and misses no forgotten line."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pliant.core.applied import bind
from pliant.core.clock import PATIENCE, STEP
from pliant.core.context import Context
from pliant.core.errors import ContractError
from pliant.core.method import Meta, Method, Phase
from pliant.core.stack import Stack

SEEN: list[int] = []


class Base(Method):
    meta: ClassVar[Meta] = Meta(title="Toy", paper="none", summary="counts", phase=Phase.OBJECTIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws(Base):
    """Notes the step it is given."""

    def on_forward(self, model: nn.Module, ctx: Context) -> None:
        SEEN.append(ctx.step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms(Base):
    def terms(self, model: nn.Module) -> dict[str, Tensor]:
        return {"zero": torch.zeros(())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loses(Base):
    def loss(self, base: Any) -> Any:
        return lambda *args: base(*args)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Base):
    def after_step(self, model: nn.Module, ctx: Context) -> None:
        SEEN.append(ctx.step)


X = torch.ones(2, 3)


@pytest.fixture(autouse=True)
def fresh() -> None:
    SEEN.clear()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2))


def test_training_forwards_are_counted_and_methods_told_the_step():
    model = net()
    Stack(Draws()).apply(model)
    for _ in range(3):
        model(X)
    assert SEEN == [0, 1, 2] and int(model.pliant_step) == 3 and model.pliant_step.dtype is torch.int64


def test_evaluation_does_not_count_and_no_grad_training_does():
    model = net()
    Stack(Draws()).apply(model)
    model.eval()(X)
    assert SEEN == [] and int(model.pliant_step) == 0
    with torch.no_grad():
        model.train()(X)
    assert SEEN == [0]


def test_a_stack_without_moving_parts_leaves_no_clock():
    model = net()
    Stack(Base()).apply(model)
    assert STEP not in dict(model.named_buffers()) and not model._forward_pre_hooks


def test_the_step_is_saved_and_resumed():
    model, other = net(), net()
    Stack(Draws()).apply(model), Stack(Draws()).apply(other)
    for _ in range(5):
        model(X)
    other(X)
    SEEN.clear()
    other.load_state_dict(model.state_dict())
    other(X)
    other(X)
    assert SEEN == [5, 6]


def test_a_buffer_exchanged_for_another_is_read_anew():
    """load_state_dict(assign=True) puts in a tensor of its own, whose version may be any number."""
    model = net()
    Stack(Draws()).apply(model)
    model(X)
    given = torch.tensor(40)
    given.add_(1)  # the version of the buffer that it replaces
    assert given._version == model.pliant_step._version
    model.load_state_dict({**model.state_dict(), STEP: given}, assign=True)
    SEEN.clear()
    model(X)
    assert SEEN == [41]


@pytest.mark.parametrize("change", [lambda m: m.double(), lambda m: m.to("cpu"), lambda m: m.requires_grad_(False)])
def test_moving_the_model_keeps_the_step(change: Any):
    model = net()
    Stack(Draws()).apply(model)
    model(X), model(X)
    x = X.double() if change(model)[0].weight.dtype is torch.float64 else X
    model(x)
    assert SEEN == [0, 1, 2] and model.pliant_step.dtype is torch.int64


def test_copies_count_on_their_own():
    model = net()
    Stack(Draws()).apply(model)
    model(X), model(X)
    twin = copy.deepcopy(model)
    twin(X), model(X), model(X)
    assert SEEN == [0, 1, 2, 2, 3] and int(twin.pliant_step) == 3 and int(model.pliant_step) == 4


def test_the_host_reads_the_buffer_only_after_someone_else_wrote_it(monkeypatch: pytest.MonkeyPatch):
    model = net()
    Stack(Draws()).apply(model)
    model(X)
    reads = []
    true_int = Tensor.__int__
    monkeypatch.setattr(Tensor, "__int__", lambda self: reads.append(1) or true_int(self))
    model(X), model(X)
    assert reads == []
    with torch.no_grad():
        model.pliant_step.fill_(9)
    model(X)
    assert reads == [1] and SEEN[-1] == 9


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_forward_counts_once(reentrant: bool):
    model = net()
    Stack(Draws()).apply(model)
    for _ in range(3):
        checkpoint(model, X.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
    assert SEEN == [0, 1, 2] and int(model.pliant_step) == 3


# -- forgotten lines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        (Terms(), r"took the terms of test_clock: use criterion = applied\.criterion\(loss\)"),
        (Loses(), r"took the terms of test_clock: use criterion = applied\.criterion\(loss\)"),
        (Steps(), r"the step part of test_clock never ran: pass your optimizer through optimizer = applied\.attach"),
    ],
)
def test_a_forgotten_line_raises_after_100_forwards_and_names_it(method: Method, remedy: str):
    model = net()
    Stack(method).apply(model)
    for _ in range(PATIENCE):
        model(X)
    with pytest.raises(ContractError, match=f"{PATIENCE} training forwards passed .*{remedy}"):
        model(X)


def test_patience_is_100():
    assert PATIENCE == 100


@pytest.mark.parametrize("method", [Terms(), Loses()])
def test_a_loss_taken_through_the_stack_resets_the_count(method: Method):
    model = net()
    criterion = Stack(method).apply(model).criterion(lambda out: out.sum())
    for _ in range(3):
        for _ in range(PATIENCE):
            out = model(X)
        criterion(out)


def test_terms_taken_by_hand_count_too():
    model = net()
    applied = Stack(Terms()).apply(model)
    for _ in range(2 * PATIENCE + 2):
        model(X)
        applied.terms()


def test_optimizer_steps_reset_the_count():
    model = net()
    applied = Stack(Steps()).apply(model)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1)))
    for _ in range(2):
        for _ in range(PATIENCE):
            model(X)
        optimizer.step()
    assert SEEN == [PATIENCE, 2 * PATIENCE]


def test_forwards_that_cannot_train_are_not_held_against_the_loop():
    model = net()
    Stack(Terms()).apply(model)
    for _ in range(PATIENCE + 5):
        with torch.no_grad():
            model(X)
    model.eval()
    for _ in range(PATIENCE + 5):
        model(X)


def test_bind_finds_the_same_clock():
    model = net()
    Stack(Terms()).apply(model)
    criterion = bind(model).criterion(lambda out: out.sum())
    for _ in range(PATIENCE + 5):
        criterion(model(X))
