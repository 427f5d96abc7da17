from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pliant.core.errors import InputError
from pliant.data.npz import load_npz

X = np.arange(24, dtype=np.float64).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2], np.int32)


def test_short_and_long_keys_are_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "short.npz", x=X, y=Y)
    np.savez_compressed(tmp_path / "long.npz", x_train=X, y_train=Y)
    short, long = load_npz(tmp_path / "short.npz"), load_npz(tmp_path / "long.npz")
    assert short.digest == long.digest
    assert torch.equal(short.x, torch.from_numpy(X).float())
    assert short.y.tolist() == Y.tolist()
    assert short.y.dtype == torch.int64
    assert short.classes == ("0", "1", "2")


def test_official_parts(tmp_path: Path) -> None:
    path = tmp_path / "parts.npz"
    np.savez(path, x_train=X, y_train=Y, x_test=X[:3] + 1, y_test=Y[:3], x_valid=X[3:] + 2, y_valid=Y[3:], note=[1])
    data = load_npz(path)
    assert torch.equal(data.x_test, torch.from_numpy(X[:3] + 1).float())
    assert torch.equal(data.x_valid, torch.from_numpy(X[3:] + 2).float())
    assert data.y_valid.tolist() == Y[3:].tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": X}, "key 'y_train' is missing .found x_train"),
        ({"images": X, "labels": Y}, "key 'x_train' is missing .found images, labels.; expected x_train and y_train"),
        ({"x": np.array([1, "a", None], object), "y": Y[:3]}, "key 'x' is an object array.*refused"),
        ({"x": X, "y": Y[:5]}, "x has 6 rows but y has 5"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "x_test is given without y_test"),
        ({"x_train": X, "y_train": Y, "y_test": Y}, "y_test is given without x_test"),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, :3], "y_test": Y},
            "a row of x_test has shape 3 but a row of x has 4",
        ),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_npz(path)
    assert str(path) in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_npz(tmp_path / "absent.npz")
    path = tmp_path / "data.npz"
    np.savez(path, x=X, y=Y)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"not an \.npz archive, or cut short"):
        load_npz(path)
    # One byte of the stored values of x differs: the archive's checksum tells.
    place = content.index(X.tobytes()) + 5
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(InputError, match="key 'x' is damaged"):
        load_npz(path)
