from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pliant.study.verdict import Rules, Sample, Verdict, judge

SCORES = Rules(
    unit="accuracy", higher_is_better=True, margin=0.005, level=0.025, next_level=0.0125, conditions="digits, 600 steps"
)
STEPS = Rules(
    unit="steps", higher_is_better=False, margin=30.0, level=0.025, next_level=0.0125, conditions="digits, 600 steps"
)
BASE = [0.90, 0.91, 0.92, 0.90, 0.93, 0.91, 0.92, 0.94]


def scores(
    *arms: Sequence[float], base: Sequence[float] = BASE, rules: Rules = SCORES, diverged: int = 0
) -> list[Verdict]:
    samples = {f"arm{i}": Sample(values, None, diverged) for i, values in enumerate(arms)}
    return judge("base", Sample(base, None, 0), samples, rules)


def steps(arm: Sequence[float | None], base: Sequence[float | None], budget: int = 600) -> Verdict:
    def sample(values: Sequence[float | None]) -> Sample:
        return Sample([budget if v is None else v for v in values], [v is not None for v in values], 0)

    return judge("base", sample(base), {"bn": sample(arm)}, STEPS)[0]


def test_helps_and_hurts_follow_the_direction_of_the_metric() -> None:
    gains = [0.02 + 0.001 * i for i in range(8)]
    up, down = [b + g for b, g in zip(BASE, gains, strict=True)], [b - g for b, g in zip(BASE, gains, strict=True)]
    assert [v.verdict for v in (*scores(up), *scores(down))] == ["helps", "hurts"]
    fewer = steps([100.0 + i for i in range(8)], [300.0 + 3 * i for i in range(8)])
    assert fewer.verdict == "helps"
    assert fewer.difference == pytest.approx(-207)
    assert steps([300.0 + 3 * i for i in range(8)], [100.0 + i for i in range(8)]).verdict == "hurts"


def test_the_numbers_of_a_verdict() -> None:
    verdict = scores([b + 0.02 for b in BASE])[0]
    assert (verdict.p, verdict.p_holm, verdict.pairs, verdict.test) == (2**-7, 2**-7, 8, "sign-flip")
    assert verdict.base_mean == pytest.approx(0.91625)
    assert verdict.arm_mean - verdict.base_mean == pytest.approx(verdict.difference) == pytest.approx(0.02)
    assert verdict.ci95[0] <= verdict.ci90[0] <= 0.02 + 1e-9 and 0.02 - 1e-9 <= verdict.ci90[1] <= verdict.ci95[1]
    assert verdict.ratio is None and verdict.reached is None


def test_holm_is_over_the_arms() -> None:
    up = [b + 0.02 for b in BASE]
    found = scores(up, up, up)
    assert [v.p_holm for v in found] == pytest.approx([3 * 2**-7] * 3)
    assert [v.verdict for v in found] == ["helps"] * 3
    # A fourth arm puts the smallest possible p above the level: 4/128 > 0.025.
    assert [v.verdict for v in scores(up, up, up, up)] == ["not enough evidence"] * 4


def test_no_difference_needs_the_90_percent_interval_inside_the_margin() -> None:
    nearly = [b + d for b, d in zip(BASE, [0.001, -0.002, 0.001, 0, 0.002, -0.001, 0, -0.001], strict=True)]
    assert scores(nearly)[0].verdict == "no difference"
    outside = [b + d for b, d in zip(BASE, [0.02, -0.03, 0.01, 0, 0.03, -0.02, 0, -0.01], strict=True)]
    assert scores(outside)[0].verdict == "not enough evidence"


def test_a_real_difference_inside_the_margin_is_no_difference_and_says_that_it_is_real() -> None:
    verdict = scores([b + 0.001 + 0.0001 * i for i, b in enumerate(BASE)])[0]
    assert verdict.p_holm <= verdict.level
    assert verdict.verdict == "no difference"
    assert "The difference is real, but smaller than what was declared to matter." in verdict.sentence


def test_not_enough_evidence_says_how_many_more_seeds() -> None:
    undecided = [b + d for b, d in zip(BASE, [0.03, -0.01, 0.03, 0.02, -0.02, 0.03, 0.01, 0.02], strict=True)]
    verdict = scores(undecided)[0]
    assert verdict.more_seeds is not None and verdict.more_seeds > 0
    assert f"not enough evidence (about {verdict.more_seeds} more seeds would decide" in verdict.sentence
    # More arms share the level, so each needs more seeds.
    assert (scores(undecided, undecided, undecided)[0].more_seeds or 0) > verdict.more_seeds


