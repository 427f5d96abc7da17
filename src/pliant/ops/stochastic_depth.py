"""Survival probabilities of residual blocks under stochastic depth (Huang et al. 2016)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from pliant.core.errors import InputError, nearest

SCHEDULES = ("paper", "timm", "uniform")


def survival(blocks: int, p_last: float = 0.5, schedule: str | Sequence[float] = "paper") -> tuple[float, ...]:
    """p_l = 1 - (l / L) (1 - p_L) for l = 1..L: the probability that block l is computed in a training step.

    blocks: L. p_last: p_L, in [0, 1]. schedule:

    * "paper": as above (section 3, "linear decay"); p_0 = 1 belongs to the input, so block 1 may already be skipped;
    * "timm": p_l = 1 - (l - 1) / (L - 1) (1 - p_L); block 1 always survives, also when it is the only one;
    * "uniform": p_l = p_L;
    * a sequence of L probabilities, taken as they are (p_last is not used).

    A drop rate is 1 - p. Warns of a block with p = 0, which is never trained.

    >>> survival(4)
    (0.875, 0.75, 0.625, 0.5)
    >>> survival(3, 0.8, "uniform")
    (0.8, 0.8, 0.8)
    """
    if blocks < 1:
        raise InputError(f"a survival schedule needs at least one residual block, got blocks={blocks}")
    if isinstance(schedule, str):
        chances = tuple(_chance(schedule, block, blocks, p_last) for block in range(1, blocks + 1))
    else:
        chances = tuple(float(p) for p in schedule)
        if len(chances) != blocks:
            raise InputError(f"the schedule lists {len(chances)} survival probabilities for {blocks} residual blocks")
    for block, p in enumerate(chances, start=1):
        if not 0.0 <= p <= 1.0:
            raise InputError(
                f"block {block} of {blocks} has survival probability {p}, outside [0, 1] "
                "(note that it is the chance to be kept: 1 - drop rate)"
            )
        if p == 0.0:
            warnings.warn(f"block {block} of {blocks} has survival probability 0: it is never trained", stacklevel=2)
    return chances


def expected_active(chances: Sequence[float]) -> float:
    """E[number of active blocks] = sum_l p_l; (3 L - 1) / 4 for the paper's schedule with p_L = 0.5.

    >>> expected_active(survival(54))
    40.25
    """
    return math.fsum(chances)


def _chance(schedule: str, block: int, blocks: int, p_last: float) -> float:
    if schedule == "paper":
        return 1.0 - block / blocks * (1.0 - p_last)
    if schedule == "timm":
        return 1.0 - (block - 1) / max(blocks - 1, 1) * (1.0 - p_last)
    if schedule == "uniform":
        return p_last
    raise InputError(f"unknown survival schedule {schedule!r}: {nearest(schedule, SCHEDULES)} (or give a list)")
