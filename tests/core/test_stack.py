"""Stacks: an order of their own, conflicts told, plans kept, and all or nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant.core.context import Context
from pliant.core.edits import DropBias, Edits, Replace, Values
from pliant.core.errors import ConflictError, ContractError, NoMatchError, PliantError, SettingError, TraceError
from pliant.core.method import Meta, Method, Phase
from pliant.core.stack import Stack, conflicts
from pliant.core.trace import isolated

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(x)))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(stem=nn.Linear(4, 4), act=nn.ReLU(), block=Block(), out=nn.Linear(4, 3)))


def meta(phase: Phase, **more: Any) -> Meta:
    return Meta(title="Toy", paper="none", summary="toy", phase=phase, **more)


class Snapshot:
    """Everything of a model that an edit could change: names, identities, values, hooks, modes, attributes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.random = torch.get_rng_state()
        self.tensors = {name: (t, t.clone(), t._version) for name, t in self._tensors()}
        self.modules = {path: (m, type(m), m.training, self._dict(m)) for path, m in model.named_modules()}

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers(remove_duplicate=False)]

    @staticmethod
    def _dict(module: nn.Module) -> dict[str, Any]:
        hooks = {k: list(v) for k, v in vars(module).items() if k.endswith("hooks")}
        return hooks | {"keys": set(vars(module)), "children": list(module._modules), "own": list(module._parameters)}

    def assert_unchanged(self) -> None:
        assert torch.equal(self.random, torch.get_rng_state())
        now = dict(self._tensors())
        assert now.keys() == self.tensors.keys()
        for name, (tensor, value, version) in self.tensors.items():
            assert now[name] is tensor and torch.equal(tensor, value) and tensor._version == version, name
        modules = dict(self.model.named_modules())
        assert modules.keys() == self.modules.keys()
        for path, (module, kind, training, attributes) in self.modules.items():
            assert modules[path] is module and type(module) is kind and module.training == training
            assert self._dict(module) == attributes, path


# -- order ---------------------------------------------------------------------------------------------------------

FOUR: list[Callable[[], Method]] = [
    pliant.BNScaleInit,
    pliant.WeightNorm,
    lambda: pliant.StochasticDepth(p_last=0.7),
    pliant.BatchNorm,
]


def test_the_users_order_never_matters():
    results = []
    for order in [*(FOUR[i:] + FOUR[:i] for i in range(4)), FOUR[::-1]]:
        model = net()
        stack = Stack(*(make() for make in order))
        applied = stack.apply(model, sample=X, seed=3)
        optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1, weight_decay=0.01), momentum=0.9))
        criterion = applied.criterion(lambda out: out.square().mean())
        for _ in range(3):
            criterion(model(X)).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append((stack, applied.report, model.state_dict()))
    first = results[0]
    assert [m.name for m in first[0].methods] == ["batch_norm", "stochastic_depth", "weight_norm", "bn_scale_init"]
    for stack, report, state in results[1:]:
        assert stack.identity == first[0].identity and stack.to_json() == first[0].to_json()
        assert report == first[1] and list(state) == list(first[2])
        assert all(torch.equal(state[k], v) for k, v in first[2].items())


def test_methods_of_one_phase_have_an_order_too():
    places = [pliant.BatchNorm(where=["stem"]), pliant.BatchlessNorm(where=["out"])]
    for methods in (places, [pliant.WeightNorm(where=["stem"]), pliant.WeightNorm(where=["out"])]):
        assert Stack(*methods).methods == Stack(*reversed(methods)).methods
        assert Stack(*methods).identity == Stack(*reversed(methods)).identity


def test_stacks_round_trip_through_json():
    stack = Stack(pliant.BatchNorm(eps=1e-3), pliant.StochasticDepth(where=[pliant.Residual("block", branch="fc1")]))
    again = Stack.from_json(stack.to_json())
    assert again.methods == stack.methods and again.identity == stack.identity
    assert Stack.from_json(["weight_norm"]).methods == (pliant.WeightNorm(),)
    assert Stack(pliant.BatchNorm()).identity != stack.identity


