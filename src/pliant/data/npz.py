"""NumPy archives: x_train and y_train (and x_valid, y_valid, x_test, y_test), or x and y."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from pliant.core.errors import InputError
from pliant.data.dataset import ArrayData

_EXPECTED = "x_train and y_train (x_valid, y_valid, x_test, y_test may follow), or x and y"


def load_npz(path: Path) -> ArrayData:
    """The dataset in a .npz file. Pickled (object) arrays are refused: they could run code.

    Raises InputError naming the file and the key.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of an .npz archive with {_EXPECTED}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz archive, or cut short; write it again with numpy.savez")
    with np.load(path, allow_pickle=False) as archive:
        keys = list(archive.files)
        plain = "x" in keys and "x_train" not in keys
        first, second = ("x", "y") if plain else ("x_train", "y_train")
        missing = [key for key in (first, second) if key not in keys]
        if missing:
            raise InputError(
                f"{path}: key {missing[0]!r} is missing (found {', '.join(keys) or 'none'}); expected {_EXPECTED}"
            )
        optional = [f"{kind}_{part}" for part in ("valid", "test") for kind in "xy"]
        arrays = {key: _read(archive, key, path) for key in (first, second, *optional) if key in keys}
    return ArrayData(
        arrays[first],
        arrays[second],
        arrays.get("x_test"),
        arrays.get("y_test"),
        x_valid=arrays.get("x_valid"),
        y_valid=arrays.get("y_valid"),
        name=f"npz {path}",
    )


def _read(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        return archive[key]
    except ValueError as error:
        if "pickle" in str(error):
            raise InputError(
                f"{path}: key {key!r} is an object array, which only pickle can read (refused); "
                "save plain numbers of one shape"
            ) from None
        raise InputError(f"{path}: key {key!r} is damaged ({error}); write the archive again") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{path}: key {key!r} is damaged ({error}); write the archive again") from None
