"""The contract stays small: core is at most 3,000 lines, so that one can read it."""

from pathlib import Path

import pliant.core


def test_core_is_small():
    files = Path(pliant.core.__file__).parent.glob("*.py")
    assert sum(len(file.read_text().splitlines()) for file in files) <= 3000
