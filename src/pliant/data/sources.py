"""Data by name: `load("digits")`, `load("mnist")`, `load("folder:pictures?size=64")`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pliant.core.errors import InputError, nearest
from pliant.data.cifar import CLASSES as CIFAR10_CLASSES
from pliant.data.cifar import TEST, TRAIN, read_cifar10
from pliant.data.dataset import ArrayData, Dataset
from pliant.data.folder import load_folder
from pliant.data.idx import read_idx
from pliant.data.npz import load_npz

# Image folders up to this many bytes of pixels are held in memory; larger ones are read batch by batch.
MEMORY_LIMIT = 2 * 2**30

_DIGITS = tuple(str(k) for k in range(10))
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class _Request:
    """What follows the name in a spec, with the folder that relative paths start from."""

    argument: str
    root: Path
    memory_limit: int

    def path(self, text: str) -> Path:
        return self.root / Path(text).expanduser()


def load(spec: str, *, root: Path | None = None, memory_limit: int = MEMORY_LIMIT) -> Dataset:
    """The dataset that `spec` names.

    * "digits": scikit-learn's 1,797 grey 8 x 8 digits, float32 in [0, 1], no official test set
    * "mnist", "fashion-mnist", "cifar10", each also as "mnist:DIR": their usual files (IDX plain or gzipped; CIFAR-10's
      pickles or binary batches), uint8, official test set. Without DIR they are searched in $PLIANT_DATA, ./data and
      ../shared/data, and Fashion-MNIST where Debian's package puts it
    * "npz:FILE": arrays x_train, y_train (and x_valid, y_valid, x_test, y_test), or x, y
    * "folder:DIR": a sub-folder of images per class, or DIR/train, DIR/valid, DIR/test of such; "?size=64" or
      "?size=48x64" (height x width) resizes

    root: where relative paths start, default the current directory. memory_limit: bytes of pixels up to which an image
    folder is held in memory, default 2 GiB.

    Raises InputError that names the file or key, what was found, what was expected and what to do.

    >>> load("digits")
    <ArrayData digits: 1,797 x 1x8x8 float32, 10 classes>
    """
    name, _, argument = spec.partition(":")
    if name not in _READERS:
        known = ", ".join(("digits", "mnist[:DIR]", "fashion-mnist[:DIR]", "cifar10[:DIR]", "npz:FILE", "folder:DIR"))
        raise InputError(f"unknown data {name!r}: {nearest(name, _READERS)} (known: {known})")
    return _READERS[name](_Request(argument, Path.cwd() if root is None else Path(root), memory_limit))


def _digits(request: _Request) -> Dataset:
    if request.argument:
        raise InputError(f"digits takes no directory, found {request.argument!r}; write just 'digits'")
    table = _digits_table()
    return ArrayData((table[:, :64] / 16.0).reshape(-1, 8, 8), table[:, 64].astype(int), name="digits", classes=_DIGITS)


def _digits_table() -> np.ndarray:
    """scikit-learn's digits, 64 pixels of 0..16 and the label a row.

    Read from its file, since importing scikit-learn costs every worker process a second; by its function where the
    file is not where it has always been.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.column_stack([pixels, labels])


def _mnist(request: _Request) -> Dataset:
    remedy = "put MNIST's four IDX files into ./data/mnist or set PLIANT_DATA to the folder above 'mnist'"
    return _load_idx("mnist", request, ("mnist", "MNIST/raw"), (), remedy, _DIGITS)


def _fashion_mnist(request: _Request) -> Dataset:
    remedy = (
        "`apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or put the four IDX files into ./data/fashion-mnist"
    )
    debian = (Path("/usr/share/datasets/fashion-mnist"),)
    return _load_idx("fashion-mnist", request, ("fashion-mnist", "FashionMNIST/raw"), debian, remedy, _FASHION)


def _cifar10(request: _Request) -> Dataset:
    layouts = ("cifar10", "cifar-10-batches-py", "cifar-10-batches-bin")
    remedy = "unpack the CIFAR-10 archive (python or binary version) into ./data, or set PLIANT_DATA"
    markers = tuple(name + end for name in (*TRAIN, *TEST) for end in ("", ".bin"))
    directory = _locate("cifar10", request, layouts, (), markers, remedy)
    x, y, x_test, y_test = read_cifar10(directory)
    return ArrayData(x, y, x_test, y_test, name="cifar10", classes=CIFAR10_CLASSES)


def _npz(request: _Request) -> Dataset:
    if not request.argument:
        raise InputError("'npz' needs a file: npz:FILE")
    return load_npz(request.path(request.argument))


def _folder(request: _Request) -> Dataset:
    directory, _, options = request.argument.partition("?")
    if not directory:
        raise InputError("'folder' needs a directory: folder:DIR or folder:DIR?size=64")
    size = _parse_size(options) if options else None
    return load_folder(request.path(directory), size=size, memory_limit=request.memory_limit)


_READERS: dict[str, Callable[[_Request], Dataset]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "npz": _npz,
    "folder": _folder,
}


def _parse_size(options: str) -> tuple[int, int]:
    key, _, value = options.partition("=")
    if key != "size":
        raise InputError(f"unknown folder option {key!r}: {nearest(key, ['size'])}")
    sides = value.split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise InputError(
            f"folder option size={value!r}; expected a number of pixels like 64, or height x width like 48x64"
        )
    return int(sides[0]), int(sides[-1])


def _load_idx(
    name: str,
    request: _Request,
    layouts: tuple[str, ...],
    extra: tuple[Path, ...],
    remedy: str,
    classes: tuple[str, ...],
) -> Dataset:
    stems = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    markers = tuple(spelling for stem in stems for spelling in _spellings(stem))
    directory = _locate(name, request, layouts, extra, markers, remedy)
    x, y, x_test, y_test = (_read_member(directory, stem, remedy) for stem in stems)
    return ArrayData(x, y, x_test, y_test, name=name, classes=classes)


def _spellings(stem: str) -> tuple[str, ...]:
    # Some unpackers turn the dash before "idx" into a dot.
    return tuple(text + end for text in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz"))


def _read_member(directory: Path, stem: str, remedy: str) -> np.ndarray:
    path = next((directory / name for name in _spellings(stem) if (directory / name).is_file()), None)
    if path is None:
        raise InputError(f"{directory}: {stem} (or .gz) is missing; {remedy}")
    values = read_idx(path)
    dimensions = 3 if "images" in stem else 1
    if values.ndim != dimensions:
        raise InputError(f"{path}: holds {values.ndim} dimensions, expected {dimensions}; the files may be swapped")
    return values


def _locate(
    name: str,
    request: _Request,
    layouts: tuple[str, ...],
    extra: tuple[Path, ...],
    markers: tuple[str, ...],
    remedy: str,
) -> Path:
    """The first folder that holds one of the files `markers`."""
    if request.argument:
        given = request.path(request.argument)
        places = [given, *(given / layout for layout in layouts)]
    else:
        roots = [request.root / "data", request.root / "../shared/data"]
        if os.environ.get("PLIANT_DATA"):
            roots.insert(0, Path(os.environ["PLIANT_DATA"]))
        places = [*(base / layout for base in roots for layout in layouts), *extra]
    for place in places:
        if any((place / marker).is_file() for marker in markers):
            return place
    looked = "\n  ".join(str(place) for place in places)
    raise InputError(
        f"{name} was not found. Looked for {markers[0]} in\n  {looked}\n{remedy}, or name its folder: {name}:DIR"
    )
