"""criterion = base loss + the stack's terms; the objective as a module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.errors import ConflictError
from pliant.core.method import Meta, Method, Phase
from pliant.core.objective import Objective, Outputs
from pliant.core.stack import Stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pull(Method):
    """Adds factor * sum of squares of all parameters to the loss."""

    factor: float = 0.5

    meta: ClassVar[Meta] = Meta(title="Pull", paper="none", summary="pulls", phase=Phase.OBJECTIVE)

    @property
    def name(self) -> str:
        return "pull"

    def terms(self, model: nn.Module) -> dict[str, Tensor]:
        return {"squares": self.factor * sum(p.square().sum() for p in model.parameters())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twice(Method):
    meta: ClassVar[Meta] = Meta(title="Twice", paper="none", summary="doubles", phase=Phase.OBJECTIVE)

    def loss(self, base: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: 2 * base(*args, **kwargs)


X, Y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1])


def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_terms_join_the_loss_with_weight_one():
    model = net()
    criterion = Stack(Pull(factor=0.5)).apply(model).criterion(F.cross_entropy)
    output = model(X)
    expected = F.cross_entropy(output, Y) + 0.5 * (model.weight.square().sum() + model.bias.square().sum())
    loss = criterion(output, Y)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, model.weight)
    (base,) = torch.autograd.grad(F.cross_entropy(model(X), Y), model.weight)
    torch.testing.assert_close(grad, base + model.weight.detach())


@pytest.mark.parametrize("quiet", ["eval", "no_grad"])
def test_evaluation_sees_the_base_loss_alone(quiet: str):
    model = net()
    criterion = Stack(Pull()).apply(model).criterion(F.cross_entropy)
    model.train(quiet != "eval")
    with torch.set_grad_enabled(quiet != "no_grad"):
        assert torch.equal(criterion(model(X), Y), F.cross_entropy(model(X), Y))


def test_targets_and_options_pass_through():
    model = net()
    criterion = Stack(Pull(factor=0.0)).apply(model).criterion(F.cross_entropy)
    output = model(X)
    assert torch.equal(criterion(output, Y, label_smoothing=0.1), F.cross_entropy(output, Y, label_smoothing=0.1))
    penalty = Stack().apply(net()).criterion(lambda output: output.sum())
    assert torch.equal(penalty(output), output.sum())


def test_terms_are_named_by_method():
    assert list(Stack(Pull()).apply(net()).terms()) == ["pull.squares"]


def test_a_loss_may_be_replaced_once():
    model = net()
    criterion = Stack(Twice()).apply(model).criterion(F.cross_entropy)
    output = model(X)
    assert torch.equal(criterion(output, Y), 2 * F.cross_entropy(output, Y))
    with pytest.raises(ConflictError, match="each replace the loss; a stack may hold one of them"):
        Stack(Twice(), _second_loss())


def _second_loss() -> Method:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Thrice(Method):
        meta: ClassVar[Meta] = Meta(title="Thrice", paper="none", summary="triples", phase=Phase.OBJECTIVE)

        def loss(self, base: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda *args, **kwargs: 3 * base(*args, **kwargs)

    return Thrice()


def test_the_objective_differentiates_by_functional_call():
    model = net()
    objective = Objective(model, F.cross_entropy)
    loss = objective(X, Y)
    assert torch.equal(loss, F.cross_entropy(model(X), Y))
    doubled = {f"model.{k}": 2 * v for k, v in model.named_parameters()}
    got = torch.func.functional_call(objective, doubled, (X, Y))
    torch.testing.assert_close(got, F.cross_entropy(F.linear(X, 2 * model.weight, 2 * model.bias), Y))


@pytest.mark.parametrize("batch", [X, (X, "unused"), {"input": X}])
def test_the_objective_takes_batches_of_every_form(batch: Any):
    objective = Objective(net(), F.cross_entropy)
    assert torch.equal(objective(batch, Y), F.cross_entropy(objective.model(X), Y))


def test_outputs_hold_the_main_one_and_the_others():
    outputs = Outputs(X, (Y,))
    assert outputs.main is X and outputs.aux == (Y,) and Outputs(X).aux == ()
