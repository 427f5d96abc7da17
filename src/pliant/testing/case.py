"""One method on one example net: what every check starts from."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pliant.core import registry
from pliant.core.applied import Applied
from pliant.core.context import Context
from pliant.core.edits import Edits
from pliant.core.errors import NoMatchError, SettingError
from pliant.core.fields import hints
from pliant.core.method import Method
from pliant.core.stack import Stack

from .nets import EXAMPLES, Batch, Example, example

Kind = Literal["sgd", "momentum", "adam"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A method class as the battery tries it: `Meta.settings`, `Meta.companions` and the net `Meta.example`.

    settings: over those of `Meta.settings`; net: another example's name.
    """

    cls: type[Method]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    net: str | None = None

    @property
    def example(self) -> Example:
        return example(self.cls.meta.example if self.net is None else self.net)

    @property
    def method(self) -> Method:
        return self.cls(**{**self.cls.meta.settings, **self.settings})

    @property
    def companions(self) -> list[Method]:
        classes = [registry.get(name) for name in self.cls.meta.companions]
        return [cls(**cls.meta.settings) for cls in classes]

    @property
    def stack(self) -> Stack:
        return Stack(self.method, *self.companions)

    @property
    def bare(self) -> Stack:
        """The stack without the method: the companions alone."""
        return Stack(*self.companions)

    def having(self, **settings: Any) -> Case:
        """The same with other settings."""
        return dataclasses.replace(self, settings={**self.settings, **settings})

    def apply(
        self,
        net: nn.Module | None = None,
        *,
        stack: Stack | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Applied:
        """The stack on the example net (or on `net`), with everything a method may ask for."""
        chosen = self.example
        return (self.stack if stack is None else stack).apply(
            chosen.net(dtype=dtype) if net is None else net,
            chosen.sample(dtype),
            batches=chosen.batches(2, dtype, start=100),
            objective=lambda model, batch: chosen.loss(model(batch[0]), batch[1]),
            optimizer=optimizer,
            total_steps=100,
            seed=seed,
        )

    def context(self, dtype: torch.dtype = torch.float32) -> Context:
        """What `apply` tells a method's plan and calibrate."""
        chosen = self.example
        return Context(
            sample=chosen.sample(dtype),
            batches=chosen.batches(2, dtype, start=100),
            objective=lambda model, batch: chosen.loss(model(batch[0]), batch[1]),
            total_steps=100,
        )

    def variants(self) -> Iterator[Case]:
        """The settings the battery can think of: the example's, off, preserving, and every yes/no or choice changed."""
        meta = self.cls.meta
        given = [dict[str, Any](), dict(meta.off or {}), dict(meta.preserving or {})]
        for field in dataclasses.fields(self.cls):
            present = getattr(self.method, field.name)
            if isinstance(present, bool):
                given.append({field.name: not present})
            hint = hints(self.cls)[field.name]
            if typing.get_origin(hint) is Literal:
                given += [{field.name: choice} for choice in typing.get_args(hint) if choice != present]
        for settings in given:
            case = self.having(**settings)
            try:
                case.stack.plan(case.example.net(), case.example.sample())
            except (SettingError, NoMatchError):
                continue
            yield case

    def everywhere(self) -> Iterator[Case]:
        """The case on every example net that holds a place for it."""
        for name in EXAMPLES:
            case = dataclasses.replace(self, net=name)
            try:
                case.stack.plan(case.example.net(), case.example.sample())
            except NoMatchError:
                continue
            yield case

    def edit(self, net: nn.Module) -> list[tuple[Method, Edits]]:
        """Makes all edits on `net` and calibrates nothing; the plans in the stack's order."""
        ctx = self.context()
        filled: dict[tuple[str, str], str] = {}
        plans = []
        for method in self.stack.methods:
            edits = method.plan(net, ctx)
            edits.apply(net, filled, method.name)
            plans.append((method, edits))
        return plans

    def optimizer(self, applied: Applied, kind: Kind = "momentum") -> Any:
        """An attached optimizer with weight decay, so that wrong groups show."""
        if kind == "adam":
            return applied.attach(torch.optim.AdamW(applied.groups(lr=0.01, weight_decay=0.01)), total_steps=100)
        momentum = 0.9 if kind == "momentum" else 0.0
        optimizer = torch.optim.SGD(applied.groups(lr=0.05, weight_decay=0.01), momentum=momentum)
        return applied.attach(optimizer, total_steps=100)

    def train(self, applied: Applied, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> list[Tensor]:
        """One step a batch, as in the guide; the losses."""
        criterion = applied.criterion(self.example.loss)
        losses = []
        for x, y in batches:
            loss = criterion(applied.model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            applied.advance((x, y))
            losses.append(loss.detach())
        return losses

    def trained(
        self,
        steps: int = 2,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        kind: Kind = "momentum",
    ) -> Applied:
        """The edited net after a few steps."""
        applied = self.apply(seed=seed, dtype=dtype)
        self.train(applied, self.optimizer(applied, kind), self.example.batches(steps, dtype))
        return applied


def edits_model(cls: type[Method]) -> bool:
    """Whether a method has a plan of its own."""
    return cls.plan is not Method.plan
