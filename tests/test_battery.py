"""Every registered method passes the battery."""

from __future__ import annotations

from collections.abc import Callable

from pliant.testing import parametrize_with_checks


@parametrize_with_checks()
def test_method(check: Callable[[], None]) -> None:
    check()
