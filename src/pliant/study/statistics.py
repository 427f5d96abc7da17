"""Adjustments and tests beside the sign-flip test: Holm, McNemar, the paired t-test with Wilcoxon as a check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pliant.core.errors import InputError

from .signflip import Interval

FEWEST_PAIRS = 5
"""Below this `compare_runs` refuses: with 4 pairs even a perfect Wilcoxon p is 0.0625 one-sided."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p_(i) = max_{j<=i} min(1, (m - j + 1) p_(j)) over the sorted p (Holm 1979), in the given order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2), of the discordant pairs b and c.

    >>> mcnemar(0, 6)
    0.03125
    """
    discordant = only_first + only_second
    fewer = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2.0 * fewer / 2.0**discordant)


def proportion_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The exact (Clopper-Pearson 1934) interval of a proportion.

    >>> [round(x, 4) for x in proportion_interval(0, 10)]
    [0.0, 0.3085]
    """
    from scipy.stats import beta

    tail = (1.0 - level) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def paired_proportion_interval(only_first: int, only_second: int, pairs: int, level: float = 0.95) -> Interval:
    """An interval of P(second only) - P(first only) that covers at least `level`.

    Both discordant fractions get exact intervals at level (1 + level) / 2 and are subtracted end against end: wider
    than the asymptotic intervals, but its promise holds for 8 pairs too.
    """
    each = (1.0 + level) / 2
    first = proportion_interval(only_first, pairs, each)
    second = proportion_interval(only_second, pairs, each)
    return second[0] - first[1], second[1] - first[0]


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The score interval of a proportion (Wilson 1927): sampling error of measured rates.

    >>> [round(x, 4) for x in wilson_interval(20, 400)]
    [0.0326, 0.076]
    """
    from scipy.stats import norm

    z = float(norm.ppf((1.0 + level) / 2))
    rate, weight = successes / trials, z * z / trials
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials))
    return centre - half, centre + half


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """One-sided comparison of paired scores: `p` of "a is not better than b", mean gain and its t interval.

    `wilcoxon_p` is the signed-rank check; `p_holm` is `p` adjusted over all settings compared with it.
    """

    pairs: int
    mean: float
    sd: float
    ci95: Interval
    p: float
    wilcoxon_p: float
    p_holm: float


def compare_runs(a: Sequence[float], b: Sequence[float], *, higher_is_better: bool = True) -> PairedComparison:
    """t = mean(d) / (sd(d) / sqrt(n)), d = a - b, p = 1 - T_{n-1}(t): Davis and Frank's protocol (ECCV 2022 code).

    a, b: one score per seed, the same seeds in the same order, at least 5. Identical runs give p = 0.5, not NaN.
    """
    return compare_many({"a": a}, b, higher_is_better=higher_is_better)["a"]


def compare_many(
    settings: dict[str, Sequence[float]], base: Sequence[float], *, higher_is_better: bool = True
) -> dict[str, PairedComparison]:
    """`compare_runs` of every setting with the same base, Holm-adjusted over the settings."""
    raw = {name: _paired(name, scores, base, higher_is_better) for name, scores in settings.items()}
    adjusted = holm([result.p for result in raw.values()])
    return {
        name: dataclasses.replace(result, p_holm=p) for (name, result), p in zip(raw.items(), adjusted, strict=True)
    }


def _paired(name: str, a: Sequence[float], b: Sequence[float], higher_is_better: bool) -> PairedComparison:
    from scipy import stats

    if len(a) != len(b):
        raise InputError(
            f"{name!r} has {len(a)} runs and the base {len(b)}: a paired test needs the same seeds in both"
        )
    if len(a) < FEWEST_PAIRS:
        raise InputError(f"{name!r} has {len(a)} pairs; a paired test needs at least {FEWEST_PAIRS}: run more seeds")
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not np.isfinite(d).all():
        raise InputError(
            f"{name!r} or the base has runs without a finite score: score diverged runs at the worst score"
        )
    gain = d if higher_is_better else -d
    mean, sd, n = float(d.mean()), float(d.std(ddof=1)), len(d)
    if sd == 0.0:
        # t is 0/0 or infinite: the limit of the formula decides.
        p = 0.5 if mean == 0.0 else (0.0 if gain[0] > 0 else 1.0)
        half = 0.0
    else:
        p = float(stats.ttest_1samp(gain, 0.0, alternative="greater").pvalue)
        half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    rank_p = 0.5 if not d.any() else float(stats.wilcoxon(gain, alternative="greater").pvalue)
    return PairedComparison(
        pairs=n, mean=mean, sd=sd, ci95=(mean - half, mean + half), p=p, wilcoxon_p=rank_p, p_holm=p
    )
