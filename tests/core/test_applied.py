"""The handles of an edited model: binding, the step, compiling, and a finished copy that is checked."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.core.applied import Applied, bind
from pliant.core.context import Context
from pliant.core.edits import Edits, Values
from pliant.core.errors import ContractError, FinalizeError, InputError
from pliant.core.method import Meta, Method, Phase
from pliant.core.stack import Stack

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
DONE: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    DONE.clear()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(x)))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(stem=nn.Linear(4, 4), act=nn.ReLU(), block=Block(), out=nn.Linear(4, 3)))


def everything() -> Stack:
    return Stack(pliant.BatchNorm(), pliant.WeightNorm(), pliant.StochasticDepth(), pliant.BNScaleInit(gamma0=0.5))


def train(applied: Applied, steps: int = 5) -> torch.optim.Optimizer:
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1, weight_decay=0.01)), total_steps=steps)
    criterion = applied.criterion(F.cross_entropy)
    for _ in range(steps):
        criterion(applied.model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Does one thing in one part."""

    part: str = "bake"
    amount: float = 1.0
    meta: ClassVar[Meta] = Meta(title="Toy", paper="none", summary="toy", phase=Phase.VALUES)

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        return Edits(changes=[Values(path="out", detail="")])

    def before_step(self, model: nn.Module, ctx: Context) -> None:
        DONE.append(("before", ctx.step, ctx.total_steps, type(ctx.optimizer).__name__, torch.is_grad_enabled()))

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        DONE.append(("after", ctx.step, float(model.out.bias.detach()[0])))

    def bake(self, model: nn.Module, ctx: Context) -> None:
        DONE.append("bake")
        if self.part == "bake":
            model.out.bias.add_(self.amount)

    def fold(self, model: nn.Module, ctx: Context) -> None:
        DONE.append("fold")

    def pack(self, model: nn.Module, ctx: Context) -> None:
        DONE.append("pack")
        if self.part == "pack":
            model.out = nn.Linear(4, 7)


# -- binding -------------------------------------------------------------------------------------------------------


def test_bind_recovers_the_handles_of_a_loaded_model():
    model, other = net(), net()
    applied = everything().apply(model, sample=X, seed=5)
    train(applied)
    everything().apply(other, sample=X, seed=5)
    other.load_state_dict(model.state_dict())
    found = bind(other, sample=X)
    assert found.stack.identity == applied.stack.identity and found.seed == 5 and found.model is other
    assert found.report == applied.report
    model.eval(), other.eval()
    assert torch.equal(model(X), other(X)) and torch.equal(found.finalize()(X), applied.finalize()(X))


def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit():
    whole, parted = net(), net()
    train(everything().apply(whole, sample=X), steps=7)
    applied = everything().apply(parted, sample=X)
    train(applied, steps=3)
    resumed = net()
    everything().apply(resumed, sample=X)
    resumed.load_state_dict(copy.deepcopy(parted.state_dict()))
    train(bind(resumed), steps=4)
    assert all(torch.equal(whole.state_dict()[k], v) for k, v in resumed.state_dict().items())


def test_a_model_without_a_stack_cannot_be_bound():
    with pytest.raises(ContractError, match="this model has no stack: build it, apply the stack"):
        bind(net())


def test_a_copy_of_the_model_keeps_its_stack():
    model = net()
    everything().apply(model, sample=X)
    twin = copy.deepcopy(model)
    train(bind(twin))
    assert int(twin.pliant_step) == 5 and int(model.pliant_step) == 0


# -- around the step -----------------------------------------------------------------------------------------------


