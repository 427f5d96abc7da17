"""The battery: what every method is tested for, built in or from another package.

pliant.testing.check_method(MyMethod)          # raises at the first fault and names the check

@pliant.testing.parametrize_with_checks()      # pytest: one test per method and check
def test_method(check):
    check()
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

from pliant.core import registry
from pliant.core.method import Method

from . import pairs, processes
from .case import Case, edits_model
from .checks import data_form, edits, finish, function, optimizers, runs


class CheckFailedError(AssertionError):
    """A method does not do what the contract, or its own `meta`, says. The message names method and check."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the battery. applies: whether a method class has what the check is about."""

    run: Callable[[Case], None]
    applies: Callable[[type[Method]], bool] = lambda _: True

    @property
    def name(self) -> str:
        return self.run.__name__


CHECKS = (
    Check(data_form.meta_is_consistent),
    Check(data_form.round_trips),
    Check(data_form.wrong_settings_are_errors),
    Check(data_form.a_method_is_no_layer),
    Check(edits.plan_mutates_nothing),
    Check(edits.no_match_is_an_error, edits_model),
    Check(edits.values_only_where_declared),
    Check(edits.names_survive),
    Check(function.off_is_bitwise_the_base, lambda cls: cls.meta.off is not None),
    Check(function.function_is_as_declared),
    Check(function.float64_throughout),
    Check(function.gradients_are_derivatives, lambda cls: "straight_through" not in cls.meta.tags),
    Check(function.evaluation_is_pure),
    Check(function.copies_are_independent),
    Check(runs.same_seed_same_run),
    Check(runs.interrupted_is_uninterrupted),
    Check(runs.accumulation_is_as_declared),
    Check(runs.bfloat16_autocast_is_finite),
    Check(optimizers.groups_hold_each_parameter_once),
    Check(optimizers.running_optimizer_survives),
    Check(optimizers.unfit_optimizers_are_refused),
    Check(optimizers.forgotten_lines_are_errors, optimizers.has_lines_to_forget),
    Check(finish.finalize_is_evaluation),
    Check(finish.finished_net_exports),
    Check(finish.compiles_as_declared),
    Check(pairs.pairs_train_or_conflict),
)
PROCESSES = "processes_are_as_declared"


def checks_for(cls: type[Method], started: processes.Processes | None = None) -> list[tuple[str, Callable[[], None]]]:
    """The checks of a method as (name, callable without arguments); a callable raises CheckFailedError.

    started: the two processes that test data parallel training, when several methods share them.
    """
    case = Case(cls)
    shared = processes.Processes(cls) if started is None else started
    found = [(check.name, check.run) for check in CHECKS if check.applies(cls)]
    found.append((PROCESSES, functools.partial(processes.compare, processes=shared)))
    return [(name, functools.partial(_run, case, name, run)) for name, run in found]


def _run(case: Case, name: str, run: Callable[[Case], None]) -> None:
    try:
        run(case)
    except Exception as error:
        told = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise CheckFailedError(f"{case.cls.__name__} fails the check {name!r}: {told}") from error


def check_method(cls: type[Method]) -> None:
    """Runs the whole battery on a method class; CheckFailedError at the first fault. Takes some ten seconds.

    Starts two processes, which import the class: call it from a test, or under `if __name__ == "__main__":`.
    """
    for _, check in checks_for(cls):
        check()


def parametrize_with_checks(classes: Iterable[type[Method]] | None = None) -> Any:
    """A pytest decorator: the test gets `check`, one check of one method at a time.

    classes: method classes, by default all registered ones.
    """
    import pytest

    chosen = [registry.get(name) for name in registry.names()] if classes is None else list(classes)
    shared = processes.Processes(*chosen)
    parameters = [
        pytest.param(check, id=f"{cls.__name__}-{name}") for cls in chosen for name, check in checks_for(cls, shared)
    ]
    return pytest.mark.parametrize("check", parameters)
