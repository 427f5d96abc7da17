from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pliant.core.errors import InputError
from pliant.data import ImageFiles, load

Image = pytest.importorskip("PIL.Image")
rng = np.random.default_rng(0)


def save(path: Path, shape: tuple[int, ...] = (6, 8, 3)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def fill(folder: Path, counts: dict[str, int], shape: tuple[int, ...] = (6, 8, 3)) -> dict[Path, np.ndarray]:
    return {
        path: save(path, shape)
        for name, count in counts.items()
        for path in (folder / name / f"{k}.png" for k in range(count))
    }


def test_a_folder_per_class(tmp_path: Path) -> None:
    pictures = fill(tmp_path, {"dog": 2, "cat": 3})
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    data = load(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert data.y.tolist() == [0, 0, 0, 1, 1]
    assert data.x_test is None
    expected = np.stack([pictures[p] for p in sorted(pictures)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.x.numpy(), expected)


def test_official_parts_and_nested_pictures(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 2, "b": 2})
    fill(tmp_path / "test", {"a": 1, "b": 2})
    fill(tmp_path / "valid", {"a": 1, "b/deeper": 1})
    data = load(f"folder:{tmp_path.name}", root=tmp_path.parent)
    assert (len(data.y), data.y_test.tolist(), data.y_valid.tolist()) == (4, [0, 1, 1], [0, 1])


def test_grey_stays_grey_and_one_coloured_picture_makes_all_rgb(tmp_path: Path) -> None:
    grey = fill(tmp_path, {"a": 2, "b": 2}, (6, 8))
    data = load(f"folder:{tmp_path}")
    assert data.input_shape == (1, 6, 8)
    np.testing.assert_array_equal(data.x[0, 0].numpy(), grey[tmp_path / "a/0.png"])
    save(tmp_path / "b/9.png", (6, 8, 4))
    data = load(f"folder:{tmp_path}")
    assert data.input_shape == (3, 6, 8)
    np.testing.assert_array_equal(data.x[0].numpy(), np.stack([grey[tmp_path / "a/0.png"]] * 3))


def test_size_resizes_to_height_by_width(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 1, "b": 1})
    Image.new("RGB", (30, 20), (10, 200, 30)).save(tmp_path / "a/0.png")
    data = load(f"folder:{tmp_path}?size=4x5")
    assert data.input_shape == (3, 4, 5)
    assert data.x[0].amax((1, 2)).tolist() == data.x[0].amin((1, 2)).tolist() == [10, 200, 30]
    assert load(f"folder:{tmp_path}?size=5").input_shape == (3, 5, 5)


def test_above_the_limit_the_same_pixels_stay_on_disk(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 80, "b": 70})
    size = 150 * 3 * 6 * 8
    held, lazy = load(f"folder:{tmp_path}", memory_limit=size), load(f"folder:{tmp_path}", memory_limit=size - 1)
    assert held.fits
    assert not lazy.fits
    assert repr(lazy).endswith("2 classes, read from disk>")
    assert isinstance(lazy.x, ImageFiles)
    assert lazy.x.nbytes == size
    assert lazy.x.shape == tuple(held.x.shape)
    assert torch.equal(lazy.x.read(range(150)), held.x)
    assert torch.equal(lazy.x.read([149, 3]), held.x[[149, 3]])
    assert lazy.digest == held.digest


def test_digest_follows_files(tmp_path: Path) -> None:
    first, second, third = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    pictures = fill(first, {"a": 2, "b": 2})
    for path, pixels in pictures.items():
        for other in (second, third):
            copy = other / path.relative_to(first)
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(copy)
    # The same number of bytes, one of them another.
    (third / "b/1.png").write_bytes((third / "b/1.png").read_bytes()[:-1] + b"\x81")
    digest = load(f"folder:{first}").digest
    assert load(f"folder:{second}").digest == digest
    assert load(f"folder:{third}").digest != digest
    assert load(f"folder:{first}?size=6").digest != digest
    (second / "b/1.png").rename(second / "b/2.png")
    assert load(f"folder:{second}").digest != digest


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: save(d / "b/9.png", (6, 9, 3)), r"a/0.png is 6x8, .*b/9.png is 6x9.*\?size="),
        (lambda d: (d / "b/1.png").write_text("hello"), "b/1.png cannot be read as an image"),
        (lambda d: (d / "b/1.png").write_bytes(b""), "b/1.png cannot be read as an image"),
        (lambda d: truncate(d / "a/1.png"), "a/1.png cannot be read as an image .*replace or remove"),
        (lambda d: (d / "c").mkdir(), "c: no images for class 'c'"),
        (lambda d: Image.new("I;16", (8, 6)).save(d / "a/0.png"), "a/0.png has pixel mode 'I;16'"),
        (lambda d: Image.new("F", (8, 6)).save(d / "a/0.tif"), "a/0.tif has pixel mode 'F'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    fill(tmp_path, {"a": 2, "b": 2})
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load(f"folder:{tmp_path}")


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent is not a folder"):
        load(f"folder:{tmp_path}/absent")
    with pytest.raises(InputError, match="found nothing that is an image; expected one sub-folder"):
        load(f"folder:{tmp_path}")
    save(tmp_path / "loose.png")
    with pytest.raises(InputError, match="found 1 images directly inside, no sub-folders"):
        load(f"folder:{tmp_path}")
    fill(tmp_path, {"only": 3})
    with pytest.raises(InputError, match="only one class, 'only'"):
        load(f"folder:{tmp_path}")


def test_a_test_class_that_training_lacks(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 1, "b": 1})
    fill(tmp_path / "test", {"a": 1, "bee": 1})
    with pytest.raises(InputError, match=r"class 'bee' has no sub-folder for training \(found a, b"):
        load(f"folder:{tmp_path}")
