"""The study's answer in one sentence."""

from __future__ import annotations

from typing import Any

from . import words

FEW = 6
"""Up to so many arms are all named."""


def headline(summary: dict[str, Any]) -> str:
    """Who helps, who hurts, who makes no difference, and about whom nothing can be said yet."""
    verdicts, base = summary["verdicts"], summary["plan"]["base"]
    if not verdicts:
        return "No verdict yet: the compared runs have not finished."
    if len(verdicts) == 1:
        return _single(verdicts[0])
    clauses = []
    for verdict, verb in (("helps", "help"), ("hurts", "hurt")):
        found = [v for v in verdicts if v["verdict"] == verdict]
        if found:
            found.sort(key=lambda v: -abs(words.finite(v.get("difference")) or 0.0))
            told = [f"{v['arm']} ({effect(v)})" for v in found]
            clauses.append(f"{_some(told)} {verb}{'s' if len(found) == 1 else ''}")
    few = len(verdicts) <= FEW
    same = [v["arm"] for v in verdicts if v["verdict"] == "no difference"]
    if same:
        clauses.append(f"{_all(same, few)} make{'s' if len(same) == 1 else ''} no difference")
    unsure = [v["arm"] for v in verdicts if v["verdict"] not in ("helps", "hurts", "no difference")]
    if unsure:
        clauses.append(f"there is not enough evidence about {_all(unsure, few)}")
    return f"Compared with {base}, " + "; ".join(clauses) + "."


def _some(items: list[str], most: int = 3) -> str:
    return words.several(items if len(items) <= most + 1 else [*items[:most], f"{len(items) - most} others"])


def _all(arms: list[str], few: bool) -> str:
    return words.several(arms) if few or len(arms) == 1 else f"{len(arms)} arms"


def _single(verdict: dict[str, Any]) -> str:
    arm, base = verdict["arm"], verdict["base"]
    measured = (
        f"{effect(verdict)} against {base} (95 % interval {words.interval(verdict.get('ci95'), verdict['unit'])})"
    )
    if verdict["verdict"] == "not enough evidence":
        return f"There is not enough evidence about {arm}: {measured}."
    verb = "makes no difference" if verdict["verdict"] == "no difference" else verdict["verdict"]
    return f"{arm} {verb}: {measured}."


def effect(verdict: dict[str, Any]) -> str:
    """The mean paired difference with its sign and unit."""
    return f"{words.signed(verdict.get('difference'), verdict['unit'])} {verdict['unit']}"
