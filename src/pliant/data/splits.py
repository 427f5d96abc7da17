"""Train, validation and test parts: official ones kept, the others stratified per seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pliant.core import keyed
from pliant.core.errors import InputError
from pliant.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Splits:
    """Row numbers (int64, ascending) of the three parts; `Dataset.part` pairs them with the tensors they point into.

    train points into x. valid and test point into x_valid and x_test where the dataset has these, else into x.
    """

    train: Tensor
    valid: Tensor
    test: Tensor


def split(dataset: Dataset, seed: int, valid_fraction: float = 0.1, test_fraction: float = 0.2) -> Splits:
    """A stratified split of the training rows: of the n_c rows of class c, round(n_c f) (at least one) go to each part.

    Official validation and test sets are kept whole and their fraction is not used. Which rows go where depends on
    `seed` alone, so all arms of a pair share one split.

    valid_fraction, test_fraction: shares of the rows of x, each in (0, 1), together below 1.

    Raises InputError for impossible fractions, and naming the class and its count when a class cannot be in every part.

    >>> from pliant.data import ArrayData
    >>> s = split(ArrayData(torch.zeros(20, 3), [0, 1] * 10), seed=0)
    >>> len(s.train), len(s.valid), len(s.test)
    (14, 2, 4)
    """
    drawn = {
        part: fraction
        for part, fraction, official in (
            ("test_fraction", test_fraction, dataset.x_test),
            ("valid_fraction", valid_fraction, dataset.x_valid),
        )
        if official is None
    }
    for key, fraction in drawn.items():
        if not 0 < fraction < 1:
            raise InputError(f"{key}={fraction}; expected a share between 0 and 1, e.g. 0.1")
    if sum(drawn.values()) >= 1:
        raise InputError(f"{' + '.join(drawn)} = {sum(drawn.values()):g} leaves nothing to train on; lower them")
    for part, labels in (("valid", dataset.y_valid), ("test", dataset.y_test)):
        if labels is not None:
            _require_all(dataset, labels, f"the official {part} part")

    order = torch.randperm(len(dataset.y), generator=keyed.generator(seed, "split"))
    labels = dataset.y[order]
    chosen: dict[str, list[Tensor]] = {"train": [], **{key: [] for key in drawn}}
    for number, name in enumerate(dataset.classes):
        rows = order[labels == number]
        counts = {key: max(1, round(len(rows) * fraction)) for key, fraction in drawn.items()}
        if len(rows) - sum(counts.values()) < 1:
            raise InputError(
                f"{dataset.name}: class {name!r} has {len(rows)} rows, too few for one in each of "
                f"{1 + len(drawn)} parts ({', '.join(f'{key}={value:g}' for key, value in drawn.items()) or 'train'}); "
                "add rows of this class or leave it out"
            )
        pieces = rows.split([len(rows) - sum(counts.values()), *counts.values()])
        for key, piece in zip(chosen, pieces, strict=True):
            chosen[key].append(piece)
    parts = {key: torch.cat(pieces).sort().values for key, pieces in chosen.items()}
    return Splits(
        train=parts["train"],
        valid=parts["valid_fraction"] if dataset.y_valid is None else torch.arange(len(dataset.y_valid)),
        test=parts["test_fraction"] if dataset.y_test is None else torch.arange(len(dataset.y_test)),
    )


def _require_all(dataset: Dataset, labels: Tensor, part: str) -> None:
    counts = labels.bincount(minlength=len(dataset.classes)).tolist()
    for name, count in zip(dataset.classes, counts, strict=True):
        if count == 0:
            raise InputError(
                f"{dataset.name}: class {name!r} has 0 rows in {part}; add some, or drop the class everywhere"
            )
