from __future__ import annotations

import numpy as np
import pytest

from pliant.study.power import (
    attained_level,
    equivalence_power,
    level_at_look,
    more_pairs,
    pairs_needed,
    power,
)
from pliant.study.signflip import SignFlip


@pytest.mark.parametrize(("alpha", "arms", "needed"), [(0.05, 1, 6), (0.025, 1, 7), (0.025, 3, 8), (0.05, 10, 9)])
def test_pairs_needed(alpha: float, arms: int, needed: int) -> None:
    assert pairs_needed(alpha, arms) == needed
    assert arms * 2.0 ** (1 - needed) <= alpha < arms * 2.0 ** (2 - needed)


def test_levels_of_looks_never_add_up_to_more_than_alpha() -> None:
    assert level_at_look(0.05, 1) == 0.025
    assert sum(level_at_look(0.05, look) for look in range(1, 40)) <= 0.05
    for looks in (1, 2, 3, 7):
        assert sum(level_at_look(0.05, look, looks) for look in range(1, looks + 1)) == pytest.approx(0.05)


def simulated_power(effect: float, pairs: int, alpha: float, studies: int = 1500) -> float:
    d = np.random.default_rng(pairs).normal(effect, 1, (studies, pairs))
    return float(np.mean([SignFlip(row.tolist()).p() <= alpha and row.mean() > 0 for row in d]))


@pytest.mark.parametrize(("pairs", "alpha"), [(8, 0.0125), (8, 0.05), (11, 0.0125)])
@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
def test_power_agrees_with_simulation(effect: float, pairs: int, alpha: float) -> None:
    # k = 1, 6 and 12: the documented error is 0.04; two standard errors of 1500 studies are 0.026.
    assert power(effect, pairs, alpha) == pytest.approx(simulated_power(effect, pairs, alpha), abs=0.04 + 0.026)


def test_power_at_the_ends() -> None:
    assert power(1.0, 5, 0.05) == 0.0  # 5 pairs can never be significant
    assert power(50.0, 8, 0.05) == power(500.0, 8, 0.05) == 1.0
    assert power(0.0, 30, 0.05) == pytest.approx(0.025, abs=1e-6)
    assert attained_level(0.05, 6) == 1 / 32


def test_equivalence_power_agrees_with_simulation() -> None:
    d = np.random.default_rng(5).normal(0.2, 1, (1500, 14))
    inside = np.mean([max(map(abs, SignFlip(row.tolist()).interval(0.90))) < 0.9 for row in d])
    assert equivalence_power(0.2, 0.9, 14) == pytest.approx(float(inside), abs=0.06)


def test_more_pairs_reach_the_wanted_power() -> None:
    more = more_pairs(1.1, 1.0, 8, margin=1e-9, alpha=0.0125)
    assert more is not None
    # The power steps up by less than 0.06 a pair here; the formula's error and two standard errors come on top.
    assert simulated_power(1.1, 8 + more, 0.0125, studies=600) == pytest.approx(0.83, abs=0.03 + 0.04 + 0.03)
    assert power(1.1, 8 + more, 0.0125) >= 0.8 > power(1.1, 8 + more - 1, 0.0125)


def test_more_pairs_may_decide_for_no_difference() -> None:
    equal = more_pairs(0.0, 1.0, 8, margin=0.5, alpha=0.0125)
    assert equal is not None
    assert equivalence_power(0.0, 0.5, 8 + equal) >= 0.8
    assert more_pairs(0.0, 1.0, 8, margin=1e-6, alpha=0.0125) is None


def test_constant_differences_need_only_enough_patterns() -> None:
    assert more_pairs(1.0, 0.0, 5, margin=0.1, alpha=0.05) == 1
    assert more_pairs(0.0, 0.0, 8, margin=0.0, alpha=0.05) is None
