"""CIFAR-10 as it is distributed: Python pickles (cifar-10-batches-py) or binary batches (cifar-10-batches-bin)."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from pliant.core.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = tuple(f"data_batch_{k}" for k in range(1, 6))
TEST = ("test_batch",)
_PIXELS = 3 * 32 * 32


def read_cifar10(directory: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train, y_train, x_test, y_test; images uint8 N x 3 x 32 x 32, labels int64.

    Raises InputError naming the batch file that is missing, damaged or not plain arrays.
    """
    parts = []
    for names in (TRAIN, TEST):
        batches = [_read_batch(directory, name) for name in names]
        parts += [np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])]
    return parts[0], parts[1], parts[2], parts[3]


def _read_batch(directory: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    pickled, binary = directory / name, directory / f"{name}.bin"
    if pickled.is_file():
        return _read_pickle(pickled)
    if binary.is_file():
        return _read_binary(binary)
    raise InputError(f"{directory}: neither {name} (pickle) nor {name}.bin is there; unpack the CIFAR-10 archive again")


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(content) or len(content) % (1 + _PIXELS):
        raise InputError(
            f"{path}: {len(content)} bytes are not a whole number of {1 + _PIXELS}-byte rows (label, 3x32x32 pixels); "
            "unpack the CIFAR-10 archive again"
        )
    rows = content.reshape(-1, 1 + _PIXELS)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _Refused as error:
        raise InputError(f"{path}: {error}; unpack the CIFAR-10 archive again") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path}: damaged pickle ({error}); unpack the CIFAR-10 archive again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a dict with 'data' and 'labels'")
    entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    missing = [key for key in ("data", "labels") if key not in entries]
    if missing:
        raise InputError(f"{path}: key {missing[0]!r} is missing (found {', '.join(map(str, entries))})")
    data = entries["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        found = f"{data.dtype} of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(f"{path}: 'data' is {found}, expected a uint8 array of shape N x {_PIXELS}")
    return data.reshape(-1, 3, 32, 32), np.asarray(entries["labels"])


class _Refused(Exception):
    pass


def _as_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"encodes text as {encoding!r}, which CIFAR-10 files do not")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Knows numpy's array and dtype and nothing else, so a file cannot run code."""

    # A pickled array is _reconstruct(ndarray, ...) or, from protocol 5 on, _frombuffer(...), and a dtype;
    # Python 3 writes bytes for old protocols as encode(text, "latin1").
    _KNOWN: dict[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy.core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
        ("numpy._core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _as_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise _Refused(f"asks for {module}.{name}, which CIFAR-10 files do not hold (refused)")
        return self._KNOWN[module, name]
