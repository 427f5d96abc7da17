"""Keyed randomness: noise = f(seed, names, step, element), never a hidden generator's state.

A generator inside a module breaks torch.compile, gives another mask when activation checkpointing runs the forward
again (silently wrong gradients) and is missing from state_dict. A key has none of these faults: the same key gives
the same number, in any order, on any rank, after any resume.

Three ways to use a key, from cheapest to widest:

* `host_uniforms(count, seed, name, step)`  floats on the host (skip gates: equal on all ranks, no device sync)
* `generator(seed, *names)`      a fresh torch.Generator for one draw (init, order, augment, split)
* `uniform(shape, key, step)`    a tensor of floats, counter-based (Philox 4x32-10), compiles as plain aten ops
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
# Philox 4x32 constants: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def derive(seed: int, *names: int | str) -> int:
    """A 63-bit key from a seed and a path of names: the first 8 bytes of BLAKE2b over their unambiguous encoding.

    >>> derive(0, "dropout", "fc1") == derive(0, "dropout", "fc1") != derive(0, "dropoutf", "c1")
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def host_uniform(seed: int, *names: int | str) -> float:
    """One uniform number in [0, 1) drawn on the host.

    >>> 0.0 <= host_uniform(3, "gate", 17) < 1.0
    True
    """
    return (derive(seed, *names) >> 10) * 2.0**-53


def host_uniforms(count: int, seed: int, name: str, step: int) -> tuple[float, ...]:
    """`count` uniform numbers in [0, 1) drawn on the host for one step: BLAKE2b of (step, block) under the names' key.

    Steps are drawn by pages of 64: between two training steps caches are cold and every Python call is dear.

    >>> host_uniforms(9, 3, "gates", 17)[:8] == host_uniforms(8, 3, "gates", 17)
    True
    """
    return _page(count, seed, name, step >> 6)[step & 63]


@functools.lru_cache(maxsize=32)
def _page(count: int, seed: int, name: str, page: int) -> tuple[tuple[float, ...], ...]:
    key = derive(seed, name).to_bytes(8, "little")
    rows = []
    for step in range(page << 6, (page + 1) << 6):
        words: list[int] = []
        for block in range((count + 7) // 8):
            words += struct.unpack("<8Q", hashlib.blake2b(struct.pack("<QQ", step, block), key=key).digest())
        rows.append(tuple((word >> 11) * 2.0**-53 for word in words[:count]))
    return tuple(rows)


def generator(seed: int, *names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator seeded by a key; use it for one draw and drop it."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def _philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK32, (key >> 32) & _MASK32
    for _ in range(_ROUNDS):
        # int64 products of two 32-bit numbers wrap, but two's complement keeps all 64 bits right;
        # masking after the arithmetic shift removes the copied sign.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def uniform(
    shape: Sequence[int], key: int, step: Tensor | int, *, rank: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """u[i] = (Philox4x32-10(counter=(i // 4, rank, step), key)[i % 4] >> 8) / 2^24, in [0, 1).

    shape: of the result; key: from `derive`; step: int or int64 scalar tensor (its device is used);
    rank: gives every process its own numbers; dtype: a floating type. Float32 represents every value exactly.

    >>> bool((uniform((5,), 7, 0) == uniform((9,), 7, 0)[:5]).all())
    True
    """
    device = step.device if isinstance(step, Tensor) else torch.device("cpu")
    count = math.prod(shape)
    block = torch.arange((count + 3) // 4, dtype=torch.int64, device=device)
    clock = torch.as_tensor(step, dtype=torch.int64, device=device)
    counter = (
        block & _MASK32,
        torch.full_like(block, rank & _MASK32),
        (clock & _MASK32).expand_as(block),
        ((clock >> 32) & _MASK32).expand_as(block),
    )
    words = torch.stack(_philox(counter, key), dim=1).reshape(-1)[:count]
    return ((words >> 8).to(dtype) * 2.0**-24).reshape(tuple(shape))
