"""A folder of images: one sub-folder per class, optionally under train/, valid/ and test/."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pliant.core.errors import InputError
from pliant.data.dataset import Dataset, Inputs
from pliant.data.files import Header, ImageFiles, read_headers

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class _Listing:
    paths: list[Path]
    labels: list[int]


def load_folder(directory: Path, *, size: tuple[int, int] | None, memory_limit: int) -> Dataset:
    """The images of `directory`, one class per sub-folder (in alphabetical order).

    size: (height, width) to resize every image to; None demands that all have one size already.
    memory_limit: bytes; at or below it the pixels are held in memory, above it they stay on disk.
    Images are RGB if any file has colour, else grey. Files without an image suffix and hidden files are left out.

    Raises InputError for a missing or empty folder, a class without images, a single class, an unreadable file,
    images of different sizes, and a test class that training lacks.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder; give a folder with one sub-folder of images per class")
    top = _subfolders(directory)
    has_parts = any(folder.name == "train" and _subfolders(folder) for folder in top)
    homes = {"train": directory / "train" if has_parts else directory}
    if has_parts:
        homes |= {folder.name: folder for folder in top if folder.name in ("valid", "test")}
    classes = tuple(folder.name for folder in _subfolders(homes["train"]))
    listings = {part: _list_images(home, classes) for part, home in homes.items()}
    headers = {part: read_headers(listing.paths) for part, listing in listings.items()}

    paths = [path for listing in listings.values() for path in listing.paths]
    flat = [header for part in headers.values() for header in part]
    height, width = size if size is not None else _common_size(paths, flat)
    channels = 3 if any(header.colour for header in flat) else 1
    files = {part: ImageFiles(tuple(entry.paths), channels, height, width) for part, entry in listings.items()}
    fits = sum(part.nbytes for part in files.values()) <= memory_limit
    inputs: dict[str, Inputs] = {part: lazy.read_all() if fits else lazy for part, lazy in files.items()}
    labels: dict[str, Tensor] = {part: torch.tensor(entry.labels) for part, entry in listings.items()}
    return Dataset(
        x=inputs["train"],
        y=labels["train"],
        classes=classes,
        name=f"folder {directory}",
        x_valid=inputs.get("valid"),
        y_valid=labels.get("valid"),
        x_test=inputs.get("test"),
        y_test=labels.get("test"),
        fingerprint=_fingerprint(directory, paths, flat, (channels, height, width)),
    )


def _subfolders(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _list_images(home: Path, classes: tuple[str, ...]) -> _Listing:
    folders = _subfolders(home)
    if not folders:
        loose = len(_images(home))
        found = f"{loose} images directly inside, no sub-folders" if loose else "nothing that is an image"
        raise InputError(f"{home}: found {found}; expected one sub-folder of images per class")
    listing = _Listing([], [])
    for folder in folders:
        if folder.name not in classes:
            raise InputError(
                f"{folder}: class {folder.name!r} has no sub-folder for training (found {', '.join(classes)}); "
                "rename it or remove it"
            )
        images = _images(folder)
        if not images:
            raise InputError(
                f"{folder}: no images for class {folder.name!r} (looked for {', '.join(_SUFFIXES)}); "
                "add some or remove the folder"
            )
        listing.paths.extend(images)
        listing.labels.extend([classes.index(folder.name)] * len(images))
    return listing


def _common_size(paths: list[Path], headers: list[Header]) -> tuple[int, int]:
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if (header.height, header.width) != (first.height, first.width):
            raise InputError(
                f"images have different sizes: {paths[0]} is {first.height}x{first.width}, {path} is "
                f"{header.height}x{header.width} (height x width); add a size to resize all: folder:DIR?size=64"
            )
    return first.height, first.width


def _fingerprint(directory: Path, paths: list[Path], headers: list[Header], shape: tuple[int, int, int]) -> str:
    hasher = hashlib.blake2b(repr(shape).encode(), digest_size=16)
    for path, header in zip(paths, headers, strict=True):
        hasher.update(f"{path.relative_to(directory).as_posix()}\x1f{header.mark}\x1e".encode())
    return hasher.hexdigest()