def test_after_the_last_planned_look_no_seeds_are_offered() -> None:
    last = Rules(**{**SCORES.__dict__, "next_level": None})
    verdict = scores([b + 0.01 * (-1) ** i for i, b in enumerate(BASE)], rules=last)[0]
    assert verdict.more_seeds is None
    assert "no further look was planned" in verdict.sentence


def test_few_pairs_leave_intervals_unbounded_and_the_json_says_null() -> None:
    verdict = scores([0.95, 0.93, 0.96, 0.92], base=BASE[:4])[0]
    assert verdict.ci95 == (-math.inf, math.inf)
    stored = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert stored["ci95"] == [None, None]
    assert stored["verdict"] == "not enough evidence"
    assert "95 % interval unbounded, with so few pairs" in verdict.sentence


def test_the_ratio_is_base_over_arm_on_the_log_scale() -> None:
    verdict = steps([100.0 + i for i in range(8)], [2 * (100.0 + i) for i in range(8)])
    assert verdict.ratio == pytest.approx(2.0)
    assert verdict.ratio_ci95 == pytest.approx((2.0, 2.0))
    assert "base needs 2 times as many (2 to 2)" in verdict.sentence
    slower = steps([2 * (100.0 + i) for i in range(8)], [100.0 + i for i in range(8)])
    assert slower.ratio == pytest.approx(0.5)
    assert "bn needs 2 times as many (2 to 2)" in slower.sentence


def test_missed_targets_count_as_the_budget_up_to_half_of_all_runs() -> None:
    verdict = steps([100, 110, 120, 130, 140, 150, 160, 170], [None] * 8)
    assert (verdict.test, verdict.verdict, verdict.p) == ("sign-flip", "helps", 2**-7)
    assert verdict.base_mean == 600
    assert verdict.reached == {"base": 0, "arm": 8}
    assert "8 of 8 base runs missed the target and count as the whole budget" in verdict.sentence


def test_beyond_half_the_fractions_are_compared() -> None:
    verdict = steps([100, 110, 120, 130, 140, 150, 160, None], [None] * 8)
    assert (verdict.test, verdict.unit, verdict.verdict) == ("mcnemar", "fraction of runs", "helps")
    assert verdict.p == 2 * 2**-7
    assert (verdict.base_mean, verdict.arm_mean, verdict.difference) == (0.0, 0.875, 0.875)
    assert verdict.ratio is None
    assert "reached in 7 of 8 runs, and in 0 of 8 with base" in verdict.sentence
    assert steps([None] * 8, [100, 110, 120, 130, 140, 150, 160, None]).verdict == "hurts"


def test_a_target_nobody_reaches_is_no_evidence_and_no_equality() -> None:
    verdict = steps([None] * 8, [None] * 8)
    assert (verdict.test, verdict.p, verdict.verdict, verdict.more_seeds) == (
        "mcnemar",
        1.0,
        "not enough evidence",
        None,
    )


def test_the_choice_of_test_does_not_raise_false_alarms() -> None:
    """All sign patterns of fixed pairs are equally likely under "no effect": the share of claims is the exact level."""
    random = np.random.default_rng(0)
    for _ in range(6):
        pairs: list[tuple[Any, Any]] = [
            tuple(None if x > 600 else float(x) for x in random.lognormal(math.log(600), 0.4, 2).round())
            for _ in range(8)
        ]
        claims = 0
        for swaps in itertools.product((False, True), repeat=7):
            # The first pair stays: swapping all pairs mirrors the result.
            both = [(b, a) if swap else (a, b) for (a, b), swap in zip(pairs, (False, *swaps), strict=True)]
            claims += steps([a for a, _ in both], [b for _, b in both]).verdict in ("helps", "hurts")
        assert claims / 2**7 <= STEPS.level


def test_diverged_runs_are_counted_in_print() -> None:
    verdict = scores([0.0, 0.0, *BASE[2:]], diverged=2)[0]
    assert verdict.diverged == {"base": 0, "arm": 2}
    assert "2 of 8 arm0 runs diverged and score the worst." in verdict.sentence


def test_when_everything_diverged_equal_scores_are_no_equality() -> None:
    zeros = [0.0] * 8
    verdict = judge("base", Sample(zeros, None, 8), {"arm": Sample(zeros, None, 8)}, SCORES)[0]
    assert verdict.verdict == "not enough evidence"


def test_every_sentence_is_conditional() -> None:
    for verdict in (*scores([b + 0.02 for b in BASE]), steps([None] * 8, [None] * 8)):
        assert str(verdict).endswith("This holds for digits, 600 steps.")
