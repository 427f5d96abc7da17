"""Weight normalisation: a weight as length times direction."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.core.errors import InputError
from pliant.ops._channels import statistics_dtype


def weight_norm(v: Tensor, g: Tensor, dim: int | None = 0, groups: int = 1) -> Tensor:
    """w = (g / ||v||) v, one length g per output unit (Salimans & Kingma 2016, equation 2); so ||w|| = |g|.

    v: the weight's shape. dim: the OUTPUT axis of v, which the norm leaves out: 0 for linear, convolution, embedding
    and every LSTM or GRU matrix, 1 for transposed convolution; None for one norm of the whole tensor.
    groups: of a transposed convolution, whose weight (in, out/groups, *kernel) holds `groups` blocks of input rows;
    every (group, output) pair has its own norm.
    g: the shape of `norm_except(v, dim, groups)`; its entries, read in order, are the layer's output channels. It may
    be negative.

    The norm is computed in float32 or wider and the result has v's dtype. With g = ||v|| the result is v, bit for bit.
    Where ||v|| is 0 (or its square underflows) the direction is undefined: ||v|| is taken as 1 there, so that w = 0 and
    all gradients are finite. Such a unit learns only if its g is not 0.

    >>> weight_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[10.0], [1.0]]))
    tensor([[6., 8.],
            [0., 0.]])
    """
    blocks, square = _blocks_and_squares(v, dim, groups)
    if g.shape != square.shape:
        raise InputError(
            f"weight_norm got g of shape {tuple(g.shape)} for v of shape {tuple(v.shape)}, dim={dim}, groups={groups}: "
            f"it must be {tuple(square.shape)}, as norm_except(v, dim, groups) gives it"
        )
    norm = torch.where(square > 0, square, 1.0).sqrt()
    return (blocks * (g.to(norm.dtype) / norm)).reshape(v.shape).to(v.dtype)


def norm_except(v: Tensor, dim: int | None = 0, groups: int = 1) -> Tensor:
    """||v|| over every axis but the output axis `dim`, which is kept: the g that leaves v as it is.

    v, dim, groups: as in `weight_norm`. Returns float32 or wider, of v's rank with 1 for every summed axis; for
    groups > 1 of shape (groups, 1, out/groups, 1, ...). The gradient at a zero row is 0.

    >>> norm_except(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[5.],
            [0.]])
    >>> norm_except(torch.ones(4, 3, 2, 2), dim=1, groups=2).shape
    torch.Size([2, 1, 3, 1, 1])
    """
    _, square = _blocks_and_squares(v, dim, groups)
    nonzero = square > 0
    return torch.where(nonzero, torch.where(nonzero, square, 1.0).sqrt(), 0.0)


def _blocks_and_squares(v: Tensor, dim: int | None, groups: int) -> tuple[Tensor, Tensor]:
    """`v` in float32 or wider, with the groups as an axis of their own, and its squared norms."""
    if dim is not None and not 0 <= dim < v.dim():
        # torch's weight_norm reads -1 as "no axis", everybody else as "the last axis"; we read it as neither.
        raise InputError(
            f"dim={dim} is not an axis of a weight of shape {tuple(v.shape)}: "
            f"use 0 to {v.dim() - 1}, or None for one norm of the whole tensor"
        )
    blocks = v.to(statistics_dtype(v))
    kept: tuple[int | None, ...] = (dim,)
    if groups != 1:
        if dim != 1 or groups < 1 or v.shape[0] % groups:
            raise InputError(
                f"groups={groups} with dim={dim} does not fit a weight of shape {tuple(v.shape)}: groups are for "
                "transposed convolutions, weight (in, out/groups, *kernel), where dim is 1 and `in` a multiple of "
                "groups; an ordinary grouped convolution needs groups=1, dim=0"
            )
        blocks, kept = blocks.reshape(groups, v.shape[0] // groups, *v.shape[1:]), (0, 2)
    axes = tuple(axis for axis in range(blocks.dim()) if axis not in kept)
    squares = blocks.square()
    # A vector with its only axis kept has nothing to sum, and sum(()) would sum everything.
    return blocks, squares.sum(axes, keepdim=True) if axes else squares
