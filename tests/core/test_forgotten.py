"""What must not pass in silence, and what must not be mistaken for it, on whole methods."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pliant
from pliant.core import clock
from pliant.core.applied import Applied
from pliant.core.clock import PATIENCE
from pliant.core.errors import ConflictError, ContractError, SettingError

X, Y = torch.linspace(-1, 1, 36).view(9, 4), torch.arange(9) % 2


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def gather(applied: Applied, micro_batches: int) -> None:
    criterion = applied.criterion(F.cross_entropy)
    for _ in range(micro_batches):
        (criterion(applied.model(X), Y) / micro_batches).backward()


def sgd(applied: Applied) -> torch.optim.SGD:
    return applied.attach(torch.optim.SGD(applied.groups(lr=0.1)))


def test_an_attached_optimizer_may_gather_many_forwards(monkeypatch: pytest.MonkeyPatch):
    applied = pliant.Stack(pliant.BatchlessNorm()).apply(net(), sample=X)
    optimizer = sgd(applied)
    gather(applied, PATIENCE + 20)
    optimizer.step()
    monkeypatch.setattr(clock, "ACCUMULATION", PATIENCE + 5)
    with pytest.raises(ContractError, match=r"105 training forwards passed .* applied.attach\(optimizer\), and step"):
        gather(applied, PATIENCE + 6)


def test_a_copy_is_not_attached():
    applied = pliant.Stack(pliant.BatchlessNorm()).apply(net(), sample=X)
    sgd(applied)
    twin = pliant.bind(copy.deepcopy(applied.model))
    with pytest.raises(ContractError, match=f"{PATIENCE} training forwards"):
        gather(twin, PATIENCE + 1)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body, self.reentrant = net(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


# torch warns when the plan follows the forward with a sample that needs no gradient.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_likelihood_lost_to_reentrant_checkpoints_is_told(reentrant: bool):
    applied = pliant.Stack(pliant.BatchlessNorm()).apply(Checkpointed(reentrant), sample=X)
    x = X.clone().requires_grad_()
    loss = applied.criterion(F.cross_entropy)(applied.model(x), Y)
    if reentrant:
        with pytest.raises(ContractError, match="use use_reentrant=False"):
            loss.backward()
    else:
        loss.backward()
        assert applied.model.body[1].norm.log_std.grad is not None


def test_two_batchless_norms_are_refused_with_the_remedy():
    methods = [pliant.BatchlessNorm(where=(place,)) for place in ("0", "2")]
    with pytest.raises(ConflictError, match=r"^batchless_norm with batchless_norm: [^;]*; name all places[^;]*$"):
        pliant.Stack(*methods)


@pytest.mark.parametrize("position", ["before_activation", "after_activation"])
def test_first_data_of_two_methods_fit_each_other(position: str):
    """Weight norm changes what reaches a batchless norm; layer by layer both must hold what they promise."""
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    model = net()
    stack = pliant.Stack(pliant.BatchlessNorm(position=position), pliant.WeightNorm())
    stack.apply(model, sample=x)
    seen: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, pliant.nn.BatchlessNorm):
            module.register_forward_pre_hook(lambda _, args, path=path: seen.update({path: args[0].detach()}))
    output = model(x).detach()
    assert len(seen) == 2
    for path, value in seen.items():
        norm = model.get_submodule(path)
        torch.testing.assert_close(norm.mean.detach(), value.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.log_std.detach().exp(), value.std(0, correction=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.std(0, correction=0), torch.ones(2), rtol=1e-4, atol=1e-4)


def test_a_decay_given_to_the_optimizer_is_not_lost():
    applied = pliant.Stack(pliant.WeightNorm()).apply(net(), sample=X)
    rates = [
        {group["weight_decay"] for group in optimizer.param_groups}
        for optimizer in (
            torch.optim.SGD(applied.groups(lr=0.1), weight_decay=0.3),
            torch.optim.AdamW(applied.groups(lr=0.1)),
            torch.optim.AdamW(applied.groups(lr=0.1, weight_decay=0.2), weight_decay=0.3),
            torch.optim.SGD(applied.groups(lr=0.1)),
        )
    ]
    assert rates == [{0.3, 0.0}, {0.01, 0.0}, {0.2, 0.0}, {0.0}]


def test_closures_are_refused_for_step_parts_only():
    def attach(*methods: pliant.Method) -> torch.optim.LBFGS:
        applied = pliant.Stack(*methods).apply(net(), sample=X)
        return applied.attach(torch.optim.LBFGS(applied.model.parameters()))

    optimizer = attach(pliant.BatchNorm())
    optimizer.step(lambda: torch.zeros(()))
    with pytest.raises(ContractError, match="LBFGS calls the loss several times a step"):
        attach(pliant.BatchlessNorm())


def test_a_part_that_is_compiled_is_named_before_anything_is_changed():
    model = nn.Sequential(torch.compile(nn.Linear(4, 8), backend="eager"), nn.ReLU())
    for call in (pliant.Stack(pliant.BatchNorm()).plan, pliant.Stack(pliant.BatchNorm()).apply):
        with pytest.raises(ContractError, match=r"^0 is compiled already; apply the stack first"):
            call(model, X)


def test_a_list_of_methods_is_to_be_unpacked():
    with pytest.raises(SettingError, match=r"unpack it: pliant\.Stack\(\*methods\)"):
        pliant.Stack([pliant.BatchNorm()])


def test_a_second_stack_is_refused_by_the_plan_too():
    model = net()
    pliant.Stack(pliant.BatchNorm()).apply(model, sample=X)
    with pytest.raises(ContractError, match="has a stack already"):
        pliant.Stack(pliant.WeightNorm()).plan(model, X)


def test_the_state_of_a_stack_brings_its_seed():
    first = pliant.Stack(pliant.BatchlessNorm()).apply(net(), sample=X, seed=7)
    second = pliant.Stack(pliant.BatchlessNorm()).apply(net(), sample=X)
    pliant.bind(second.model).load_state(first.state())
    assert second.seed == 7 and second.state() == {"seed": 7, "log": []}
