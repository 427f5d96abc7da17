"""Verdicts in plain words, with numbers, uncertainty and conditions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .signflip import Interval
    from .verdict import Rules, Verdict


def sentence(verdict: Verdict, rules: Rules, *, significant: bool, arms: int) -> str:
    """The verdict, what was measured, how sure it is, and under which conditions."""
    parts = [
        f"{verdict.arm}: {verdict.verdict}{_more(verdict, rules)}.",
        _measured(verdict),
        _certainty(verdict, arms),
        *_why(verdict, rules, significant),
        *_missed(verdict),
        *_diverged(verdict),
        f"This holds for {rules.conditions}.",
    ]
    return " ".join(parts)


def number(value: float, unit: str = "") -> str:
    """Four significant digits; steps to a tenth.

    >>> number(211.96, "steps"), number(0.95333, "accuracy"), number(-0.00312, "accuracy")
    ('212', '0.9533', '-0.00312')
    """
    if unit == "steps":
        return f"{round(value, 1):g}"
    return f"{value:.4g}" if abs(value) >= 0.01 else f"{value:.3g}"


def interval(ends: Interval, unit: str = "") -> str:
    """ "120 to 230", or that few pairs leave it unbounded."""
    if not all(math.isfinite(end) for end in ends):
        return "unbounded, with so few pairs"
    return f"{number(ends[0], unit)} to {number(ends[1], unit)}"


def probability(p: float) -> str:
    """Two significant digits.

    >>> probability(0.0078125)
    '0.0078'
    """
    return f"{p:.2g}"


def _more(verdict: Verdict, rules: Rules) -> str:
    if verdict.verdict != "not enough evidence":
        return ""
    if verdict.more_seeds is not None:
        return f" (about {verdict.more_seeds} more seeds would decide, if the effect is as observed)"
    if rules.next_level is None:
        return " (no further look was planned: a new study with more seeds could decide)"
    return " (no practical number of seeds would decide)"


def _measured(verdict: Verdict) -> str:
    if verdict.test == "mcnemar":
        assert verdict.reached is not None
        return (
            f"The target was reached in {verdict.reached['arm']} of {verdict.pairs} runs, and in "
            f"{verdict.reached['base']} of {verdict.pairs} with {verdict.base}: {number(verdict.difference)} "
            f"(95 % interval {interval(verdict.ci95)}); more than half of all runs missed it, "
            "so fractions are compared."
        )
    what = "steps to the target" if verdict.unit == "steps" else verdict.unit
    text = (
        f"{number(verdict.arm_mean, verdict.unit)} {what} against {number(verdict.base_mean, verdict.unit)} with "
        f"{verdict.base}, a mean paired difference of {number(verdict.difference, verdict.unit)} "
        f"(95 % interval {interval(verdict.ci95, verdict.unit)})"
    )
    if verdict.ratio is None or verdict.ratio_ci95 is None:
        return text + "."
    low, high = verdict.ratio_ci95
    slower, times, ends = verdict.base, verdict.ratio, (low, high)
    if times < 1.0:
        slower, times, ends = verdict.arm, 1 / times, (1 / high, 1 / low if low else math.inf)
    return f"{text}; {slower} needs {number(times)} times as many ({interval(ends)})."


def _certainty(verdict: Verdict, arms: int) -> str:
    name = "exact McNemar" if verdict.test == "mcnemar" else "sign-flip"
    holm = f", {probability(verdict.p_holm)} after Holm's rule over {arms} arms" if arms > 1 else ""
    return f"{verdict.pairs} pairs, {name} p = {probability(verdict.p)}{holm}, tested at {verdict.level:g}."


def _why(verdict: Verdict, rules: Rules, significant: bool) -> list[str]:
    if verdict.verdict != "no difference":
        return []
    margin = f"the margin of {number(rules.margin, verdict.unit)} {verdict.unit}"
    text = f"The 90 % interval {interval(verdict.ci90, verdict.unit)} lies inside {margin}."
    return [text, "The difference is real, but smaller than what was declared to matter."] if significant else [text]


def _missed(verdict: Verdict) -> list[str]:
    if verdict.test == "mcnemar" or verdict.reached is None:
        return []
    missed = {
        name: verdict.pairs - verdict.reached[key] for name, key in ((verdict.base, "base"), (verdict.arm, "arm"))
    }
    if not any(missed.values()):
        return []
    counts = " and ".join(f"{count} of {verdict.pairs} {name} runs" for name, count in missed.items() if count)
    return [f"{counts} missed the target and count as the whole budget."]


def _diverged(verdict: Verdict) -> list[str]:
    counts = {verdict.base: verdict.diverged["base"], verdict.arm: verdict.diverged["arm"]}
    return [
        f"{count} of {verdict.pairs} {name} runs diverged and score the worst."
        for name, count in counts.items()
        if count
    ]
