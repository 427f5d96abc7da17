"""Images per second of pliant's in-memory batches against torch's DataLoader with two workers, in one run.

Both do the same to 50,000 synthetic 3 x 32 x 32 uint8 images in batches of 128: shuffle, zero-pad by 4, crop, flip,
convert to float32, normalise. The DataLoader does it image by image with plain tensor operations in a map-style
dataset, as training scripts do; its start-up (before the first batch) is not counted. Repeats alternate, each an epoch;
the rates are medians, the ratio is the median of the repeats' ratios. Torch gets one thread, as in the DataLoader's
workers, so that a busy machine slows both alike.

    python benchmarks/data.py [--json] [--repeats 7]

Exit code 1 when the ratio is below the floor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics as stats
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pliant.data import Augment, Batches, Moments, statistics

IMAGES, BATCH, EDGE, WORKERS = 50_000, 128, 4, 2
FLOOR = 5.0


class PerImage(Dataset):
    def __init__(self, x: Tensor, y: Tensor, moments: Moments) -> None:
        self.x, self.y = x, y
        self.mean, self.std = (values.reshape(-1, 1, 1) for values in moments)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        padded = F.pad(self.x[index], (EDGE, EDGE, EDGE, EDGE))
        top, left = torch.randint(0, 2 * EDGE + 1, (2,)).tolist()
        image = padded[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() - self.mean) / self.std, self.y[index]


def time_batches(batches: Batches, epoch: int) -> float:
    start = time.perf_counter()
    for _ in batches.epoch(epoch):
        pass
    return len(batches) * BATCH / (time.perf_counter() - start)


def time_loader(data: PerImage) -> float:
    iterator = iter(DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=WORKERS))
    next(iterator)
    start = time.perf_counter()
    batches = sum(1 for _ in iterator)
    return batches * BATCH / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a line of text")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (IMAGES,), generator=generator)
    moments = statistics(x)
    batches = Batches(x, y, BATCH, seed=0, augment=Augment(crop=EDGE, flip=True), normalise=moments)
    data = PerImage(x, y, moments)
    time_batches(batches, 0)
    ours, theirs = [], []
    for repeat in range(1, options.repeats + 1):
        theirs.append(time_loader(data))
        ours.append(time_batches(batches, repeat))
    ratio = stats.median(a / b for a, b in zip(ours, theirs, strict=True))
    result = {
        "benchmark": "data",
        "pliant_images_per_s": round(stats.median(ours)),
        "dataloader_images_per_s": round(stats.median(theirs)),
        "ratio": round(ratio, 2),
        "floor": FLOOR,
        "repeats": options.repeats,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"in-memory {result['pliant_images_per_s']:,} images/s, DataLoader with {WORKERS} workers "
            f"{result['dataloader_images_per_s']:,} images/s: {result['ratio']}x (floor {FLOOR:g}x)"
        )
    return 0 if ratio >= FLOOR else 1


if __name__ == "__main__":
    raise SystemExit(main())
