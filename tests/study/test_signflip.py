from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pliant.core.errors import InputError
from pliant.study import signflip
from pliant.study.signflip import SignFlip


def enumerated_p(differences: list[float], theta: float = 0.0) -> float:
    """The definition: the share of sign patterns whose |sum| is at least the observed one."""
    shifted = [d - theta for d in differences]
    observed = abs(math.fsum(shifted))
    sums = [
        abs(math.fsum(s * d for s, d in zip(signs, shifted, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(shifted))
    ]
    slack = 1e-9 * (1 + sum(abs(d) for d in shifted))
    return sum(total >= observed - slack for total in sums) / len(sums)


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("theta", [0.0, 0.7])
def test_p_equals_the_enumeration(n: int, theta: float) -> None:
    d = np.random.default_rng(n).normal(0.5, 1, n).tolist()
    assert SignFlip(d).p(theta) == pytest.approx(enumerated_p(d, theta), abs=1e-12)


@pytest.mark.parametrize("n", [2, 5, 9, 12])
def test_p_equals_scipy(n: int) -> None:
    d = np.random.default_rng(n).normal(0.8, 1, n)
    ours = SignFlip(d.tolist()).p()
    theirs = stats.permutation_test(
        (d, np.zeros(n)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert ours == pytest.approx(theirs.pvalue, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9), st.integers(-8, 8))
def test_ties_and_zeros_count_as_ties(steps: list[int], half: int) -> None:
    # Differences of accuracies on a small set are multiples of 1/n: their sums tie exactly, up to rounding.
    d = [step / 30 for step in steps]
    assert SignFlip(d).p(half / 60) == pytest.approx(enumerated_p(d, half / 60), abs=1e-12)


@pytest.mark.parametrize("n", range(2, 10))
def test_the_smallest_p_is_two_to_the_one_minus_n(n: int) -> None:
    assert SignFlip([1.0 + 0.1 * i for i in range(n)]).p() == 2.0 ** (1 - n)


def test_identical_runs_give_p_one_and_a_point_interval() -> None:
    test = SignFlip([0.0] * 8)
    assert test.p() == 1.0
    assert test.interval() == (0.0, 0.0)


@pytest.mark.parametrize("level", [0.90, 0.95])
@pytest.mark.parametrize("n", [5, 6, 7, 9, 11])
def test_the_interval_is_exactly_what_the_test_does_not_refute(n: int, level: float) -> None:
    d = np.random.default_rng(10 * n).normal(0.3, 1, n).tolist()
    low, high = SignFlip(d).interval(level)
    if math.isinf(low):
        assert 2.0 ** (1 - n) > 1 - level
        return
    step = 1e-6
    for inside in (low, high, (low + high) / 2):
        assert enumerated_p(d, inside) > 1 - level
    for outside in (low - step, high + step):
        assert enumerated_p(d, outside) <= 1 - level


@pytest.mark.parametrize("n", [5, 6, 8])
def test_the_interval_covers_as_promised_over_all_sign_patterns(n: int) -> None:
    # Under symmetry about 0 the sign patterns of fixed magnitudes are equally likely: coverage by enumeration, no luck.
    size = np.random.default_rng(n).exponential(1, n)
    patterns = list(itertools.product((1, -1), repeat=n))
    for level in (0.90, 0.95):
        covered = 0
        for signs in patterns:
            low, high = SignFlip((size * signs).tolist()).interval(level)
            covered += low <= 0 <= high
        promised = 1 - math.floor((1 - level) * 2 ** (n - 1)) / 2 ** (n - 1)
        assert covered / len(patterns) == promised >= level


def test_too_few_pairs_leave_the_interval_unbounded() -> None:
    assert SignFlip([1.0, 2.0, 3.0, 4.0, 5.0]).interval(0.95) == (-math.inf, math.inf)
    assert SignFlip([1.0, 2.0, 3.0, 4.0, 5.0]).interval(0.90) == (1.0, 5.0)


def test_the_monte_carlo_test_agrees_with_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.random.default_rng(3).normal(0.45, 1, 18).tolist()
    exact_p, exact_interval = SignFlip(d).p(), SignFlip(d).interval()
    monkeypatch.setattr(signflip, "EXACT_UP_TO", 10)
    drawn = SignFlip(d)
    assert not drawn.exact
    assert drawn.p() == pytest.approx(exact_p, abs=4 * math.sqrt(exact_p / signflip.DRAWS))
    np.testing.assert_allclose(drawn.interval(), exact_interval, atol=0.02)


def test_the_monte_carlo_test_is_the_same_every_time_and_never_zero() -> None:
    d = [1.0 + 0.01 * i for i in range(40)]
    assert not SignFlip(d).exact
    # With the observed pattern among the draws, the smallest p is 2 / (draws + 1).
    assert SignFlip(d).p() == SignFlip(list(d)).p() == pytest.approx(2 / (signflip.DRAWS + 1), rel=0.01)


def test_no_pairs_and_non_finite_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="at least one pair"):
        SignFlip([])
    with pytest.raises(InputError, match="pair 1 has the difference nan"):
        SignFlip([1.0, math.nan])
