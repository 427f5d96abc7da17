"""IDX, the format of MNIST: two zero bytes, a type code, the number of dimensions, sizes, values (big-endian)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pliant.core.errors import InputError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CODES = ", ".join(f"0x{code:02x}" for code in _TYPES)


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, plain or gzipped (told by its first bytes, not its name), in native byte order.

    Raises InputError naming the file for a bad magic number, a truncated gzip stream and a wrong length.
    """
    try:
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            return _read(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if gzipped else raw, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged gzip data ({error}); fetch the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from None


def _read(file: BinaryIO, path: Path) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not magic[3]:
        raise InputError(
            f"{path}: first bytes are 0x{magic.hex()}, expected an IDX magic number (0x0000, a type of {_CODES}, "
            "the number of dimensions); this is not an IDX file: fetch it again"
        )
    sizes_length = 4 * magic[3]
    header = file.read(sizes_length)
    if len(header) < sizes_length:
        raise InputError(f"{path}: ends inside its header; fetch the file again")
    shape = struct.unpack(f">{magic[3]}I", header)
    dtype = np.dtype(_TYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    # Chunks bound the memory by what is in the file, whatever sizes a damaged header claims.
    body = bytearray()
    while len(body) <= expected and (chunk := file.read(min(1 << 24, expected + 1 - len(body)))):
        body += chunk
    if len(body) != expected:
        found = f"{len(body)}" if len(body) < expected else "more"
        raise InputError(
            f"{path}: has {found} bytes of values, expected {expected} for shape {'x'.join(map(str, shape))}; "
            "fetch the file again"
        )
    return np.frombuffer(body, dtype).astype(dtype.newbyteorder("=")).reshape(shape)
