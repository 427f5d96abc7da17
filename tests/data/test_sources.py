from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pliant.core.errors import InputError
from pliant.data import load

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
rng = np.random.default_rng(0)
IMAGES, TEST_IMAGES = rng.integers(0, 256, (12, 5, 4), dtype=np.uint8), rng.integers(0, 256, (3, 5, 4), dtype=np.uint8)
LABELS, TEST_LABELS = np.arange(12, dtype=np.uint8) % 10, np.arange(3, dtype=np.uint8)


def write_idx(folder: Path, *, gzipped: bool = False, dotted: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in zip(STEMS, (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS), strict=True):
        content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        name = (stem.replace("-idx", ".idx") if dotted else stem) + (".gz" if gzipped else "")
        (folder / name).write_bytes(gzip.compress(content) if gzipped else content)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLIANT_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_digits() -> None:
    data = load("digits")
    assert (tuple(data.x.shape), data.x.dtype) == ((1797, 1, 8, 8), torch.float32)
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert torch.equal(data.x * 16, (data.x * 16).round())
    assert data.y[:10].tolist() == list(range(10))
    assert data.x_test is None
    with pytest.raises(InputError, match="digits takes no directory"):
        load("digits:here")


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_sets_from_a_given_folder(tmp_path: Path, name: str, gzipped: bool, dotted: bool) -> None:
    folder = write_idx(tmp_path / "files", gzipped=gzipped, dotted=dotted)
    data = load(f"{name}:{folder}")
    np.testing.assert_array_equal(data.x.numpy(), IMAGES[:, None])
    np.testing.assert_array_equal(data.x_test.numpy(), TEST_IMAGES[:, None])
    assert data.y.tolist() == LABELS.tolist()
    assert data.y_test.tolist() == TEST_LABELS.tolist()
    assert data.classes[0] == ("0" if name == "mnist" else "T-shirt/top")


@pytest.mark.parametrize(
    "place", ["here/data/mnist", "here/data/MNIST/raw", "shared/data/mnist", "elsewhere/mnist", "elsewhere/MNIST/raw"]
)
def test_where_files_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    write_idx(tmp_path / place)
    if place.startswith("elsewhere"):
        monkeypatch.setenv("PLIANT_DATA", str(tmp_path / "elsewhere"))
    assert len(load("mnist").x) == 12
    assert len(load("mnist", root=tmp_path / "here").x) == 12


def test_a_given_folder_may_hold_the_usual_one_and_start_from_root(tmp_path: Path) -> None:
    write_idx(tmp_path / "sets/fashion-mnist")
    assert len(load("fashion-mnist:sets", root=tmp_path).x) == 12


def test_nothing_found_lists_the_places_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError) as caught:
        load("mnist")
    message = str(caught.value)
    for place in ("elsewhere/mnist", "here/data/mnist", "shared/data/mnist", "PLIANT_DATA", "mnist:DIR"):
        assert place in message
    with pytest.raises(InputError, match=r"apt-get install dataset-fashion-mnist") as caught:
        load(f"fashion-mnist:{tmp_path}")
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(InputError, match="cifar-10-batches-bin"):
        load("cifar10")


def test_damaged_sets(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "files")
    (folder / STEMS[3]).unlink()
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte \(or \.gz\) is missing"):
        load(f"mnist:{folder}")
    folder = write_idx(tmp_path / "swapped")
    (folder / STEMS[0]).write_bytes((folder / STEMS[1]).read_bytes())
    with pytest.raises(InputError, match="holds 1 dimensions, expected 3; the files may be swapped"):
        load(f"mnist:{folder}")
    folder = write_idx(tmp_path / "lengths")
    (folder / STEMS[1]).write_bytes((folder / STEMS[3]).read_bytes())
    with pytest.raises(InputError, match="mnist: x has 12 rows but y has 3"):
        load(f"mnist:{folder}")
    folder = write_idx(tmp_path / "labels")
    (folder / STEMS[1]).write_bytes((folder / STEMS[1]).read_bytes()[:-1] + b"\x0a")
    with pytest.raises(InputError, match="labels in y run from 0 to 10, expected 0 to 9"):
        load(f"mnist:{folder}")


def test_cifar10(tmp_path: Path) -> None:
    folder = tmp_path / "here/data/cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rows = rng.integers(0, 256, (6, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(6)
    for k in range(1, 6):
        (folder / f"data_batch_{k}.bin").write_bytes(rows.tobytes())
    (folder / "test_batch.bin").write_bytes(rows[:2].tobytes())
    for spec in ("cifar10", f"cifar10:{folder}", "cifar10:data"):
        data = load(spec)
        assert tuple(data.x.shape) == (30, 3, 32, 32)
        np.testing.assert_array_equal(data.x_test.numpy(), rows[:2, 1:].reshape(2, 3, 32, 32))
        assert data.classes[3] == "cat"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("minst", "unknown data 'minst': did you mean 'mnist'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
        ("", "unknown data ''.*known: digits, mnist"),
        ("npz", "'npz' needs a file: npz:FILE"),
        ("folder:", "'folder' needs a directory"),
        ("folder:d?sise=3", "unknown folder option 'sise': did you mean 'size'"),
        ("folder:d?size=big", "size='big'; expected a number of pixels"),
        ("folder:d?size=0", "size='0'"),
        ("folder:d?size=3x4x5", "size='3x4x5'"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(spec)


@pytest.mark.slow
def test_the_debian_package() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs `apt-get install dataset-fashion-mnist`")
    data = load("fashion-mnist")
    assert tuple(data.x.shape) == (60000, 1, 28, 28)
    assert data.y.bincount().tolist() == [6000] * 10
    assert data.y_test.bincount().tolist() == [1000] * 10
