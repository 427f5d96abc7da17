"""Stacks: methods put in order, checked against each other, planned, and applied to one model.

applied = Stack(BatchNorm(), StochasticDepth()).apply(net, sample=x0)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .applied import Applied, Binding
from .clock import STEP, Clock
from .context import Context
from .edits import Edits
from .errors import ConflictError, ContractError, SettingError
from .method import Method, digest, overrides
from .migrate import migrate, rules
from .registry import methods_from_json
from .report import Entry, Report, entries, trainable
from .trace import isolated


@dataclasses.dataclass(frozen=True)
class Pair:
    """What two methods say about each other. kind: "refused" or "note"."""

    first: str
    second: str
    kind: str
    reason: str


def conflicts(a: Method, b: Method) -> list[Pair]:
    """What is declared about two methods in one stack, by tag. A refusal by site falls when both name their places."""
    found = []
    for one, other in ((a, b), (b, a)):
        for tag in sorted(other.meta.tags):
            if tag in one.meta.refuses and not (tag in one.meta.by_site and _placed(one) and _placed(other)):
                found.append(Pair(one.name, other.name, "refused", one.meta.refuses[tag]))
            if tag in one.meta.notes:
                found.append(Pair(one.name, other.name, "note", one.meta.notes[tag]))
    if type(a).meta is type(b).meta and not (_placed(a) and _placed(b)):
        found.append(Pair(a.name, b.name, "refused", "the same method twice needs where=[...] on both"))
    return list(dict.fromkeys(found))


def _placed(method: Method) -> bool:
    return getattr(method, "where", None) is not None


class Stack:
    """Methods in the order in which they will be applied: by phase, then by name. Declared conflicts raise.

    >>> Stack().to_json()
    []
    """

    def __init__(self, *methods: Method) -> None:
        for method in methods:
            if not isinstance(method, Method):
                hint = "; make an instance of it: call it" if isinstance(method, type) else ""
                hint = "; unpack it: pliant.Stack(*methods)" if isinstance(method, list | tuple) else hint
                raise SettingError(f"a Stack takes methods such as pliant.BatchNorm(); found {method!r}{hint}")
        self.methods = tuple(sorted(methods, key=lambda m: (m.meta.phase, m.name, m.identity)))
        pairs = [pair for a, b in itertools.combinations(self.methods, 2) for pair in conflicts(a, b)]
        refused = [pair for pair in pairs if pair.kind == "refused"]
        if refused:
            raise ConflictError("; ".join(f"{p.first} with {p.second}: {p.reason}" for p in refused))
        losses = [method.name for method in self.methods if overrides(method, "loss")]
        if len(losses) > 1:
            raise ConflictError(f"{' and '.join(losses)} each replace the loss; a stack may hold one of them")
        self.notes = tuple(f"{pair.first} with {pair.second}: {pair.reason}" for pair in pairs)

    def to_json(self) -> list[dict[str, Any]]:
        return [method.to_json() for method in self.methods]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any] | str]) -> Stack:
        return cls(*methods_from_json(data))

    @property
    def identity(self) -> str:
        return digest(self.to_json())

    def __repr__(self) -> str:
        return f"Stack({', '.join(map(repr, self.methods))})"

    def plan(self, model: nn.Module, sample: Any = None, *, seed: int = 0) -> Report:
        """What `apply` would do to this model, without doing it.

        sample: what the model is called with: a tensor, a tuple of arguments or a dict of keyword arguments.
        Raises what `apply` would raise: NoMatchError, ConflictError, TraceError, ContractError.
        """
        _refuse_unfit(model)
        return self._rehearse(isolated(model), Context(sample=sample, seed=seed), calibrate=False)[1]

    def apply(
        self,
        model: nn.Module,
        sample: Any = None,
        *,
        batches: Iterable[Any] | None = None,
        objective: Callable[[nn.Module, Any], Tensor] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> Applied:
        """Edits this model in place and sets the methods' initial values; see `plan` for `sample`.

        batches: calibration batches (tensors, (input, target) pairs or dicts); the sample when none are given.
        objective: `objective(model, batch) -> loss` for methods that need gradients. optimizer: one that is running
        already; it is fitted to the edited model. seed: of the methods' noise.
        Everything is rehearsed on a copy: when anything is refused, the model is as it was.
        """
        _refuse_unfit(model)
        ctx = Context(
            sample=sample, batches=batches, objective=objective, optimizer=optimizer, seed=seed, total_steps=total_steps
        )
        before = {p for p in model.parameters() if p.requires_grad}
        twin = isolated(model)
        plans, report = self._rehearse(twin, ctx, calibrate=True)
        filled: dict[tuple[str, str], str] = {}
        for method, edits in plans:
            edits.apply(model, filled, method.name)
        # The rehearsed copy has the calibrated values; tensors keep their identity.
        values = dict(itertools.chain(twin.named_parameters(), twin.named_buffers()))
        with torch.no_grad():
            for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
                if tensor.shape != values[name].shape:
                    tensor.set_(values[name])  # type: ignore[call-overload]
                # Only what has changed: an expanded buffer (one element seen as many) cannot be written to.
                elif not (tensor.is_meta or torch.equal(tensor, values[name])):
                    tensor.copy_(values[name])
        clock = Clock(self.methods, seed)
        if clock.needed:
            model.register_buffer(STEP, torch.zeros((), dtype=torch.int64, device=_device(model)))
            model.register_forward_pre_hook(clock)
        model.__dict__["_pliant"] = Binding(self, report, seed, clock)
        if optimizer is not None:
            migrate(optimizer, before, rules(model, self.methods))
        return Applied(model, sample=sample)

    def _rehearse(self, twin: nn.Module, ctx: Context, *, calibrate: bool) -> tuple[list[tuple[Method, Edits]], Report]:
        """Plans and edits a copy, method by method: each sees what the ones before it left."""
        start = trainable(twin)
        filled: dict[tuple[str, str], str] = {}
        plans: list[tuple[Method, Edits]] = []
        told: list[Entry] = []
        notes = list(self.notes)
        for method in self.methods:
            edits = method.plan(twin, ctx)
            edits.apply(twin, filled, method.name)
            plans.append((method, edits))
            told += entries(method.name, edits)
            notes += [f"{method.name}: {note}" for note in edits.notes]
        if calibrate:
            for method in self.methods:
                method.calibrate(twin, ctx, "start")
        report = Report(tuple(m.name for m in self.methods), tuple(told), tuple(notes), (start, trainable(twin)))
        return plans, report


def _refuse_unfit(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if hasattr(module, "_orig_mod"):
            raise ContractError(f"{path or 'this model'} is compiled already; apply the stack first, then compile")
    if isinstance(getattr(model, "_pliant", None), Binding):
        raise ContractError("this model has a stack already; put all methods into one pliant.Stack")


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))
