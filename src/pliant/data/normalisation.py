"""Per-channel normalisation with constants of the training part."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pliant.data.dataset import Inputs

# (mean, std), float32, one value per channel (images) or feature (vectors), in the units of x (uint8: 0..255).
Moments = tuple[Tensor, Tensor]

_CHUNK = 1024
# Pictures on disk are sampled: the mean of 4,096 pictures is known to about std / 64 even if each were one flat colour.
_SAMPLE = 4096
# Spread below float32's own resolution of the values is rounding, not signal; dividing by it would amplify noise.
_FLOOR = 1e-6


def statistics(x: Inputs, rows: Tensor | None = None) -> Moments:
    """mean_k = E[x_k], std_k = sqrt(E[(x_k - mean_k)^2]) (divisor m), per channel k over N, H, W or per feature over N.

    rows: which rows of x to use (the training part), default all. A feature that is constant to float32's resolution
    (std <= 1e-6 max|x_k|) gets std 1, so normalising maps it to 0 instead of infinity. Of images on disk at most
    4,096 evenly spaced rows are read. Accumulated in float64 by chunks (Chan, Golub & LeVeque 1983, eq. 2.1).

    >>> mean, std = statistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> mean.tolist(), std.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    if rows is None:
        rows = torch.arange(len(x))
    if not isinstance(x, Tensor):
        rows = rows[:: max(1, -(-len(rows) // _SAMPLE))]
    count = 0
    mean = squares = largest = torch.zeros(x.shape[1], dtype=torch.float64)
    for chunk in _chunks(x, rows):
        values = chunk.double().flatten(2).transpose(0, 1).flatten(1) if chunk.dim() == 4 else chunk.double().t()
        added = values.shape[1]
        chunk_mean = values.mean(1)
        gap = chunk_mean - mean
        total = count + added
        mean = mean + gap * (added / total)
        squares = squares + (values - chunk_mean[:, None]).square().sum(1) + gap.square() * (count * added / total)
        largest = torch.maximum(largest, values.abs().amax(1))
        count = total
    std = (squares / count).sqrt()
    std = torch.where(std <= _FLOOR * largest, 1.0, std)
    return mean.float(), std.float()


def _chunks(x: Inputs, rows: Tensor) -> Iterator[Tensor]:
    for chunk in rows.split(_CHUNK):
        yield x.index_select(0, chunk) if isinstance(x, Tensor) else x.read(chunk.tolist())


def standardise(x: Tensor, moments: Moments | None) -> Tensor:
    """(x - mean) / std as float32, a new tensor; without moments uint8 becomes x / 255 and float32 stays as it is.

    x: N x C x H x W or N x D, uint8 or float32. Computed as x * (1 / std) + (-mean / std), in place on one copy.
    """
    out = x.to(torch.float32, copy=True)
    if moments is None:
        return out.div_(255) if x.dtype == torch.uint8 else out
    mean, std = moments
    shape = (-1,) + (1,) * (x.dim() - 2)
    return out.mul_((1 / std).reshape(shape)).add_((-mean / std).reshape(shape))
