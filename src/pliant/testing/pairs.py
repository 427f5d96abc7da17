"""Every two methods in one stack: a declared conflict, or a short training that stays finite."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pliant.core import registry
from pliant.core.errors import ConflictError, NoMatchError
from pliant.core.method import Method
from pliant.core.stack import Stack, conflicts

from .case import Case
from .nets import EXAMPLES

STEPS = 3


@dataclasses.dataclass(frozen=True)
class Outcome:
    """kind: "refused", "trains" or "apart" (no example net holds places for both); net: where they were trained;
    notes: what the two say about each other."""

    kind: Literal["refused", "trains", "apart"]
    net: str | None
    notes: tuple[str, ...]


def try_pair(first: type[Method], second: type[Method]) -> Outcome:
    """What happens with both in one stack; AssertionError when they neither train nor are a declared conflict."""
    pair = frozenset((first, second))
    if pair not in _OUTCOMES:
        _OUTCOMES[pair] = _try(*sorted(pair, key=lambda cls: (cls.__module__, cls.__qualname__)))
    return _OUTCOMES[pair]


_OUTCOMES: dict[frozenset[type[Method]], Outcome] = {}
"""What was tried in this process: a pair is asked for by both of its methods, and by the page."""


def _try(first: type[Method], second: type[Method]) -> Outcome:
    cases = Case(first), Case(second)
    methods = [case.method for case in cases]
    declared = conflicts(*methods)
    notes = tuple(dict.fromkeys(pair.reason for pair in declared))
    both = [*methods, *_companions(cases, {first, second})]
    if any(pair.kind == "refused" for pair in declared):
        try:
            Stack(*methods)
        except ConflictError as error:
            assert all(note in str(error) for note in notes), f"the refusal does not give its reason: {error}"
            return Outcome("refused", None, notes)
        raise AssertionError(f"{_names(cases)} are declared a conflict, but a Stack takes them")
    for name in dict.fromkeys([first.meta.example, second.meta.example, *EXAMPLES]):
        case = dataclasses.replace(cases[0], net=name)
        try:
            Stack(*both).plan(case.example.net(), case.example.sample())
        except NoMatchError:
            continue
        _train(case, Stack(*both), _names(cases))
        return Outcome("trains", name, notes)
    return Outcome("apart", None, notes)


def _train(case: Case, stack: Stack, names: str) -> None:
    where = f"{names} on the net {case.example.name!r}"
    try:
        applied = case.apply(stack=stack)
        losses = case.train(applied, case.optimizer(applied, "adam"), case.example.batches(STEPS))
        applied.finalize(data=case.example.batches(2, start=20))
    except Exception as error:
        raise AssertionError(
            f"{where}: {type(error).__name__}: {error}. Declare the conflict in meta.refuses, or make them work"
        ) from error
    assert all(bool(loss.isfinite()) for loss in losses), f"{where}: the loss is not finite: {losses}"


def _companions(cases: tuple[Case, Case], present: set[type[Method]]) -> list[Method]:
    names = dict.fromkeys(name for case in cases for name in case.cls.meta.companions)
    classes = [registry.get(name) for name in names]
    return [cls(**cls.meta.settings) for cls in classes if cls not in present]


def _names(cases: tuple[Case, Case]) -> str:
    return " and ".join(case.method.name for case in cases)


def pairs_train_or_conflict(case: Case) -> None:
    """With every other registered method: both in one stack train and finalize, or the conflict is declared."""
    for name in registry.names():
        other = registry.get(name)
        if other is not case.cls:
            try_pair(case.cls, other)
