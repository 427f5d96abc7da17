"""CIFAR-10 in its two distributed forms, and pickles that must not be believed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pliant.core.errors import InputError
from pliant.data.cifar import TEST, TRAIN, read_cifar10

ROWS = 4


def make(seed: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8), rng.integers(0, 10, ROWS).tolist()


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes Python 2 wrote: str as byte strings, the array's data as one of them."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value
        )

    minus_one = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\0K\1tR(K\3" + text(b"|") + b"NNN" + minus_one * 2 + b"K\0tb"
    shape = b"(K" + bytes([len(pixels)]) + b"M\x00\x0ct"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + text(b"b") + b"tR(K\1" + shape + dtype
        + b"\x89" + text(pixels.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def write_all(folder: Path, form: str) -> dict[str, tuple[np.ndarray, list[int]]]:
    batches = {name: make(k) for k, name in enumerate((*TRAIN, *TEST))}
    for name, (pixels, labels) in batches.items():
        if form == "bin":
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        elif form == "python 2":
            (folder / name).write_bytes(python2_pickle(pixels, labels))
        else:
            (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}, protocol=int(form[-1])))
    return batches


@pytest.mark.parametrize("form", ["bin", "python 2", "python 3, protocol 2", "python 3, protocol 5"])
def test_every_form_gives_the_same_arrays(tmp_path: Path, form: str) -> None:
    batches = write_all(tmp_path, form)
    x, y, x_test, y_test = read_cifar10(tmp_path)
    np.testing.assert_array_equal(x, np.concatenate([batches[n][0] for n in TRAIN]).reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(y, np.concatenate([batches[n][1] for n in TRAIN]))
    np.testing.assert_array_equal(x_test, batches[TEST[0]][0].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(y_test, batches[TEST[0]][1])


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    write_all(tmp_path, "python 3, protocol 2")
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({"data": Attack(tmp_path / "owned")}))
    with pytest.raises(InputError, match=r"data_batch_2: asks for .*refused"):
        read_cifar10(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_codecs_is_not_a_door(tmp_path: Path) -> None:
    write_all(tmp_path, "bin")
    (tmp_path / "test_batch").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0rot13\x86R.")
    with pytest.raises(InputError, match="encodes text as 'rot13'"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a pickle", "damaged pickle"),
        (python2_pickle(*make(0))[:-40], "damaged pickle"),
        (pickle.dumps([1, 2]), "holds a list, expected a dict"),
        (pickle.dumps({"data": make(0)[0]}), "key 'labels' is missing .found data"),
        (pickle.dumps({"data": make(0)[0][:, :9], "labels": [0]}), r"'data' is uint8 of shape \(4, 9\)"),
        (pickle.dumps({"data": [1], "labels": [0]}), "'data' is list, expected a uint8 array"),
        (pickle.dumps({"data": make(0)[0].astype(float), "labels": [0]}), "'data' is float64"),
    ],
)
def test_damaged_pickles_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_all(tmp_path, "python 3, protocol 2")
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_cifar10(tmp_path)
    assert "data_batch_3" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 3072, b"x" * 3074])
def test_binary_rows_must_be_whole(tmp_path: Path, content: bytes) -> None:
    write_all(tmp_path, "bin")
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(
        InputError, match=rf"test_batch\.bin: {len(content)} bytes are not a whole number of 3073-byte rows"
    ):
        read_cifar10(tmp_path)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    write_all(tmp_path, "bin")
    (tmp_path / "data_batch_5.bin").unlink()
    with pytest.raises(InputError, match="neither data_batch_5 "):
        read_cifar10(tmp_path)
