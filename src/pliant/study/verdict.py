"""From paired numbers to one of four verdicts and a sentence in plain words.

The rule, in this order:

* **no difference** when the 90 % interval lies inside the margin (two one-sided tests at 5 %). It wins over a
  significant p: the margin is the smallest difference the user said matters, so a smaller one is none, however
  certain; the sentence then says that it is real.
* **helps** or **hurts** when p after Holm's rule over the arms is at most the level of this look.
* **not enough evidence** otherwise, with the number of seeds that would probably decide.

Looks share alpha for helps and hurts; the 90 % interval is the same at every look.

Steps to target are compared as differences of steps; a run that misses the target counts as the whole budget, which
keeps the sign-flip test exact (all pairs are censored alike) and makes the difference an understatement. The ratio
base/arm, with the interval of the same test on log(base/arm), is reported beside it. When more than half of the two
arms' runs together miss the target, the fractions that reached it are compared instead (exact McNemar). Both arms are
counted together, because a rule that looks at each arm alone depends on which of a pair's runs is which; the exact
tests then no longer hold, and a base that misses while the other arm always reaches would be judged by the weaker test.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from . import wording
from .power import more_pairs
from .signflip import Interval, SignFlip
from .statistics import holm, mcnemar, paired_proportion_interval

HELPS, HURTS, NO_DIFFERENCE, UNDECIDED = "helps", "hurts", "no difference", "not enough evidence"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One arm's compared runs in the order of the seeds.

    values: the metric, the budget's steps where the target was missed; reached: whether each run reached the target
    (None: the metric has no target); diverged: how many runs diverged.
    """

    values: Sequence[float]
    reached: Sequence[bool] | None
    diverged: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What the plan says about a verdict.

    level: of this look, for p after Holm; next_level: of the next planned look, None when this is the last;
    conditions: what the verdict is conditional on, in words.
    """

    unit: str
    higher_is_better: bool
    margin: float
    level: float
    next_level: float | None
    conditions: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer for one arm. difference is arm - base in `unit`; ratio is base / arm, for steps.

    ci95 and ci90 belong to this arm alone (not widened for the number of arms or looks); p_holm is adjusted over arms
    and compared with `level`. more_seeds: to add for an 80 % chance of a decision, if the effect is as observed.
    """

    arm: str
    base: str
    verdict: str
    sentence: str
    base_mean: float
    arm_mean: float
    difference: float
    ci95: Interval
    ci90: Interval
    p: float
    p_holm: float
    level: float
    pairs: int
    more_seeds: int | None
    ratio: float | None
    ratio_ci95: Interval | None
    test: str
    unit: str
    higher_is_better: bool
    reached: dict[str, int] | None
    diverged: dict[str, int]

    def __str__(self) -> str:
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """JSON types; an unbounded end of an interval is None."""
        values = dataclasses.asdict(self)
        for name in ("ci95", "ci90", "ratio_ci95"):
            if values[name] is not None:
                values[name] = [end if math.isfinite(end) else None for end in values[name]]
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Measured:
    """One arm against the base, before Holm's rule."""

    test: str
    unit: str
    higher_is_better: bool
    means: tuple[float, float]
    differences: list[float]
    p: float
    ci95: Interval
    ci90: Interval
    ratio: float | None = None
    ratio_ci95: Interval | None = None


def judge(base_name: str, base: Sample, arms: Mapping[str, Sample], rules: Rules) -> list[Verdict]:
    """One verdict per arm against the base; p is Holm-adjusted over the arms."""
    measured = {arm: _measure(base, sample, rules) for arm, sample in arms.items()}
    adjusted = holm([result.p for result in measured.values()])
    return [
        _decide(base_name, base, arm, arms[arm], result, p_holm, len(arms), rules)
        for (arm, result), p_holm in zip(measured.items(), adjusted, strict=True)
    ]


