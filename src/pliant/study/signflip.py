"""The exact sign-flip (paired permutation) test and the interval that inverts it.

With paired differences d_1..d_n and the hypothesis "the differences are symmetric about theta", all 2^n sign patterns
of d_i - theta are equally likely. Flipping the signs of a subset S makes the sum at least as large exactly when
mean_S(d) <= theta, so everything follows from the sorted means of the 2^n - 1 non-empty subsets (Hartigan 1969,
"Using subsample values as typical values"):

    p(theta)  = min(1, 2 (1 + min(#{S: mean_S <= theta}, #{S: mean_S >= theta})) / 2^n)
    interval  = [k-th smallest mean_S, k-th largest mean_S],   k = floor(alpha 2^(n-1))

The smallest possible p is therefore 2^(1-n), and with k = 0 the interval is unbounded.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pliant.core import keyed
from pliant.core.errors import InputError

EXACT_UP_TO = 20
"""Pairs up to which all 2^n subsets are listed; beyond, DRAWS random ones stand for them."""
DRAWS = 99_999
"""Random subsets beyond EXACT_UP_TO: the standard error of a p near 0.05 is 0.0007."""
_CHUNK = 4_096

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class SignFlip:
    """The test of one set of paired differences.

    differences: (n,) finite floats, n >= 1. Beyond EXACT_UP_TO pairs the test is Monte-Carlo with keyed subsets and
    the "+1 rule" (Phipson and Smyth 2010), which keeps it valid: the observed pattern counts as one of the draws.

    >>> test = SignFlip([3.0, 1.0, 2.0, 4.0, 2.0, 5.0])
    >>> test.p(), test.interval(0.95)
    (0.03125, (1.0, 5.0))
    """

    differences: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self.differences):
            raise InputError("a sign-flip test needs at least one pair, got none")
        bad = [i for i, d in enumerate(self.differences) if not math.isfinite(d)]
        if bad:
            raise InputError(
                f"pair {bad[0]} has the difference {self.differences[bad[0]]}; a paired test needs finite values: "
                "score diverged runs at the task's worst score"
            )

    @property
    def pairs(self) -> int:
        """n."""
        return len(self.differences)

    @property
    def exact(self) -> bool:
        """Whether all sign patterns are counted."""
        return self.pairs <= EXACT_UP_TO

    @property
    def mean(self) -> float:
        """The mean difference."""
        return math.fsum(self.differences) / self.pairs

    @functools.cached_property
    def _means(self) -> NDArray[np.float64]:
        values = np.asarray(self.differences, dtype=np.float64)
        return np.sort(_all_means(values) if self.exact else _drawn_means(values))

    def p(self, theta: float = 0.0) -> float:
        """Two-sided p of the hypothesis that the differences are symmetric about `theta`."""
        # Equal sums differ by rounding when added in another order; a tie must count as a tie.
        slack = 1e-12 * (abs(theta) + max(abs(d) for d in self.differences))
        below = int(np.searchsorted(self._means, theta + slack, side="right"))
        above = len(self._means) - int(np.searchsorted(self._means, theta - slack, side="left"))
        return min(1.0, 2.0 * (1 + min(below, above)) / (len(self._means) + 1))

    def interval(self, level: float = 0.95) -> Interval:
        """All theta with p(theta) > 1 - level; (-inf, inf) when 2^(1-n) > 1 - level, since no theta is then refuted."""
        rank = math.floor((1.0 - level) * (len(self._means) + 1) / 2)
        if rank == 0:
            return -math.inf, math.inf
        return float(self._means[rank - 1]), float(self._means[-rank])


def _all_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    sums, sizes = np.zeros(1), np.zeros(1)
    for value in values:
        sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
    return sums[1:] / sizes[1:]


def _drawn_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # Keyed by the number of pairs alone: the same data always give the same p, in any process.
    stream = np.random.default_rng(keyed.derive(0, "sign-flip", len(values)))
    means = []
    for start in range(0, DRAWS, _CHUNK):
        chosen = stream.random((min(_CHUNK, DRAWS - start), len(values))) < 0.5
        chosen = chosen[chosen.any(axis=1)]
        means.append(chosen @ values / chosen.sum(axis=1))
    return np.concatenate(means)
