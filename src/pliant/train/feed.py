"""A task's data, split and scaled once per process: training batches, evaluation batches, calibration batches."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pliant.core import keyed
from pliant.core.errors import InputError
from pliant.data import Batches, Dataset, Moments, Part, in_order, load, split, standardise, statistics

from .task import Task

EVAL_BATCH = 512
SCALED_LIMIT = 64 * 2**20
"""Bytes of float32 up to which a part is scaled once and kept, instead of batch by batch."""
RECALIBRATION = 50
"""Batches over which statistics are recomputed at the end: their mean is then known to about a seventh of the
batch-to-batch deviation, for the price of a few evaluations."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Batches of some rows in order, un-augmented, as often as one iterates."""

    part: Part
    moments: Moments | None
    batch_size: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        part = self.part
        for x, y in in_order(part.x, part.y, self.batch_size, rows=part.rows, normalise=self.moments):
            yield x.to(self.device), y.to(self.device)


@dataclasses.dataclass(frozen=True)
class Source:
    """The three parts of a dataset for one seed.

    input_shape: of one example; classes: their number; raw: the training part as it was loaded; moments: by which
    inputs are scaled; pending: the same where train, valid and test are still unscaled, else None.
    """

    input_shape: tuple[int, ...]
    classes: int
    raw: Part
    train: Part
    valid: Part
    test: Part
    moments: Moments | None
    pending: Moments | None

    def stream(self, task: Task, seed: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches from `step` on, without end, in the order that `seed` keys."""
        part, moments = (self.train, self.pending) if task.augment is None else (self.raw, self.moments)
        # A crop's border is black, that is zero before scaling: augmented images are scaled batch by batch.
        batches = Batches(
            part.x,
            part.y,
            task.batch_size,
            seed,
            rows=part.rows,
            augment=task.augment,
            normalise=moments,
            drop_last=True,
        )
        if isinstance(part.x, Tensor) and part.x.dtype == torch.float32 and task.augment is None and moments is None:
            return _gathered(part.x, part.y, task.batch_size, seed, step)
        return batches.stream(step)

    def evaluation(self, part: str, rank: int, world: int, device: torch.device) -> Rows:
        """Every world-th row of "valid" or "test", each once."""
        whole: Part = getattr(self, part)
        share = Part(whole.x, whole.y, whole.rows[rank::world])
        return Rows(share, self.pending, EVAL_BATCH, device)

    def sample(self, count: int, batch_size: int, seed: int, device: torch.device) -> Rows:
        """`count` training rows drawn by key (all when there are fewer)."""
        order = torch.randperm(len(self.train.rows), generator=keyed.generator(seed, "calibration"))
        rows = self.train.rows[order[:count]]
        return Rows(Part(self.train.x, self.train.y, rows), self.pending, batch_size, device)


@functools.lru_cache(maxsize=4)
def _read(spec: str) -> Dataset:
    return load(spec)


def dataset(data: str | Dataset) -> Dataset:
    """The dataset of a task; a named one is read once per process."""
    return _read(data) if isinstance(data, str) else data


@dataclasses.dataclass(frozen=True)
class _Keyed:
    """A dataset that is found again by its key: a worker gets an equal copy with every run."""

    key: str
    data: Dataset = dataclasses.field(compare=False)


def source(task: Task, seed: int) -> Source:
    """The task's data for a seed: the same split for every arm that shares the seed."""
    data = dataset(task.data)
    key = task.data if isinstance(task.data, str) else data.digest
    return _source(_Keyed(key, data), seed, task.valid_fraction, task.test_fraction, task.input)


@functools.lru_cache(maxsize=2)
def _source(keyed_data: _Keyed, seed: int, valid_fraction: float, test_fraction: float, scaling: str) -> Source:
    data = keyed_data.data
    splits = split(data, seed, valid_fraction, test_fraction)
    raw = data.part("train", splits)
    moments = None
    if scaling == "standardise":
        moments = statistics(raw.x, raw.rows)
    elif scaling in ("none", "binarise"):
        moments = (torch.zeros(1), torch.ones(1))
    valid, test = data.part("valid", splits), data.part("test", splits)
    if scaling == "binarise":
        raw, valid, test = (_binarised(part, data.name) for part in (raw, valid, test))
    train = raw
    pending = moments
    rows = sum(len(part.rows) for part in (train, valid, test))
    if data.fits and 4 * rows * math.prod(data.input_shape) <= SCALED_LIMIT:
        # Float32 now, which `standardise` without moments leaves as it is.
        train, valid, test = (_scaled(part, moments) for part in (train, valid, test))
        pending = None
    return Source(
        input_shape=data.input_shape,
        classes=len(data.classes),
        raw=raw,
        train=train,
        valid=valid,
        test=test,
        moments=moments,
        pending=pending,
    )


def _binarised(part: Part, name: str) -> Part:
    """1 where a pixel is at least half of full scale (128 of bytes, 0.5 of floats in [0, 1]), else 0."""
    x = part.x
    if not isinstance(x, Tensor) or (x.dtype != torch.uint8 and bool((x < 0).any() | (x > 1).any())):
        raise InputError(
            f'input = "binarise" takes bytes or floats in [0, 1] held in memory; {name} is neither: use "standardise"'
        )
    return Part((x >= (128 if x.dtype == torch.uint8 else 0.5)).float(), part.y, part.rows)


def _scaled(part: Part, moments: Moments | None) -> Part:
    assert isinstance(part.x, Tensor)
    x = standardise(part.x.index_select(0, part.rows), moments)
    return Part(x, part.y.index_select(0, part.rows), torch.arange(len(x)))


def _gathered(x: Tensor, y: Tensor, batch_size: int, seed: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `Batches(x, y, batch_size, seed).stream(step)` for inputs that need no more work.

    Only gathered, and cut into batches an epoch at a time: 4 % of a small network's step.
    """
    whole = len(x) // batch_size
    epoch, start = divmod(step, whole)
    while True:
        order = torch.randperm(len(x), generator=keyed.generator(seed, "order", epoch))
        for rows in torch.split(order[start * batch_size : whole * batch_size], batch_size):
            yield x.index_select(0, rows), y.index_select(0, rows)
        epoch, start = epoch + 1, 0
