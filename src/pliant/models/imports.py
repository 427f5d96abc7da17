"""A factory out of a user's file or module, with errors a user can act on."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pliant.core.errors import InputError, nearest


def find_factory(reference: str, root: Path) -> Callable[..., Any]:
    """The callable that "file.py:factory" or "package.module:factory" names; relative files start from `root`.

    Raises InputError when the file, module or attribute is missing, or importing it fails.
    """
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute:
        raise InputError(f"model {reference!r}: expected file.py:factory or package.module:factory")
    module = _load_file(root / Path(place).expanduser()) if place.endswith(".py") else _load_module(place, root)
    factory = getattr(module, attribute, None)
    if factory is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise InputError(f"{place} has no {attribute!r}: {nearest(attribute, public)}")
    if not callable(factory):
        raise InputError(f"{reference} is a {type(factory).__name__}, expected a function or class that builds a model")
    return factory


def short_reason(error: BaseException) -> str:
    """One line: the exception and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        return f"SyntaxError: {error.msg} ({Path(error.filename).name}, line {error.lineno})"
    return f"{type(error).__name__}: {error}{where}"


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        beside = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file; {nearest(path.name, beside)}")
    # Kept in sys.modules so that a file is run once for many runs, and so that its classes can be pickled.
    name = f"pliant_user_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    stamp = path.stat().st_mtime_ns
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__pliant_stamp__", None) == stamp:
        return loaded
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        with _search_first(path.parent):
            specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path} cannot be imported: {short_reason(error)}; fix the file") from error
    module.__dict__["__pliant_stamp__"] = stamp
    return module


def _load_module(name: str, root: Path) -> ModuleType:
    try:
        with _search_first(root):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"module {name!r} is not importable from {root} or the installed packages; "
                "install it, or name its file: file.py:factory"
            ) from None
        raise InputError(f"module {name!r} cannot be imported: {short_reason(error)}; install what it needs") from error
    except Exception as error:
        raise InputError(f"module {name!r} cannot be imported: {short_reason(error)}; fix the module") from error


@contextmanager
def _search_first(directory: Path) -> Iterator[None]:
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
