"""Writing TOML, which Python only reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(table: Mapping[str, Any]) -> str:
    """TOML of a mapping: its plain values first, then each mapping as a [table]. Values that are None are left out.

    >>> print(dumps({"version": 1, "train": {"lr": 0.1, "names": ["a", "b"]}}), end="")
    version = 1
    <BLANKLINE>
    [train]
    lr = 0.1
    names = ["a", "b"]
    """
    lines = _lines({key: item for key, item in table.items() if not isinstance(item, Mapping)})
    for key, item in table.items():
        if isinstance(item, Mapping):
            lines += ["", f"[{_key(key)}]", *_lines(item)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(item)}" for key, item in table.items() if item is not None]


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    # JSON's escapes are TOML's; only the delete character, which TOML forbids raw, is missing.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ("nan" if math.isnan(value) else f"{value:+}"[:4])
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
        return f"{{{inner}}}"
    raise TypeError(f"TOML has no form for a {type(value).__name__}")
