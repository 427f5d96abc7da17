from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from pliant.core.errors import InputError
from pliant.study.statistics import (
    compare_many,
    compare_runs,
    holm,
    mcnemar,
    paired_proportion_interval,
    proportion_interval,
    wilson_interval,
)


def test_holm_by_hand() -> None:
    # 4 * 0.005, 3 * 0.01, 2 * 0.03, 1 * 0.04 -> made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_rule_rejects() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        p = (random.uniform(size=5) ** 3).tolist()
        rejected, order = set(), sorted(range(5), key=lambda i: p[i])
        for rank, i in enumerate(order):
            if p[i] > 0.05 / (5 - rank):
                break
            rejected.add(i)
        assert {i for i, q in enumerate(holm(p)) if q <= 0.05} == rejected


@pytest.mark.parametrize(("b", "c"), list(itertools.product(range(6), repeat=2)))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)


@pytest.mark.parametrize(("k", "n"), [(0, 8), (3, 8), (8, 8), (20, 400)])
def test_proportion_intervals_equal_scipy(k: int, n: int) -> None:
    ours, theirs = proportion_interval(k, n, 0.95), stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert ours == pytest.approx((theirs.low, theirs.high))
    ours, theirs = wilson_interval(k, n), stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0.1, 0.1), (0.05, 0.6), (0.4, 0.3), (0.0, 0.9)])
def test_paired_proportion_interval_covers_by_enumeration(first: float, second: float) -> None:
    # Every table of 8 pairs, weighted by its multinomial probability.
    n, covered = 8, 0.0
    weights = stats.multinomial(n, [first, second, 1 - first - second])
    for b in range(n + 1):
        for c in range(n + 1 - b):
            low, high = paired_proportion_interval(b, c, n, 0.90)
            if low <= second - first <= high:
                covered += float(weights.pmf([b, c, n - b - c]))
    assert covered >= 0.90


def test_compare_runs_equals_scipy_and_swapping_gives_the_complement() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(0.9, 0.02, 15), random.normal(0.89, 0.02, 15)
    found = compare_runs(a, b)
    assert found.p == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(a, b, alternative="greater").pvalue)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.ci95 == pytest.approx((interval.low, interval.high))
    assert compare_runs(b, a).p == pytest.approx(1 - found.p)
    assert compare_runs(a, b, higher_is_better=False).p == pytest.approx(1 - found.p)


@pytest.mark.parametrize(("n", "needed"), [(15, 0.455), (5, 0.953)])
def test_the_mean_that_is_just_significant(n: int, needed: float) -> None:
    # The two numbers follow from the t distribution: mean(d) = t_{0.95, n-1} sd(d) / sqrt(n).
    d = np.linspace(-1, 1, n)
    d = d / d.std(ddof=1)
    assert compare_runs(d + needed + 0.001, np.zeros(n)).p <= 0.05 < compare_runs(d + needed - 0.002, np.zeros(n)).p


def test_identical_and_constant_runs_have_a_defined_answer() -> None:
    scores = [0.9, 0.91, 0.92, 0.93, 0.94]
    same = compare_runs(scores, scores)
    assert (same.p, same.wilcoxon_p, same.mean, same.ci95) == (0.5, 0.5, 0.0, (0.0, 0.0))
    better = compare_runs([1.0] * 5, [0.5] * 5)
    assert (better.p, better.ci95) == (0.0, (0.5, 0.5))
    assert compare_runs([0.5] * 5, [1.0] * 5).p == 1.0


def test_compare_many_adjusts_over_the_settings() -> None:
    random = np.random.default_rng(2)
    base = random.normal(0, 1, 10)
    settings = {name: base + random.normal(shift, 1, 10) for name, shift in (("x", 0.5), ("y", 1.0), ("z", 0.0))}
    found = compare_many(settings, base)
    assert [f.p_holm for f in found.values()] == pytest.approx(holm([f.p for f in found.values()]))


def test_few_unequal_or_infinite_runs_are_refused() -> None:
    with pytest.raises(InputError, match="4 pairs; a paired test needs at least 5"):
        compare_runs([1.0] * 4, [2.0] * 4)
    with pytest.raises(InputError, match="6 runs and the base 5"):
        compare_runs([1.0] * 6, [2.0] * 5)
    with pytest.raises(InputError, match="without a finite score"):
        compare_runs([1.0, 2.0, 3.0, 4.0, float("nan")], [2.0] * 5)
