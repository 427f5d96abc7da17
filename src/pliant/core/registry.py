"""Finding methods: the files of `pliant.methods`, and what other packages offer as entry points `pliant.methods`.

The class of `batch_norm.py` is `BatchNorm`: the file's name without underscores, in whatever case the class prefers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InputError, SettingError, nearest
from .method import Method

GROUP = "pliant.methods"


@functools.cache
def _modules() -> dict[str, str]:
    """Registry name → module, without importing any."""
    spec = importlib.util.find_spec("pliant.methods")
    assert spec is not None and spec.submodule_search_locations is not None
    own = {m.name: f"pliant.methods.{m.name}" for m in pkgutil.iter_modules(spec.submodule_search_locations)}
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name in own:
            raise InputError(
                f"the package that offers the entry point {GROUP}:{point.name} ({point.value}) takes a name that is "
                f"already {own[point.name]}; rename one of them"
            )
        own[point.name] = point.module
    return dict(sorted(own.items()))


def names() -> list[str]:
    """The registry names of all methods, sorted."""
    return list(_modules())


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


@functools.cache
def get(name: str) -> type[Method]:
    """The class of a method by registry name or class name; InputError with the nearest names otherwise."""
    by_plain = {_plain(known): known for known in _modules()}
    known = by_plain.get(_plain(name))
    if known is None:
        raise InputError(f"unknown method {name!r}: {nearest(name, _modules())}")
    module = importlib.import_module(_modules()[known])
    for attribute, value in vars(module).items():
        if _plain(attribute) == _plain(known) and isinstance(value, type) and issubclass(value, Method):
            return value
    raise InputError(f"{module.__name__} defines no Method class named like its file ({known})")


def method_from_json(data: Mapping[str, Any] | str) -> Method:
    """The method from {"method": name, field: value, ...}, or from its bare name with the defaults."""
    if isinstance(data, str):
        return get(data)()
    if "method" not in data:
        raise SettingError(f'a method is written {{method = "batch_norm", ...}}; found the keys {sorted(data)}')
    return get(str(data["method"])).build({key: value for key, value in data.items() if key != "method"})


def methods_from_json(data: Sequence[Mapping[str, Any] | str]) -> list[Method]:
    """A list of methods; see `method_from_json`."""
    return [method_from_json(item) for item in data]


def card(name: str) -> str:
    """The text of a method's card, methods/<name>.md."""
    module = get(name).__module__
    package, _, file = module.rpartition(".")
    resource = importlib.resources.files(package) / f"{file}.md"
    if not resource.is_file():
        raise InputError(f"{module} has no card: write {file}.md beside it")
    return resource.read_text(encoding="utf-8")
