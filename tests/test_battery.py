"""Every registered method passes the battery."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pliant.core import registry
from pliant.testing import parametrize_with_checks
from pliant.testing.case import Case
from pliant.testing.checks.finish import compiles_as_declared


@parametrize_with_checks()
def test_method(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_inductor(name: str) -> None:
    """The default backend too; it needs a C++ compiler."""
    compiles_as_declared(Case(registry.get(name)), backend="inductor")
