"""What every data source becomes: one frozen `Dataset` of checked tensors (or of image files too big for memory)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pliant.core.errors import InputError
from pliant.data.files import ImageFiles

if TYPE_CHECKING:
    from pliant.data.splits import Splits

# Inputs in memory (uint8 or float32, N x C x H x W or N x D) or on disk (read batch by batch as uint8).
Inputs = Tensor | ImageFiles


@dataclass(frozen=True)
class Part:
    """One part of a dataset: the rows `rows` (int64) of inputs `x` and labels `y`."""

    x: Inputs
    y: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Inputs and class labels, with the official validation and test sets where the source has them.

    x: uint8 or float32, N x C x H x W (images) or N x D (vectors); `ImageFiles` when the images do not fit in memory.
    y: int64 class labels in 0..K-1, length N. classes: the K names. name: for messages and reports.
    x_valid, y_valid, x_test, y_test: official parts, of the same shape per row, or None.
    fingerprint: stands for the contents in `digest` where the source knows a cheaper one (image folders).

    Raises InputError when lengths or shapes disagree, a label is outside 0..K-1, or there is only one class.
    """

    x: Inputs
    y: Tensor
    classes: tuple[str, ...]
    name: str
    x_valid: Inputs | None = None
    y_valid: Tensor | None = None
    x_test: Inputs | None = None
    y_test: Tensor | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            found = f"only one class, {self.classes[0]!r}" if self.classes else "no classes"
            raise InputError(f"{self.name}: {found}; a classifier needs at least two: add examples of another class")
        self._check_part("x", self.x, "y", self.y)
        for part in ("valid", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if (x is None) != (y is None):
                given, missing = (f"x_{part}", f"y_{part}") if y is None else (f"y_{part}", f"x_{part}")
                raise InputError(f"{self.name}: {given} is given without {missing}; give both or neither")
            if x is not None:
                self._check_part(f"x_{part}", x, f"y_{part}", y)
                if tuple(x.shape[1:]) != self.input_shape:
                    raise InputError(
                        f"{self.name}: a row of x_{part} has shape {_by(x.shape[1:])} but a row of x has "
                        f"{_by(self.input_shape)}; bring all parts to one shape"
                    )

    def _check_part(self, x_name: str, x: Inputs, y_name: str, y: Tensor) -> None:
        if len(x) != len(y):
            raise InputError(
                f"{self.name}: {x_name} has {len(x)} rows but {y_name} has {len(y)}; give one label for each row"
            )
        if len(x) == 0:
            raise InputError(f"{self.name}: {x_name} has no rows; give at least one example of each class")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= len(self.classes):
            raise InputError(
                f"{self.name}: labels in {y_name} run from {low} to {high}, expected 0 to {len(self.classes) - 1} "
                f"({len(self.classes)} classes); renumber them, e.g. with numpy.unique(y, return_inverse=True)[1]"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W) or (D,)."""
        return tuple(self.x.shape[1:])

    @property
    def fits(self) -> bool:
        """Whether every part is held in memory; otherwise `Batches` reads the files through torch's DataLoader."""
        return all(x is None or isinstance(x, Tensor) for x in (self.x, self.x_valid, self.x_test))

    @cached_property
    def digest(self) -> str:
        """BLAKE2b of the contents (32 hex digits): equal data have equal digests, wherever and however they are stored.

        About one second per GB, computed once. Image folders hash their files' names, sizes and ends instead.
        """
        hasher = hashlib.blake2b("\x1f".join(self.classes).encode(), digest_size=16)
        if self.fingerprint:
            hasher.update(self.fingerprint.encode())
            return hasher.hexdigest()
        for tensor in (self.x, self.y, self.x_valid, self.y_valid, self.x_test, self.y_test):
            if isinstance(tensor, Tensor):
                hasher.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                hasher.update(tensor.contiguous().numpy().reshape(-1).view(np.uint8).data)
            else:
                hasher.update(b"-")
        return hasher.hexdigest()

    def part(self, part: str, splits: Splits) -> Part:
        """The rows that `splits` gives to "train", "valid" or "test", with the tensors they point into."""
        if part == "train":
            return Part(self.x, self.y, splits.train)
        rows = splits.valid if part == "valid" else splits.test
        x, y = (self.x_valid, self.y_valid) if part == "valid" else (self.x_test, self.y_test)
        return Part(self.x, self.y, rows) if x is None or y is None else Part(x, y, rows)

    def __repr__(self) -> str:
        parts = [f"{len(self.x):,} x {_by(self.input_shape)} {str(self.x.dtype).removeprefix('torch.')}"]
        parts += [f"{len(x):,} {part}" for part, x in (("valid", self.x_valid), ("test", self.x_test)) if x is not None]
        held = "" if self.fits else ", read from disk"
        return f"<{type(self).__name__} {self.name}: {' + '.join(parts)}, {len(self.classes)} classes{held}>"


class ArrayData(Dataset):
    """A dataset from arrays or tensors: `ArrayData(x, y)`, with an official test set `ArrayData(x, y, x_test, y_test)`.

    x: real numbers, N x D, N x H x W (grey), N x C x H x W or N x H x W x C with 1, 3 or 4 channels; uint8 stays
    uint8, everything else becomes float32. y: integers 0..K-1, length N. classes: names, default the numbers.

    Raises InputError naming the array for impossible shapes, NaN or infinity, object arrays, labels that are not
    integers or leave a number out, and lengths that disagree.

    >>> import numpy as np
    >>> ArrayData(np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], name="mine")
    <ArrayData mine: 4 x 1x8x8 uint8, 2 classes>
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        x_test: Any = None,
        y_test: Any = None,
        *,
        x_valid: Any = None,
        y_valid: Any = None,
        classes: tuple[str, ...] | None = None,
        name: str = "arrays",
    ) -> None:
        def inputs(array: Any, key: str) -> Tensor | None:
            return None if array is None else as_inputs(array, f"{name}: {key}")

        def labels(array: Any, key: str) -> Tensor | None:
            return None if array is None else as_labels(array, f"{name}: {key}")

        numbers = as_labels(y, f"{name}: y")
        super().__init__(
            x=as_inputs(x, f"{name}: x"),
            y=numbers,
            classes=_count_classes(numbers, f"{name}: y") if classes is None else tuple(classes),
            name=name,
            x_valid=inputs(x_valid, "x_valid"),
            y_valid=labels(y_valid, "y_valid"),
            x_test=inputs(x_test, "x_test"),
            y_test=labels(y_test, "y_test"),
        )


def as_inputs(array: Any, where: str) -> Tensor:
    """`array` as a contiguous uint8 or float32 tensor, N x C x H x W or N x D; InputError names `where`."""
    values = _as_array(array, where)
    if values.dtype.kind not in "buif":
        raise InputError(
            f"{where} has dtype {values.dtype}, expected real numbers; convert it, e.g. with astype('float32')"
        )
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim == 4 and values.shape[1] not in (1, 3, 4) and values.shape[3] in (1, 3, 4):
        values = values.transpose(0, 3, 1, 2)
    if values.ndim not in (2, 4) or 0 in values.shape[1:]:
        raise InputError(
            f"{where} has shape {_by(values.shape)}; expected N x D, N x H x W, N x C x H x W or "
            "N x H x W x C, no side zero"
        )
    if values.dtype != np.uint8:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if bad.any():
            raise InputError(
                f"{where} has NaN or values beyond float32 in {int(bad.sum())} of {len(values)} rows, first in row "
                f"{int(bad.argmax())}; remove those rows or fill them in"
            )
    return torch.from_numpy(np.array(values, order="C"))


def as_labels(array: Any, where: str) -> Tensor:
    """`array` as an int64 vector of class labels; InputError names `where`."""
    values = _as_array(array, where)
    if values.ndim != 1:
        raise InputError(
            f"{where} has shape {_by(values.shape)}; expected one label for each row. For one-hot rows take argmax(1)"
        )
    if values.dtype.kind not in "iu":
        raise InputError(
            f"{where} has dtype {values.dtype}, expected integer class labels; for names or floats "
            "use numpy.unique(y, return_inverse=True)[1]"
        )
    return torch.from_numpy(values.astype(np.int64))


def _as_array(array: Any, where: str) -> np.ndarray:
    try:
        values = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    except ValueError as error:
        raise InputError(f"{where} is ragged ({error}); give rows of equal length") from None
    if values.dtype.hasobject:
        raise InputError(f"{where} is an object array, expected plain numbers; build it from rows of equal length")
    return values


def _count_classes(labels: Tensor, where: str) -> tuple[str, ...]:
    found = labels.unique()
    if not torch.equal(found, torch.arange(len(found))):
        raise InputError(
            f"{where} has {len(found)} different labels from {int(found[0])} to {int(found[-1])}, expected 0, 1, ..., "
            "K-1 without gaps; renumber them, e.g. with numpy.unique(y, return_inverse=True)[1]"
        )
    return tuple(str(k) for k in found.tolist())


def _by(shape: Any) -> str:
    return "x".join(str(side) for side in shape)
