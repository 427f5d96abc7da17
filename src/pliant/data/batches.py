"""Batches by key: the batch of (seed, epoch, index) is the same whenever and in whatever order it is asked for."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pliant.core import keyed
from pliant.core.errors import InputError, SettingError
from pliant.data.augmentation import Augment
from pliant.data.dataset import Inputs
from pliant.data.files import ImageFiles
from pliant.data.normalisation import Moments, standardise

Batch = tuple[Tensor, Tensor]


class Batches:
    """Batch b of epoch e = augment(x[o[b B : (b+1) B]]), normalised, with its labels; o = the permutation of epoch e.

    x: uint8 or float32 tensor on the CPU, N x C x H x W or N x D, or `ImageFiles`; y: int64 labels.
    rows: the rows of x and y to use (a split's training part), default all; nothing is copied.
    batch_size: B. seed: keys the order by (seed, "order", e) and the augmentation by (seed, "augment", e, b).
    augment: random crop and flip, for images. normalise: (mean, std) of `statistics`, else uint8 is divided by 255.

    The small last batch: drop_last=True leaves the n mod B rows over out (others in every epoch). drop_last=False keeps
    them as a smaller batch, but a single row over joins the batch before it (of B + 1 rows), since batch statistics of
    one row do not exist.

    Batches are float32 x and int64 y on the CPU. An interrupted run goes on with `epoch(e, start=b)` or `stream(step)`,
    which recompute nothing that came before. Tensors are batched in this process; `ImageFiles` by torch's DataLoader
    with one worker per core (at most 4), to the same values.

    Raises InputError for impossible sizes and for augmentation of vectors.
    """

    def __init__(
        self,
        x: Inputs,
        y: Tensor,
        batch_size: int,
        seed: int,
        *,
        rows: Tensor | None = None,
        augment: Augment | None = None,
        normalise: Moments | None = None,
        drop_last: bool = True,
    ) -> None:
        self.x, self.y, self.seed, self.augment, self.normalise = x, y, seed, augment, normalise
        self.rows = torch.arange(len(x)) if rows is None else rows
        self.batch_size = batch_size
        count = len(self.rows)
        if len(x) != len(y):
            raise InputError(f"x has {len(x)} rows but y has {len(y)}; give one label for each row")
        if batch_size < 1:
            raise SettingError(f"batch_size={batch_size}; expected at least 1")
        if (drop_last and count < batch_size) or not count:
            raise InputError(
                f"{count} rows do not fill one batch of {batch_size}; lower batch_size to at most {count}, or add data"
            )
        if augment is not None:
            _check_augment(augment, tuple(x.shape[1:]))
        over = count % batch_size
        whole = count // batch_size
        joins = over == 1 and whole > 0
        self._bounds = [k * batch_size for k in range(whole + 1)]
        if not drop_last and over:
            self._bounds[-1:] = [count] if joins else [self._bounds[-1], count]
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._bounds) - 1

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches start, start + 1, ... of epoch `number` (from 0)."""
        if isinstance(self.x, ImageFiles):
            yield from self._load(self.x, number, start)
            return
        for index in range(start, len(self)):
            yield self.batch(number, index)

    def stream(self, step: int = 0) -> Iterator[Batch]:
        """The batches of the global steps step, step + 1, ... without end."""
        number, start = divmod(step, len(self))
        while True:
            yield from self.epoch(number, start)
            number, start = number + 1, 0

    def step(self, step: int) -> Batch:
        """The batch of global step `step`: batch step mod len(self) of epoch step // len(self)."""
        return self.batch(*divmod(step, len(self)))

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch `index` of epoch `epoch`."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of an epoch of {len(self)}")
        chosen = self._rows_of(epoch, index)
        return self._finish(_take(self.x, chosen), chosen, epoch, index)

    def _rows_of(self, epoch: int, index: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            permutation = torch.randperm(len(self.rows), generator=keyed.generator(self.seed, "order", epoch))
            self._order = epoch, self.rows.index_select(0, permutation)
        return self._order[1][self._bounds[index] : self._bounds[index + 1]]

    def _finish(self, x: Tensor, chosen: Tensor, epoch: int, index: int) -> Batch:
        if self.augment is not None:
            x = self.augment(x, keyed.generator(self.seed, "augment", epoch, index))
        return standardise(x, self.normalise), self.y.index_select(0, chosen)

    def _load(self, files: ImageFiles, epoch: int, start: int) -> Iterator[Batch]:
        chosen = [self._rows_of(epoch, index) for index in range(start, len(self))]
        loaded = _loader(files, chosen)
        for index, (rows, x) in enumerate(zip(chosen, loaded, strict=True), start):
            yield self._finish(x, rows, epoch, index)


def in_order(
    x: Inputs, y: Tensor, batch_size: int, *, rows: Tensor | None = None, normalise: Moments | None = None
) -> Iterator[Batch]:
    """Every row once, in order, in batches of `batch_size` and a smaller last one: for exact evaluation."""
    rows = torch.arange(len(x)) if rows is None else rows
    chosen = list(rows.split(batch_size))
    parts = _loader(x, chosen) if isinstance(x, ImageFiles) else (x.index_select(0, part) for part in chosen)
    for part, batch in zip(chosen, parts, strict=True):
        yield standardise(batch, normalise), y.index_select(0, part)


def _take(x: Inputs, rows: Tensor) -> Tensor:
    # index_select, not x[rows]: ten times faster on uint8 images.
    return x.index_select(0, rows) if isinstance(x, Tensor) else x.read(rows.tolist())


class _Reads(TorchDataset):
    """ImageFiles as torch's DataLoader wants them: one item is one whole batch."""

    def __init__(self, files: ImageFiles, chosen: list[Tensor]) -> None:
        self.files, self.chosen = files, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Tensor | InputError:
        # Returned, not raised: the DataLoader would bury the message under a worker's traceback.
        try:
            return self.files.read(self.chosen[index].tolist())
        except InputError as error:
            return error


def _loader(files: ImageFiles, chosen: list[Tensor]) -> Iterator[Tensor]:
    # A pool's worker is a daemon, which may not have children.
    workers = 0 if multiprocessing.current_process().daemon else min(4, os.cpu_count() or 1, len(chosen))
    # With its own generator the DataLoader leaves the global one alone.
    loader = DataLoader(_Reads(files, chosen), batch_size=None, num_workers=workers, generator=torch.Generator())
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _check_augment(augment: Augment, shape: Sequence[int]) -> None:
    if len(shape) != 3:
        raise InputError(f"augment needs images (C x H x W), but a row of x has {len(shape)} dimension; leave it out")
    if augment.crop >= min(shape[1:]):
        raise InputError(
            f"Augment(crop={augment.crop}) could move a {shape[1]}x{shape[2]} image out of sight; "
            f"use a crop below {min(shape[1:])}"
        )
