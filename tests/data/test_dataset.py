from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.core.errors import InputError
from pliant.data import ArrayData, Dataset

Y = [0, 1, 2, 0]
rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 7), (4, 7)),
        ((4, 8, 9), (4, 1, 8, 9)),
        ((4, 3, 8, 9), (4, 3, 8, 9)),
        ((4, 1, 8, 3), (4, 1, 8, 3)),
        ((4, 8, 9, 3), (4, 3, 8, 9)),
    ],
)
def test_layouts(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    values = rng.integers(0, 256, shape, dtype=np.uint8)
    x = ArrayData(values, Y).x
    assert tuple(x.shape) == expected
    assert x.dtype == torch.uint8
    assert x.is_contiguous()
    moved = np.moveaxis(values, -1, 1) if shape[-1] == 3 and shape[1] == 8 else values
    np.testing.assert_array_equal(x.numpy().ravel(), moved.ravel())


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "bool", ">f4", "uint16"])
def test_other_numbers_become_float32(dtype: str) -> None:
    values = (rng.random((4, 5)) * 100).astype(dtype)
    x = ArrayData(values, Y).x
    assert x.dtype == torch.float32
    np.testing.assert_array_equal(x.numpy(), values.astype(np.float32))


def test_tensors_lists_and_the_users_array_stay_apart() -> None:
    values = torch.arange(8.0).reshape(4, 2).requires_grad_()
    data = ArrayData(values, torch.tensor(Y))
    assert not data.x.requires_grad
    array = np.zeros((4, 2), np.uint8)
    held = ArrayData(array, Y)
    array[:] = 9
    assert held.x.max() == 0
    assert ArrayData([[1, 2], [3, 4], [5, 6], [7, 8]], Y).x.tolist()[3] == [7.0, 8.0]


X = np.zeros((4, 3), np.float32)


def with_value(value: float) -> np.ndarray:
    x = np.zeros((4, 3), np.float64)
    x[2, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, [0, 1, 2], "x has 4 rows but y has 3"),
        (X[:, 0], Y, "x has shape 4; expected N x D"),
        (np.zeros((4, 2, 2, 2, 2)), Y, "x has shape 4x2x2x2x2"),
        (np.zeros((4, 0)), Y, "x has shape 4x0.*no side zero"),
        (with_value(np.nan), Y, "x has NaN or values beyond float32 in 1 of 4 rows, first in row 2"),
        (with_value(-np.inf), Y, "NaN or values beyond float32"),
        (with_value(1e300), Y, "NaN or values beyond float32"),
        (np.array([["a", "b"]] * 4), Y, "dtype <U1, expected real numbers"),
        (X.astype(complex), Y, "dtype complex128, expected real"),
        (np.array([None] * 4), Y, "x is an object array"),
        ([[1, 2], [3], [4], [5]], Y, "x is ragged"),
        (X, [0.0, 1.0, 2.0, 0.0], "y has dtype float64, expected integer class labels"),
        (X, ["a", "b", "c", "a"], "y has dtype <U1, expected integer"),
        (X, np.eye(4, dtype=int), "y has shape 4x4; expected one label for each row"),
        (X, [1, 2, 3, 1], "y has 3 different labels from 1 to 3, expected 0, 1"),
        (X, [0, 2, 2, 0], "y has 2 different labels from 0 to 2"),
        (X, [-1, 0, 1, 2], "y has 4 different labels from -1 to 2"),
        (X, [0, 0, 0, 0], "only one class, '0'; a classifier needs at least two"),
    ],
)
def test_bad_arrays(x: Any, y: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ArrayData(x, y, name="mine")
    assert str(caught.value).startswith("mine")


def test_bad_official_parts() -> None:
    with pytest.raises(InputError, match="labels in y_test run from 0 to 3, expected 0 to 2"):
        ArrayData(X, Y, X, [0, 1, 2, 3])
    with pytest.raises(InputError, match="x_test has 4 rows but y_test has 3"):
        ArrayData(X, Y, X, [0, 1, 2])
    with pytest.raises(InputError, match="x_valid has no rows"):
        ArrayData(X, Y, x_valid=X[:0], y_valid=np.zeros(0, int))
    with pytest.raises(InputError, match="x_valid has NaN"):
        ArrayData(X, Y, x_valid=with_value(np.nan), y_valid=Y)
    with pytest.raises(InputError, match=r"labels in y run from 0 to 2, expected 0 to 1"):
        ArrayData(X, Y, classes=("a", "b"))
    with pytest.raises(InputError, match="no classes"):
        Dataset(torch.zeros(1, 2), torch.tensor([0]), (), "empty")


def test_digest_follows_the_contents() -> None:
    base = ArrayData(X, Y)
    assert re.fullmatch("[0-9a-f]{32}", base.digest)
    assert base.digest == ArrayData(X.copy(), torch.tensor(Y), name="other").digest
    assert base.digest == ArrayData(np.asfortranarray(X), Y).digest
    others = [
        ArrayData(with_value(1e-30), Y),
        ArrayData(X, [0, 1, 2, 1]),
        ArrayData(X.astype(np.uint8), Y),
        ArrayData(X.reshape(4, 1, 3), Y),
        ArrayData(X, Y, X, Y),
        ArrayData(X, Y, x_valid=X, y_valid=Y),
        ArrayData(X, Y, classes=("a", "b", "c")),
    ]
    digests = {base.digest, *(other.digest for other in others)}
    assert len(digests) == len(others) + 1


def test_digest_is_the_same_on_every_machine() -> None:
    # A written-down value: results are stored under it.
    assert ArrayData(np.arange(6, dtype=np.uint8).reshape(3, 2), [0, 1, 0]).digest == "9084c042a0d62afab56dfa471dd0c190"


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 2), st.integers(1, 255))
def test_any_changed_byte_changes_the_digest(row: int, column: int, change: int) -> None:
    x = np.zeros((4, 3), np.uint8)
    before = ArrayData(x, Y).digest
    x[row, column] = change
    assert ArrayData(x, Y).digest != before


def test_facts() -> None:
    data = ArrayData(np.zeros((4, 8, 8), np.uint8), Y, np.zeros((4, 8, 8), np.uint8), Y, name="tiny")
    assert data.input_shape == (1, 8, 8)
    assert data.fits
    assert repr(data) == "<ArrayData tiny: 4 x 1x8x8 uint8 + 4 test, 3 classes>"
    with pytest.raises(AttributeError):
        data.name = "other"  # type: ignore[misc]