def test_what_is_no_method_is_refused_with_a_hint():
    with pytest.raises(SettingError, match=r"a Stack takes methods such as pliant\.BatchNorm\(\); found .*: call it"):
        Stack(pliant.BatchNorm)
    with pytest.raises(SettingError, match="found Linear"):
        Stack(nn.Linear(2, 2))


# -- conflicts -----------------------------------------------------------------------------------------------------


def test_declared_conflicts_raise_with_both_names_and_the_reason():
    with pytest.raises(ConflictError, match="batch_norm with batchless_norm: two normalisations on one site"):
        Stack(pliant.BatchNorm(), pliant.BatchlessNorm())


def test_conflicts_over_sites_fall_when_both_name_their_places():
    Stack(pliant.BatchNorm(where=["stem"]), pliant.BatchlessNorm(where=["out"]))
    with pytest.raises(ConflictError):
        Stack(pliant.BatchNorm(where=["stem"]), pliant.BatchlessNorm())


def test_but_two_in_one_place_are_still_found_out():
    stack = Stack(pliant.BatchNorm(where=["stem"]), pliant.BatchlessNorm(where=["stem"], position="before_activation"))
    model = net()
    before = Snapshot(model)
    with pytest.raises(PliantError):
        stack.apply(model, sample=X)
    before.assert_unchanged()


def test_the_same_method_twice_needs_places():
    with pytest.raises(ConflictError, match=r"the same method twice needs where=\[\.\.\.\] on both"):
        Stack(pliant.WeightNorm(), pliant.WeightNorm(init_scale=0.5))
    Stack(pliant.WeightNorm(where=["stem"]), pliant.WeightNorm(where=["out"]))


def test_notes_are_told_not_raised():
    stack = Stack(pliant.WeightNorm(), pliant.BatchNorm())
    assert any("g is redundant in front of a batch norm" in note for note in stack.notes)
    assert "note: batch_norm with weight_norm" in str(stack.plan(net(), sample=X))


def test_conflicts_are_seen_from_either_side():
    a, b = pliant.BatchNorm(), pliant.BatchlessNorm()
    assert {(p.first, p.kind) for p in conflicts(a, b)} == {(p.first, p.kind) for p in conflicts(b, a)}


# -- plan and apply ------------------------------------------------------------------------------------------------


def test_a_plan_says_what_apply_does_and_does_nothing():
    for makers in ([pliant.BatchNorm], [pliant.BatchlessNorm], FOUR):
        model = net()
        stack = Stack(*(make() for make in makers))
        before = Snapshot(model)
        planned = stack.plan(model, sample=X)
        before.assert_unchanged()
        assert planned == stack.apply(model, sample=X).report


def test_parameters_keep_names_identities_and_values():
    model = net()
    before = dict(model.named_parameters())
    values = {name: p.detach().clone() for name, p in before.items()}
    Stack(pliant.BatchNorm(), pliant.StochasticDepth()).apply(model, sample=X)
    after = dict(model.named_parameters())
    gone = {"stem.bias", "block.fc1.bias"}
    assert before.keys() - after.keys() == gone
    assert all(after[name] is p and torch.equal(p, values[name]) for name, p in before.items() if name not in gone)


def test_tied_parameters_stay_tied():
    model = net()
    model.block.fc2.weight = model.block.fc1.weight
    Stack(pliant.BatchlessNorm()).apply(model, sample=X)
    assert model.block.fc2.weight is model.block.fc1.weight


def test_the_mode_and_dtype_of_the_model_are_kept():
    model = net().double().eval()
    Stack(*(make() for make in FOUR)).apply(model, sample=X.double())
    assert not any(m.training for m in model.modules())
    assert all(p.dtype is torch.float64 for p in model.parameters())


def test_a_sample_may_be_a_dict_or_a_tuple():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(self.fc(x)) * y

    for sample in ((X, X), {"x": X, "y": X}):
        assert Stack(pliant.BatchNorm()).plan(Two(), sample=sample).changed() == ["fc", "fc"]


def test_an_empty_stack_changes_nothing_and_still_serves():
    model = net()
    plain = model(X)
    applied = Stack().apply(model, sample=X)
    assert str(applied.report).startswith("no methods") and torch.equal(model(X), plain)
    assert torch.equal(applied.finalize()(X), plain)


