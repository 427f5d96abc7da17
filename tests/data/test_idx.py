"""IDX against a writer written from the format's description (LeCun's MNIST page)."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pliant.core.errors import InputError
from pliant.data.idx import read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def encode(array: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


arrays = st.sampled_from(sorted(CODES)).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


@settings(deadline=None)
@given(arrays, st.booleans())
def test_reads_what_was_written(array: np.ndarray, gzipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # The name does not matter: gzip is told by its first bytes.
        path = Path(folder) / "file"
        content = encode(array)
        path.write_bytes(gzip.compress(content) if gzipped else content)
        back = read_idx(path)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@settings(deadline=None)
@given(arrays.filter(lambda a: a.size > 0), st.data(), st.booleans())
def test_any_shortened_file_is_refused(array: np.ndarray, data: st.DataObject, gzipped: bool) -> None:
    content = encode(array)
    content = gzip.compress(content) if gzipped else content
    kept = data.draw(st.integers(0, len(content) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "short"
        path.write_bytes(content[:kept])
        with pytest.raises(InputError, match="short"):
            read_idx(path)


GOOD = encode(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "first bytes are 0x, expected an IDX magic number"),
        (b"\x89PNG\r\n", "0x89504e47, expected an IDX magic"),
        (b"\0\0\x07\x01\0\0\0\0", "expected an IDX magic"),
        (b"\0\0\x08\0", "expected an IDX magic"),
        (GOOD[:9], "ends inside its header"),
        (GOOD[:-1], "has 5 bytes of values, expected 6 for shape 2x3"),
        (GOOD + b"\0", "has more bytes of values, expected 6"),
        (b"\0\0\x08\x02" + b"\xff" * 8 + b"123", "has 3 bytes of values"),
        (gzip.compress(GOOD)[:-9], "damaged gzip"),
        (gzip.compress(GOOD)[:-8] + b"\0" * 8, "damaged gzip"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_unreadable_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(tmp_path)