def test_step_parts_run_around_the_step_without_gradients():
    model = net()
    applied = Stack(Toy()).apply(model)
    bias = float(model.out.bias.detach()[0])
    optimizer = train(applied, steps=1)
    before, after = DONE
    assert before == ("before", 1, 1, "SGD", False)
    assert after[:2] == ("after", 1) and after[2] == float(model.out.bias.detach()[0]) != bias
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_step_that_a_scaler_refused_leaves_the_methods_out():
    model = net()
    applied = Stack(Toy()).apply(model)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1), fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    weight = model.out.weight.detach().clone()
    scaler.scale(model(X).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert DONE == [] and torch.equal(model.out.weight, weight)
    optimizer.zero_grad()
    scaler.scale(model(X).sum()).backward()
    scaler.step(optimizer)
    assert [done[0] for done in DONE] == ["before", "after"] and not torch.equal(model.out.weight, weight)


@pytest.mark.parametrize("call", [lambda o: o.step(lambda: torch.zeros(())), lambda o: o.step(closure=lambda: 0.0)])
def test_closures_are_refused(call: Any):
    applied = Stack(Toy()).apply(net())
    with pytest.raises(ContractError, match=r"call step\(\) without a closure"):
        call(applied.attach(torch.optim.SGD(applied.groups(lr=0.1))))


def test_attach_gives_back_the_very_optimizer_and_checks_it():
    model = net()
    stale = torch.optim.SGD(model.parameters(), lr=0.1)
    applied = Stack(pliant.BatchNorm()).apply(model, sample=X)
    with pytest.raises(ContractError, match=r"build it from applied\.groups"):
        applied.attach(stale)
    fresh = torch.optim.Adam(applied.groups(lr=0.1, betas=(0.8, 0.9)))
    assert applied.attach(fresh) is fresh and fresh.param_groups[0]["betas"] == (0.8, 0.9)


def test_facts_that_loops_ask_for():
    applied = Stack(pliant.StochasticDepth()).apply(net(), sample=X)
    assert applied.may_skip_parameters and not applied.has_terms
    assert Stack(pliant.BatchlessNorm()).apply(net(), sample=X).has_terms


# -- finalize ------------------------------------------------------------------------------------------------------


def test_the_finished_copy_is_the_plain_net_and_computes_the_same():
    model = net()
    applied = everything().apply(model, sample=X)
    train(applied)
    lean = applied.finalize()
    model.eval()
    torch.testing.assert_close(lean(X), model(X), rtol=1e-5, atol=1e-5)
    plain = net()
    assert [(n, type(m)) for n, m in lean.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert lean.state_dict().keys() == plain.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in lean.modules())
    assert not lean.training and "_pliant" not in vars(lean)


def test_finalize_leaves_the_trained_model_alone():
    model = net()
    applied = everything().apply(model, sample=X)
    train(applied)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    applied.finalize(data=[(X, Y)])
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    train(applied, steps=2)


def test_data_brings_population_statistics():
    model = net()
    applied = Stack(pliant.BatchNorm()).apply(model, sample=X)
    lean = applied.finalize(data=[X[:3], X[3:]])
    model.eval()
    h = F.linear(X, model.stem.weight)
    mean = (h[:3].mean(0) + h[3:].mean(0)) / 2
    var = (h[:3].var(0) + h[3:].var(0)) / 2
    normalised = (h - mean) / torch.sqrt(var + 1e-5)
    torch.testing.assert_close(lean.stem(X), normalised, rtol=1e-4, atol=1e-5)


def test_calibrating_at_the_end_works_in_place():
    model = net()
    applied = Stack(pliant.BatchNorm()).apply(model, sample=X)
    applied.calibrate_end([X])
    torch.testing.assert_close(model.stem.norm.running_mean, F.linear(X, model.stem.weight).mean(0))


def test_stages_run_in_order_for_all_methods():
    Stack(Toy(part="none")).apply(net(), sample=X).finalize()
    assert DONE == ["bake", "fold", "pack"]


@pytest.mark.parametrize(
    ("toy", "message"),
    [
        (Toy(part="bake", amount=0.1), r"not the trained one in eval mode: it differs by 0\.1 \(allowed 0\.000"),
        (Toy(part="bake", amount=float("1e30")), "it differs by 1e"),
        (Toy(part="pack"), r"returns \(6, 7\) instead of \(6, 3\)"),
    ],
)
def test_a_copy_that_computes_something_else_is_refused(toy: Toy, message: str):
    with pytest.raises(FinalizeError, match=message):
        Stack(toy).apply(net(), sample=X).finalize()


def test_nan_outputs_are_no_agreement():
    model = net()
    with torch.no_grad():
        model.out.bias[0] = float("nan")
    with pytest.raises(FinalizeError, match="compared with NaN: the model has diverged"):
        Stack(Toy(part="none")).apply(model, sample=X).finalize()


def test_finalize_needs_real_input():
    applied = Stack(pliant.WeightNorm(data_init=False)).apply(net())
    with pytest.raises(InputError, match="pass data=loader or sample=x"):
        applied.finalize()
    assert applied.finalize(sample=X)(X).shape == (6, 3)
    assert applied.finalize(data=[(X, Y)])(X).shape == (6, 3)


# -- compiling -----------------------------------------------------------------------------------------------------


# torch looks at .grad of a segment's input and hides its own warning, which pytest has turned into an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("methods", [[], [pliant.StochasticDepth()]])
def test_compiled_training_is_eager_training(methods: list[Method]):
    models = net(), net()
    for model, compiled in zip(models, (False, True), strict=True):
        applied = Stack(pliant.BatchNorm(), pliant.WeightNorm(), *methods).apply(model, sample=X, seed=1)
        if compiled:
            applied.compile(backend="aot_eager")
        train(applied, steps=4)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    lean = bind(models[1], sample=X).finalize()
    assert not any(m._compiled_call_impl for m in lean.modules())


def test_a_method_that_cannot_train_compiled_says_so():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Before(Method):
        meta: ClassVar[Meta] = Meta(title="B", paper="none", summary="b", phase=Phase.VALUES, compile="before")

    applied = Stack(Before()).apply(net())
    with pytest.raises(ContractError, match="cannot train compiled; finalize first, then compile the result"):
        applied.compile()


# -- structure that changes while training -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grows(Method):
    """Adds an identity module with every odd batch."""

    meta: ClassVar[Meta] = Meta(title="Grows", paper="none", summary="grows", phase=Phase.VALUES)

    def advance(self, model: nn.Module, ctx: Context, batch: Any) -> Any:
        if batch % 2 == 0:
            return None
        model.add_module(f"new{batch}", nn.Identity())
        return {"number": batch}

    def replay(self, model: nn.Module, ctx: Context, entry: Any) -> None:
        model.add_module(f"new{entry['number']}", nn.Identity())


def test_growth_is_logged_and_made_again():
    model, other = net(), net()
    applied = Stack(Grows()).apply(model)
    for batch in (1, 2, 3):
        model(X)
        applied.advance(batch)
    assert applied.state()["log"] == [
        {"method": "test_applied", "step": 1, "entry": {"number": 1}},
        {"method": "test_applied", "step": 3, "entry": {"number": 3}},
    ]
    again = Stack(Grows()).apply(other)
    again.load_state(applied.state())
    assert [n for n, _ in other.named_children()] == [n for n, _ in model.named_children()]
    again.load_state(applied.state())
    assert again.state() == applied.state() == bind(other).state()


def test_attaching_again_replaces_the_step_part() -> None:
    model = net()
    applied = Stack(Toy()).apply(model)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1)))
    bind(model).attach(optimizer)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert [entry[0] for entry in DONE] == ["before", "after"]
