"""What a method must do, as checks that anyone can run: see `pliant.testing.battery`."""

from .battery import CheckFailedError, check_method, checks_for, parametrize_with_checks
from .nets import EXAMPLES, Example, example

__all__ = [
    "EXAMPLES",
    "CheckFailedError",
    "Example",
    "check_method",
    "checks_for",
    "example",
    "parametrize_with_checks",
]