def _measure(base: Sample, arm: Sample, rules: Rules) -> _Measured:
    if base.reached is not None and arm.reached is not None:
        missed = 2 * len(base.values) - sum(base.reached) - sum(arm.reached)
        if missed > len(base.values):
            return _measure_fractions(base.reached, arm.reached)
    differences = [a - b for a, b in zip(arm.values, base.values, strict=True)]
    test = SignFlip(differences)
    result = _Measured(
        test="sign-flip",
        unit=rules.unit,
        higher_is_better=rules.higher_is_better,
        means=(statistics.fmean(base.values), statistics.fmean(arm.values)),
        differences=differences,
        p=test.p(),
        ci95=test.interval(0.95),
        ci90=test.interval(0.90),
    )
    if base.reached is None:
        return result
    logs = SignFlip([math.log(b / a) for a, b in zip(arm.values, base.values, strict=True)])
    low, high = logs.interval(0.95)
    return dataclasses.replace(
        result, ratio=math.exp(logs.mean), ratio_ci95=(math.exp(low) if math.isfinite(low) else 0.0, math.exp(high))
    )


def _measure_fractions(base: Sequence[bool], arm: Sequence[bool]) -> _Measured:
    pairs = len(base)
    only_base = sum(b and not a for b, a in zip(base, arm, strict=True))
    only_arm = sum(a and not b for b, a in zip(base, arm, strict=True))
    return _Measured(
        test="mcnemar",
        unit="fraction of runs",
        higher_is_better=True,
        means=(sum(base) / pairs, sum(arm) / pairs),
        differences=[float(a) - float(b) for b, a in zip(base, arm, strict=True)],
        p=mcnemar(only_base, only_arm),
        ci95=paired_proportion_interval(only_base, only_arm, pairs, 0.95),
        ci90=paired_proportion_interval(only_base, only_arm, pairs, 0.90),
    )


def _decide(
    base_name: str, base: Sample, name: str, arm: Sample, result: _Measured, p_holm: float, arms: int, rules: Rules
) -> Verdict:
    pairs = len(base.values)
    mean = statistics.fmean(result.differences)
    # The margin is in the plan's unit; no difference of fractions was declared too small to matter. And runs that all
    # diverged say nothing about the methods, equal as their scores are.
    blind = base.diverged == pairs and arm.diverged == pairs
    inside = result.test == "sign-flip" and not blind and all(abs(end) < rules.margin for end in result.ci90)
    significant = p_holm <= rules.level
    if inside:
        verdict = NO_DIFFERENCE
    elif significant:
        verdict = HELPS if (mean > 0) == result.higher_is_better else HURTS
    else:
        verdict = UNDECIDED
    more = None
    if verdict == UNDECIDED and rules.next_level is not None and not blind:
        margin = rules.margin if result.test == "sign-flip" else 0.0
        more = more_pairs(
            mean, statistics.stdev(result.differences), pairs, margin=margin, alpha=rules.next_level / arms
        )
    found = Verdict(
        arm=name,
        base=base_name,
        verdict=verdict,
        sentence="",
        base_mean=result.means[0],
        arm_mean=result.means[1],
        difference=mean,
        ci95=result.ci95,
        ci90=result.ci90,
        p=result.p,
        p_holm=p_holm,
        level=rules.level,
        pairs=pairs,
        more_seeds=more,
        ratio=result.ratio,
        ratio_ci95=result.ratio_ci95,
        test=result.test,
        unit=result.unit,
        higher_is_better=result.higher_is_better,
        reached=_reached(base, arm),
        diverged={"base": base.diverged, "arm": arm.diverged},
    )
    return dataclasses.replace(found, sentence=wording.sentence(found, rules, significant=significant, arms=arms))


def _reached(base: Sample, arm: Sample) -> dict[str, int] | None:
    if base.reached is None or arm.reached is None:
        return None
    return {"base": sum(base.reached), "arm": sum(arm.reached)}
