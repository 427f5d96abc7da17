"""Every registered method passes the battery."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pliant.core import registry
from pliant.testing import EXAMPLES, parametrize_with_checks
from pliant.testing.battery import CHECKS
from pliant.testing.case import Case
from pliant.testing.checks.finish import compiles_as_declared


@parametrize_with_checks()
def test_method(check: Callable[[], None]) -> None:
    check()


# These go to every net by themselves, or look at no net.
DONE = {
    "meta_is_consistent",
    "round_trips",
    "wrong_settings_are_errors",
    "a_method_is_no_layer",
    "plan_mutates_nothing",
    "values_only_where_declared",
    "finalize_is_evaluation",
    "pairs_train_or_conflict",
}


@pytest.mark.slow
@pytest.mark.parametrize("net", EXAMPLES)
@pytest.mark.parametrize("name", registry.names())
def test_on_every_net(name: str, net: str) -> None:
    cls = registry.get(name)
    if net not in {case.net for case in Case(cls).everywhere()}:
        pytest.skip("no place for the method")
    for check in CHECKS:
        if check.name not in DONE and check.applies(cls):
            check.run(Case(cls, net=net))


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_inductor(name: str) -> None:
    """The default backend too; it needs a C++ compiler."""
    compiles_as_declared(Case(registry.get(name)), backend="inductor")
