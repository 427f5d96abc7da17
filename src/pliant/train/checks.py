"""Checks of settings. Every refusal names the field, what was found and what was expected."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pliant.core.errors import SettingError, nearest

T = TypeVar("T")


def refuse(owner: object, field: str, found: object, expected: str) -> SettingError:
    """The error for an impossible value; `owner` is the settings object (or its name) that holds the field."""
    name = owner if isinstance(owner, str) else type(owner).__name__
    return SettingError(f"{name}.{field} is {found!r}; expected {expected}")


def whole(owner: object, field: str, least: int) -> None:
    """An int of at least `least`; True and 3.0 are no ints here."""
    value = getattr(owner, field)
    if type(value) is not int or value < least:
        raise refuse(owner, field, value, f"a whole number of at least {least}")


def real(
    owner: object, field: str, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """A finite number between the bounds; an int is taken and kept as a float, so that 1 and 1.0 are one setting."""
    value = getattr(owner, field)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    inside = number and low <= value <= high and not (open_low and value == low) and not (open_high and value == high)
    if not inside:
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise refuse(owner, field, value, f"a number in {bounds}")
    object.__setattr__(owner, field, float(value))


def choice(owner: object, field: str, choices: Collection[str]) -> None:
    """One of the named choices; the error names the nearest."""
    value = getattr(owner, field)
    if value not in choices:
        near = nearest(str(value), choices)
        raise refuse(owner, field, value, near if near.startswith("choose") else f"{', '.join(choices)}; {near}")


def flag(owner: object, field: str) -> None:
    value = getattr(owner, field)
    if not isinstance(value, bool):
        raise refuse(owner, field, value, "true or false")


def reals(owner: object, field: str, low: float, high: float, *, count: int | None = None) -> None:
    """A sequence of numbers strictly between the bounds, kept as a tuple of floats."""
    value = getattr(owner, field)
    good = isinstance(value, list | tuple) and all(
        isinstance(item, int | float) and not isinstance(item, bool) and low < item < high for item in value
    )
    if not good or (count is not None and len(value) != count):
        many = "numbers" if count is None else f"{count} numbers"
        raise refuse(owner, field, value, f"{many} between {low:g} and {high:g}")
    object.__setattr__(owner, field, tuple(float(item) for item in value))


def build(cls: type[T], values: object, where: str) -> T:
    """The dataclass from a mapping of its fields; `where` names the place in errors ("recipe.toml: train")."""
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise SettingError(f"{where} is {values!r}; expected a table with the fields of {cls.__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise SettingError(f"{where} has no field {key!r}: {nearest(str(key), fields)}")
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in needed if name not in values]
    if missing:
        raise SettingError(f"{where} lacks {', '.join(missing)}")
    return cls(**values)


def plain(value: Any) -> Any:
    """Settings as JSON types: dataclasses become dicts, tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
