"""Image files as one lazy N x C x H x W array: sizes are known, pixels are read when asked for."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pliant.core.errors import InputError

# Pillow's modes that lose nothing as 8-bit grey or RGB (alpha apart); 16-bit and float pictures would be clipped.
_GREY = ("1", "L", "LA", "La")
_COLOUR = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr")
_EDGE = 32 * 1024


@dataclass(frozen=True)
class Header:
    """What one look at a file tells: its size in pixels, whether it has colour, and a hash of its two ends."""

    height: int
    width: int
    colour: bool
    mark: str


@dataclass(frozen=True)
class ImageFiles:
    """x[n] = the pixels of `paths[n]` as uint8, C x H x W, resized (bilinear, antialiased) where its size differs.

    channels: 1 (grey) or 3 (RGB). Reading raises InputError naming the file that cannot be decoded.
    """

    paths: tuple[Path, ...]
    channels: int
    height: int
    width: int

    dtype = torch.uint8

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.paths), self.channels, self.height, self.width)

    @property
    def nbytes(self) -> int:
        """Bytes that all pictures would take in memory."""
        return math.prod(self.shape)

    def read(self, rows: Sequence[int]) -> Tensor:
        """The pictures of `rows`, uint8, len(rows) x C x H x W."""
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows):
            out[place] = self._decode(self.paths[row])
        return torch.from_numpy(out)

    def read_all(self) -> Tensor:
        """All pictures, decoded by one thread per core (Pillow releases the interpreter's lock)."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            chunks = [range(k, min(k + 64, len(self))) for k in range(0, len(self), 64)]
            return torch.cat(list(pool.map(self.read, chunks)))

    def _decode(self, path: Path) -> np.ndarray:
        image_module = pillow()
        try:
            with image_module.open(path) as image:
                picture = image.convert("RGB" if self.channels == 3 else "L")
        except Exception as error:  # a damaged file can raise nearly anything inside a decoder
            raise unreadable(path, error) from error
        if picture.size != (self.width, self.height):
            picture = picture.resize((self.width, self.height), image_module.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        return pixels.transpose(2, 0, 1) if self.channels == 3 else pixels[None]


def read_headers(paths: Iterable[Path]) -> list[Header]:
    """Size, colour and fingerprint of every file, without decoding pixels; InputError names the first bad file."""
    pillow()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_read_header, paths))


def _read_header(path: Path) -> Header:
    try:
        with path.open("rb") as file, pillow().open(file) as image:
            width, height, mode = image.width, image.height, image.mode
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            hasher = hashlib.blake2b(f"{size}:".encode(), digest_size=16)
            hasher.update(file.read(_EDGE))
            if size > _EDGE:
                file.seek(max(_EDGE, size - _EDGE))
                hasher.update(file.read(_EDGE))
    except Exception as error:  # as in _decode
        raise unreadable(path, error) from error
    if mode not in _GREY + _COLOUR:
        raise InputError(f"{path} has pixel mode {mode!r}, expected 8-bit grey or RGB; convert the file first")
    return Header(height, width, mode in _COLOUR, hasher.hexdigest())


def unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).strip() or type(error).__name__
    return InputError(f"{path} cannot be read as an image ({reason}); replace or remove this file")


def pillow() -> ModuleType:
    """Pillow's Image module, or an InputError that says how to install it."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("reading image folders needs Pillow: pip install 'pliant[images]'") from None
    module: Any = Image
    return module
