"""Values of a method's fields held to their annotations, so that a typing mistake in a recipe is told by name."""

from __future__ import annotations

import functools
import math
import types
import typing
from typing import Any, Literal, Union

from .errors import SettingError

_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a string", type(None): "None"}


def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a settings class.

    >>> class Setting:
    ...     rate: "float"
    >>> hints(Setting)
    {'rate': <class 'float'>}
    """
    return _resolved(cls)


@functools.cache
def _resolved(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise TypeError(
            f"an annotation of {cls.__name__} cannot be resolved at run time ({error}); import the name outside of "
            "`if TYPE_CHECKING:`"
        ) from error


def conform(value: Any, hint: Any, where: str) -> Any:
    """`value` as its annotation wants it: an int given for a float becomes one, so that 1 and 1.0 are one setting.

    SettingError when it has another type, is not one of a Literal's choices, or is not finite. where: names the field.

    >>> conform((1, 2), tuple[float, ...], "Method.rates")
    (1.0, 2.0)
    """
    fitted = _fit(value, hint)
    if fitted is _NO:
        raise SettingError(f"{where}={value!r}; expected {_told(hint)}")
    return fitted


_NO = object()


def _fit(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        fitted = [_fit(value, one) for one in arguments]
        return next((one for one in fitted if type(one) is type(value)), next((f for f in fitted if f is not _NO), _NO))
    if origin is Literal:
        return value if any(type(value) is type(one) and value == one for one in arguments) else _NO
    if origin is tuple:
        if not isinstance(value, tuple):
            return _NO
        each = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
        items = [_fit(item, one) for item, one in zip(value, each, strict=False)]
        return _NO if len(each) != len(value) or _NO in items else tuple(items)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if number else _NO
    if hint is int:
        return value if type(value) is int else _NO
    return value if isinstance(value, hint) else _NO


def _told(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_told(one) for one in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        each = "nothing" if not arguments else _told(arguments[0])
        return f"[{each}, ...]" if arguments[-1:] == (Ellipsis,) else f"a list of {len(arguments)}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
