"""Data sources, honest splits and batches by key.

data = load("fashion-mnist")
parts = split(data, seed=0)
train = data.part("train", parts)
moments = statistics(train.x, train.rows)
batches = Batches(train.x, train.y, 128, seed=0, rows=train.rows, augment=Augment(), normalise=moments)
for x, y in batches.epoch(0): ...
"""

from pliant.data.augmentation import Augment
from pliant.data.batches import Batches, in_order
from pliant.data.dataset import ArrayData, Dataset, Part
from pliant.data.files import ImageFiles
from pliant.data.normalisation import Moments, standardise, statistics
from pliant.data.sources import MEMORY_LIMIT, load
from pliant.data.splits import Splits, split

__all__ = [
    "MEMORY_LIMIT",
    "ArrayData",
    "Augment",
    "Batches",
    "Dataset",
    "ImageFiles",
    "Moments",
    "Part",
    "Splits",
    "in_order",
    "load",
    "split",
    "standardise",
    "statistics",
]
