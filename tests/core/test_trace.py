"""Recording on real values: control flow follows the data, in-place changes are seen, refusals name the cause."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pliant.core import trace
from pliant.core.errors import TraceError
from pliant.core.trace import is_layer, isolated, record, record_calls


class Fn(nn.Module):
    """A module whose forward is the given function."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.fn(self, x)


def replay(module: nn.Module, recording: trace.Recording, *args: Any) -> Any:
    return fx.GraphModule(module, recording.graph)(*args)


X = torch.arange(12.0).view(3, 4) / 12


def targets(recording: trace.Recording) -> list[Any]:
    return [node.target for node in recording.graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize(
    "fn",
    [
        lambda m, x: m.fc(x).view(x.size(0), -1),
        lambda m, x: m.fc(x).reshape(x.shape[0], 2, x.shape[1] // 2),
        lambda m, x: m.fc(x) if x.dim() == 2 and x.shape[-1] == 4 else x,
        lambda m, x: sum(part for part in m.fc(x).chunk(2, dim=1)),
        lambda m, x: torch.cat([m.fc(x), x], dim=1) * x.size(-1),
        lambda m, x: m.fc(x).to(x.dtype) if x.is_floating_point() else x,
        lambda m, x: F.linear(x, m.fc.weight, m.fc.bias),
        lambda m, x: m.fc(x).max(dim=1, keepdim=True).values,
        lambda m, x: torch.stack([m.fc(row) for row in x]) + len(x),
        lambda m, x: {"a": m.fc(x), "b": (x, 3)},
        lambda m, x: m.fc(x) + (1 if float(x.sum()) > 0 else 2),
        lambda m, x: m.fc(x)[:, : int(x.shape[1]) - 1],
    ],
)
def test_the_graph_computes_what_the_module_computes(fn: Any):
    module = Fn(fn)
    recording = record(module, (X,))
    expected = module(X)
    got = replay(module, recording, X)
    for want, have in zip(torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(got), strict=True):
        assert torch.equal(torch.as_tensor(want), torch.as_tensor(have))


def test_sizes_are_followed_not_baked():
    module = Fn(lambda m, x: m.fc(x).reshape(x.size(0) * 2, -1))
    recording = record(module, (X,))
    assert replay(module, recording, torch.ones(5, 4)).shape == (10, 2)
    assert not recording.asked


def test_asking_for_a_value_is_noted():
    assert record(Fn(lambda m, x: x if x.sum() > 0 else m.fc(x)), (X,)).asked
    assert record(Fn(lambda m, x: m.fc(x) if x.shape[0] > 1 else x), (X,)).asked
    assert not record(Fn(lambda m, x: m.fc(x)), (X,)).asked


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_modules_own(training: bool):
    module = Fn(lambda m, x: F.dropout(m.fc(x), 0.5, m.training)).train(training)
    recording = record(module, (X,))
    (node,) = [n for n in recording.graph.nodes if n.target is F.dropout]
    assert node.kwargs["training"] is training


def test_plus_equals_stays_in_place_in_the_graph():
    def aliased(m: Fn, x: Tensor) -> Tensor:
        out = m.fc(x)
        held = out
        out += x
        return out * held

    module = Fn(aliased)
    recording = record(module, (X,))
    assert operator.iadd in targets(recording)
    assert torch.equal(replay(module, recording, X), module(X))


@pytest.mark.parametrize(
    ("name", "number"), [("iadd", 1.0), ("isub", 1.0), ("imul", 3.0), ("itruediv", 4.0), ("ipow", 2.0), ("imod", 2.0)]
)
def test_every_augmented_assignment_is_followed(name: str, number: float):
    def fn(m: Fn, x: Tensor) -> Tensor:
        out = m.fc(x)
        held = out
        out = getattr(operator, name)(out, number)
        return out + held

    module = Fn(fn)
    recording = record(module, (X,))
    assert torch.equal(replay(module, recording, X), module(X))
    assert [node.name for node in recording.mutated] == [name]


def test_plus_equals_on_a_size_binds_a_new_number():
    def fn(m: Fn, x: Tensor) -> Tensor:
        n = x.size(0)
        more = n
        more += 2
        return m.fc(x).sum() * n + more

    module = Fn(fn)
    assert torch.equal(replay(module, record(module, (X,)), X), module(X))


@pytest.mark.parametrize(
    "fn",
    [
        lambda m, x: m.fc(x).relu_(),
        lambda m, x: F.relu(m.fc(x), inplace=True),
        lambda m, x: torch.relu_(m.fc(x)),
        lambda m, x: m.fc(x).add_(x),
        lambda m, x: m.fc(x).view(-1).mul_(2.0),
    ],
)
def test_in_place_changes_are_found_by_what_they_do(fn: Any):
    recording = record(Fn(fn), (X,))
    ((node, changed),) = recording.mutated.items()
    assert node is list(recording.graph.nodes)[-2] and len(changed) == 1


def test_recording_leaves_random_numbers_gradients_and_globals_alone():
    module = Fn(lambda m, x: F.dropout(m.fc(x), 0.5, True))
    state = torch.get_rng_state()
    recording = record(module, (X,))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(isinstance(v, Tensor) and v.requires_grad and v.grad_fn for v in recording.values.values())


def test_arguments_that_are_no_tensors_become_constants():
    class Scaled(nn.Module):
        def forward(self, x: Tensor, *, factor: float = 2.0, mode: str | None = None) -> Tensor:
            return x * factor if mode is None else x

    recording = record(Scaled(), (X,), {"factor": 3.0})
    assert list(recording.inputs) == ["x"] and recording.constants == {"factor": 3.0, "mode": None}
    assert torch.equal(replay(Scaled(), recording, X), X * 3)


def _assign(module: Fn, x: Tensor) -> Tensor:
    out = module.fc(x)
    out[:, 0] = 1.0
    return out


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (Fn(lambda m, x: x), (), "cannot be called with this sample"),
        (Fn(lambda m, x: x["a"]), ({"a": X},), "argument 'x' of Fn.forward is a dict of tensors"),
        (Fn(lambda m, x: x @ torch.ones(9, 9)), (X,), r"the forward of Fn could not be followed \(RuntimeError"),
        (Fn(_assign), (X.clone(),), "could not be followed"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_cause(module: nn.Module, args: tuple, message: str):
    with pytest.raises(TraceError, match=message):
        record(module, args)


def test_a_model_that_cannot_be_copied_is_refused_with_a_remedy():
    model = nn.Linear(2, 2)
    model.kept = model(torch.zeros(1, 2))  # a tensor with a history
    with pytest.raises(TraceError, match=r"cannot be deep-copied .* Remove non-leaf tensors"):
        isolated(model)


def test_calls_are_recorded_in_the_order_they_start():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    calls = record_calls(model, ((X,), {}))
    assert list(calls) == ["", "0", "0.0", "0.1", "1"]
    assert torch.equal(calls["0"][0][0][0], X) and not model._forward_pre_hooks


def test_a_model_that_fails_on_the_sample_says_so_and_is_left_without_hooks():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(TraceError, match=r"the model fails on the sample .*pass sample= exactly as you call"):
        record_calls(model, ((torch.zeros(2, 9),), {}))
    assert not model[0]._forward_pre_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        (nn.Linear(2, 2), True),
        (nn.MultiheadAttention(2, 1), True),
        (nn.Sequential(), False),
        (nn.Sequential(nn.ReLU()), False),
        (Fn(lambda m, x: x), False),
    ],
)
def test_what_counts_as_one_layer(module: nn.Module, layer: bool):
    assert is_layer(module) is layer


def test_a_childless_module_with_parameters_is_a_layer_and_one_without_is_a_function():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    class Reshape(nn.Module):
        pass

    assert is_layer(Scale()) and not is_layer(Reshape())
