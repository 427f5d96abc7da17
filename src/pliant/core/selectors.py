"""Choosing modules by path: globs over whole segments, so that `layers.1` never means `layers.10`."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence

from .errors import NoMatchError, nearest
from .method import Setting


@dataclasses.dataclass(frozen=True)
class Residual(Setting):
    """Names residual blocks whose forward cannot be traced: `Residual("layers.*", branch="body")`.

    path: glob of the blocks; branch: the child module that computes the residual branch, so that the block
    computes shortcut + branch(...).
    """

    path: str
    branch: str


Where = tuple[str | Residual, ...]


def matches(pattern: str, path: str) -> bool:
    """Whether a glob matches a module path. `*` stands within one segment, `**` for any number of segments.

    >>> matches("layers.1", "layers.10"), matches("layers.*", "layers.1"), matches("**.fc", "a.b.fc")
    (False, True, True)
    """
    return _matches(pattern.split("."), path.split("."))


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(pattern[1:], path[skip:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])


def select(patterns: Iterable[str], paths: Sequence[str], what: str) -> list[str]:
    """The paths matched by any pattern, in the model's order. A pattern that matches nothing is an error.

    what: names the candidates in the error, e.g. "linear and convolution layers".
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = [path for path in paths if matches(pattern, path)]
        if not found:
            raise NoMatchError(f"where={pattern!r} matches none of the {what}: {nearest(pattern, paths)}")
        chosen.update(found)
    return [path for path in paths if path in chosen]
