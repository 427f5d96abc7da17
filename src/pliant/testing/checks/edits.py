"""What a plan and a calibration may touch, and what they must refuse."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pliant.core.errors import NoMatchError
from pliant.core.method import Method
from pliant.core.stack import Stack

from ..case import Case
from ..snapshot import Tensors, changed, differing, generators, same, structure, tensors


def plan_mutates_nothing(case: Case) -> None:
    """A plan leaves the very model it is given as it was: tree, hooks, modes, every bit, and the global generators."""
    for one in case.everywhere():
        net = one.apply(stack=one.bare).model
        before = structure(net), tensors(net), generators()
        ctx = one.context()
        edits = one.method.plan(net, ctx)
        after = structure(net), tensors(net), generators()
        found = changed(before[0], after[0]) + differing(before[1], after[1]) + changed(before[2], after[2])
        assert not found, f"plan changed {', '.join(found[:4])} of the net {one.example.name!r}; it may only look"
        again = one.method.plan(net, ctx)
        told = [(edit.path, edit.slot, edit.detail, edit.tensors) for edit in edits.changes]
        assert told == [(edit.path, edit.slot, edit.detail, edit.tensors) for edit in again.changes], (
            "two plans of the same net differ; a plan follows from the model, the context and the settings"
        )


class Nothing(nn.Module):
    """A net in which no method can find a place: it returns what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.same(x)


def no_match_is_an_error(case: Case) -> None:
    """Zero edits raise NoMatchError; a selector that matches nothing does too and names the candidates."""
    net: nn.Module = Nothing()
    before = structure(net)
    _must_refuse(case.method, net, torch.zeros(2, 3), "a net without a place for it")
    assert not changed(before, structure(net)), "a refused apply left changes in the model"
    if any(field.name == "where" for field in dataclasses.fields(case.cls)):
        net = case.example.net()
        pattern = next(path for path, module in net.named_modules() if path and not list(module.children())) + "x"
        told = _must_refuse(case.having(where=(pattern,)).method, net, case.example.sample(), f"where=({pattern!r},)")
        assert pattern in told, f"the error does not repeat the pattern {pattern!r}: {told}"
        near = any(repr(path) in told or f" {path}" in told for path, _ in net.named_modules() if path)
        assert near, f"the error names no candidate that is near: {told}"


def _must_refuse(method: Method, net: nn.Module, sample: Tensor, what: str) -> str:
    try:
        Stack(method).apply(net, sample)
    except NoMatchError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"on {what} it raises {type(error).__name__} ({error}), not NoMatchError") from error
    raise AssertionError(
        f"on {what} it changes nothing and says nothing; end plan with `return edits.require(what, remedy)`"
    )


def values_only_where_declared(case: Case) -> None:
    """Edits and calibration leave every value alone but those of new tensors and of `Edit.tensors`.

    Before evaluation the statistics of batch norms may change as well: bringing them up to date is its purpose.
    """
    for one in itertools.chain(case.variants(), case.everywhere()):
        net, ctx = one.example.net(), one.context()
        had = {id(tensor): (name, tensor, tensor.detach().clone()) for name, tensor in _named(net)}
        plans = one.edit(net)
        for name, tensor, value in (had[id(t)] for _, t in _named(net) if id(t) in had):
            assert same(tensor, value), f"an edit changed the values of {name!r} with {one.method!r}; calibrate may"
        for method, edits in plans:
            kept = tensors(net)
            method.calibrate(net, ctx, "start")
            if method == one.method:
                declared = {name for edit in edits.changes for name in edit.tensors}
                _refuse_changes(kept, net, declared, one, 'calibrate(..., "start")')
        kept = tensors(net)
        one.method.calibrate(net, ctx, "end")
        statistics = {
            f"{path}.{name}" if path else name
            for path, module in net.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            for name, _ in module.named_buffers(recurse=False)
        }
        _refuse_changes(kept, net, declared | statistics, one, 'calibrate(..., "end")')


def _named(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(net.named_parameters(), net.named_buffers())


def _refuse_changes(before: Tensors, net: nn.Module, allowed: set[str], case: Case, part: str) -> None:
    found = [name for name in differing(before, tensors(net)) if name not in allowed]
    assert not found, (
        f"{part} changed {', '.join(found[:4])} of the net {case.example.name!r} with {case.method!r}, which no edit "
        "declares; name them in Edit.tensors"
    )


def _plain(name: str) -> str:
    """The name that a parametrised tensor had."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def names_survive(case: Case) -> None:
    """Parameters that stay keep name, identity and state-dict key; those that go are at a path the report names."""
    net = case.example.net()
    had = dict(net.named_parameters())
    keys = set(net.state_dict())
    applied = case.apply(net)
    now = {id(parameter): _plain(name) for name, parameter in applied.model.named_parameters()}
    reported = applied.report.changed()
    for name, parameter in had.items():
        path = name.rpartition(".")[0]
        if id(parameter) in now:
            assert now[id(parameter)] == name, f"the parameter {name!r} is called {now[id(parameter)]!r} after apply"
        else:
            inside = any(path == place or path.startswith(f"{place}.") for place in reported)
            assert inside, f"the parameter {name!r} is another object or gone, and the report names no change there"
    gone = {name for name, parameter in had.items() if id(parameter) not in now}
    lost = keys - gone - {_plain(key) for key in applied.model.state_dict()}
    assert not lost, f"state_dict lost the keys {sorted(lost)[:4]} of the base model"
    twin = copy.deepcopy(applied.model)
    twin.load_state_dict(applied.model.state_dict())