# -- all or nothing ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fails(Method):
    """Edits the structure, sets values, then fails in the named part."""

    part: str = "plan"
    meta: ClassVar[Meta] = meta(Phase.VALUES)

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        if self.part == "plan":
            raise NoMatchError("nothing here")
        with torch.no_grad():
            next(model.parameters()).add_(1.0)  # a fault of the method, kept from the user's model by the rehearsal
        return Edits(
            changes=[
                Replace(path="act", detail="", make=lambda old: nn.Tanh()),
                DropBias(path="out", detail=""),
                *([DropBias(path="no.such.module", detail="")] if self.part == "apply" else []),
            ]
        )

    def calibrate(self, model: nn.Module, ctx: Context, when: str) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        torch.rand(1)
        if self.part == "calibrate":
            raise RuntimeError("no data")


@pytest.mark.parametrize("part", ["plan", "apply", "calibrate"])
def test_a_refusal_anywhere_leaves_the_model_bitwise_and_structurally_unchanged(part: str):
    model = net()
    model.register_forward_hook(lambda *_: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    before = Snapshot(model)
    random = torch.get_rng_state()
    with pytest.raises((NoMatchError, RuntimeError, AttributeError)):
        Stack(*(make() for make in FOUR), Fails(part=part)).apply(model, sample=X, optimizer=optimizer)
    torch.set_rng_state(random)  # Fails draws on purpose
    before.assert_unchanged()
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]


@pytest.mark.parametrize(
    ("stack", "sample", "error"),
    [
        (lambda: Stack(pliant.BatchNorm(where=["typo"])), X, NoMatchError),
        (lambda: Stack(pliant.BatchNorm(), pliant.StochasticDepth(where=["stem"])), X, NoMatchError),
        (lambda: Stack(pliant.BatchNorm()), None, TraceError),
        (lambda: Stack(pliant.BatchNorm()), torch.randn(2, 9), TraceError),
        (lambda: Stack(pliant.WeightNorm()), None, SettingError),
    ],
)
def test_what_plan_refuses_apply_refuses_and_nothing_happens(
    stack: Callable[[], Stack], sample: Any, error: type[Exception]
):
    model = net()
    before = Snapshot(model)
    with pytest.raises(error):
        stack().apply(model, sample=sample)
    before.assert_unchanged()


def test_a_second_stack_is_refused():
    model = net()
    Stack(pliant.WeightNorm()).apply(model, sample=X)
    with pytest.raises(ContractError, match=r"has a stack already; put all methods into one pliant\.Stack"):
        Stack(pliant.BatchNorm()).apply(model, sample=X)


def test_a_compiled_model_is_refused():
    with pytest.raises(ContractError, match="apply the stack first, then compile"):
        Stack(pliant.WeightNorm()).apply(torch.compile(net(), backend="eager"), sample=X)


def test_a_model_that_cannot_be_copied_is_refused():
    model = net()
    model.kept = model(X)
    with pytest.raises(TraceError, match="cannot be deep-copied"):
        Stack(pliant.WeightNorm()).apply(model, sample=X)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grows(Method):
    """Sets a buffer to a size that only calibration knows."""

    meta: ClassVar[Meta] = meta(Phase.VALUES)

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        return Edits(changes=[Values(path="", detail="", tensors=("seen",))])

    def calibrate(self, model: nn.Module, ctx: Context, when: str) -> None:
        model.seen.resize_(5).fill_(2.0)


def test_calibration_may_size_a_tensor_and_its_identity_stays():
    model = net()
    model.register_buffer("seen", torch.zeros(0))
    buffer = model.seen
    Stack(Grows()).apply(model, sample=X)
    assert model.seen is buffer and model.seen.tolist() == [2.0] * 5


def test_a_running_optimizer_is_fitted_and_can_be_attached():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    model(X).sum().backward()
    optimizer.step()
    momentum = optimizer.state[model.stem.weight]["momentum_buffer"].clone()
    weight = model.stem.weight
    applied = Stack(*(make() for make in FOUR)).apply(model, sample=X, optimizer=optimizer)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)
    assert applied.attach(optimizer) is optimizer
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(model.parameters())


def test_isolated_copies_share_nothing():
    model = net()
    twin = isolated(model)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
