"""From a study's summary to what the page shows: sentences, table rows and figures. No markup here."""

from __future__ import annotations

from typing import Any

from pliant.core.errors import InputError

from . import figures, multiples, palette, words
from .answer import effect, headline

SCHEMA = 1
"""The version of the summary this report understands."""

VERDICTS = {
    "helps": ("▲", "help"),
    "hurts": ("▼", "hurt"),
    "no difference": ("=", "same"),
    "not enough evidence": ("?", "open"),
}
"""Verdict -> its sign and its CSS class."""

SHOWN = 6
"""So many arms' curves are switched on at first."""


def check(summary: dict[str, Any]) -> None:
    """Refuse what is not a study's summary of the known version."""
    missing = [key for key in ("plan", "arms", "verdicts") if key not in summary]
    if missing:
        raise InputError(
            f"this is not a study's summary: it lacks {words.several(missing)}; "
            "give write() what Study.summary() returns, or run `pliant report run/study.db`"
        )
    if summary.get("schema") != SCHEMA:
        raise InputError(
            f"the summary has schema {summary.get('schema')!r}, this version of pliant reads {SCHEMA}: "
            "make it again from the study's store with `pliant report`"
        )


def view(summary: dict[str, Any]) -> dict[str, Any]:
    """Everything the template needs. `figures` maps an id to a plotly figure."""
    check(summary)
    plan, arms = summary["plan"], summary["arms"]
    base, unit = plan["base"], plan.get("unit") or ""
    order = [base, *(arm for arm in plan["arms"] if arm != base)]
    styles = palette.styles(order, base)
    target = summary.get("target") or {}
    drawn: dict[str, figures.Figure] = {}

    marked = [v["arm"] for v in summary["verdicts"] if v["verdict"] in ("helps", "hurts")]
    shown = set(list(dict.fromkeys([base, *marked, *order]))[:SHOWN])
    goal = words.finite(target.get("value"))
    for key, title in (("valid_score", "validation score"), ("train_loss", "training loss")):
        found = figures.curves(arms, styles, key, title, shown, goal if key == "valid_score" else None)
        if found:
            drawn[f"curve-{key}"] = found

    return {
        "title": summary.get("title") or "Comparison",
        "headline": headline(summary),
        "complete": bool(summary.get("complete")),
        "created": summary.get("created") or "",
        "plan": plan,
        "base": base,
        "unit": unit,
        "metric": {
            "steps_to_target": "steps to target",
            "test_score": "test score",
            "valid_score": "validation score",
        }.get(plan.get("metric"), str(plan.get("metric"))),
        "level": summary["verdicts"][0].get("level") if summary["verdicts"] else None,
        "target": target,
        "verdicts": [_verdict(v) for v in summary["verdicts"]],
        "forests": _forests(summary, drawn),
        "legend": [
            {"index": i, "arm": arm, "style": style, "on": arm in shown}
            for i, (arm, style) in enumerate(styles.items())
            if ((arms.get(arm) or {}).get("curves") or {}).get("step")
        ],
        "pairs": _pairs(summary, order, styles, drawn),
        "costs": [_cost(arm, arms.get(arm) or {}) for arm in order],
        "measured": any((arms.get(a) or {}).get("timing") for a in order),
        "changes": [(arm, arms[arm].get("changes") or "") for arm in order if arm != base and arm in arms],
        "name_width": max(len(arm) for arm in order),
        "tuning": _tuning(summary, order, styles, drawn),
        "descriptive": _descriptive(summary),
        "environment": {k: v for k, v in (summary.get("environment") or {}).items() if v is not None},
        "recipe": summary.get("recipe") or "",
        "notes": summary.get("notes") or [],
        "figures": drawn,
    }


def _verdict(verdict: dict[str, Any]) -> dict[str, Any]:
    sign, kind = VERDICTS.get(verdict["verdict"], ("?", "open"))
    return {
        **verdict,
        "sign": sign,
        "kind": kind,
        "effect": words.signed(verdict.get("difference"), verdict["unit"]),
        "interval": words.interval(verdict.get("ci95"), verdict["unit"]),
        "p": words.probability(verdict.get("p")),
        "p_holm": words.probability(verdict.get("p_holm")),
    }


def _forests(summary: dict[str, Any], drawn: dict[str, figures.Figure]) -> list[dict[str, str]]:
    """One forest plot per unit: fractions and steps have no common axis."""
    plan = summary["plan"]
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for verdict in summary["verdicts"]:
        groups.setdefault((verdict["unit"], bool(verdict["higher_is_better"])), []).append(verdict)
    made = []
    for index, ((unit, higher), verdicts) in enumerate(groups.items()):
        margin = words.finite(plan.get("margin")) if unit == plan["unit"] else None
        name = f"forest-{index}"
        drawn[name] = figures.forest(verdicts, unit, "right" if higher else "left", margin)
        spoken = "; ".join(
            f"{v['arm']}: {effect(v)}, 95 % interval {words.interval(v.get('ci95'), unit)}" for v in verdicts
        )
        made.append({"id": name, "spoken": f"Difference to {plan['base']}. {spoken}."})
    return made


def _pairs(
    summary: dict[str, Any], order: list[str], styles: dict[str, palette.Style], drawn: dict[str, figures.Figure]
) -> dict[str, Any]:
    """The primary metric seed by seed: a figure per arm and one table."""
    plan, arms = summary["plan"], summary["arms"]
    base, unit = plan["base"], plan.get("unit") or ""
    censored = plan.get("metric") == "steps_to_target"
    limit = words.finite(plan.get("steps")) if censored else None
    # An unfinished arm's values are in order, but nothing says of which seeds they are.
    found = {arm: (arms.get(arm) or {}).get("values") or [] for arm in order}
    values = {arm: column if len(column) == len(plan["seeds"]) else [] for arm, column in found.items()}
    span = multiples.span_of_pairs(list(values.values()), limit)
    blocks = []
    for index, arm in enumerate(order):
        if arm == base or not values[arm] or not values[base]:
            continue
        name = f"pair-{index}"
        both = (values[base], values[arm])
        higher = bool(plan.get("higher_is_better"))
        drawn[name] = multiples.pairs(base, arm, both, plan["seeds"], styles[arm], unit, higher, limit, span)
        blocks.append(
            {"id": name, "arm": arm, "spoken": f"{base} and {arm}, seed by seed; the numbers are in the table below."}
        )
    absent = "not reached" if censored else words.NONE
    rows = [
        (
            seed,
            [
                words.number(values[a][i], unit)
                if i < len(values[a]) and values[a][i] is not None
                else (absent if i < len(values[a]) else words.NONE)
                for a in order
            ],
        )
        for i, seed in enumerate(plan["seeds"])
    ]
    return {"censored": censored, "blocks": blocks, "order": order, "rows": rows if any(values.values()) else []}


def _cost(arm: str, facts: dict[str, Any]) -> dict[str, Any]:
    cost, timing = facts.get("cost") or {}, facts.get("timing") or {}
    seconds = [words.finite(cost.get(key)) for key in ("tuning_seconds", "run_seconds")]
    total = sum(s for s in seconds if s is not None) if any(s is not None for s in seconds) else None
    step = words.finite(timing.get("step_ms"))
    memory = words.finite(timing.get("peak_mb"))
    parameters = facts.get("parameters")
    return {
        "arm": arm,
        "tuning": words.number(cost.get("tuning_steps"), "steps"),
        "run": words.number(cost.get("run_steps"), "steps"),
        "seconds": words.duration(total),
        "step": f"{step:.2f} ms" if step is not None else words.NONE,
        "ratio": words.ratio(timing.get("step_ms_ratio")),
        "memory": f"{memory:,.0f} MB" if memory is not None else words.NONE,
        "to_target": words.duration(timing.get("seconds_to_target")),
        "parameters": f"{parameters:,}" if isinstance(parameters, int) else words.NONE,
    }


def _tuning(
    summary: dict[str, Any], order: list[str], styles: dict[str, palette.Style], drawn: dict[str, figures.Figure]
) -> list[dict[str, Any]]:
    arms = summary["arms"]
    span = multiples.span_of_grids([arms.get(arm) or {} for arm in order])
    made = []
    for index, arm in enumerate(order):
        facts = arms.get(arm) or {}
        runs = facts.get("tuning") or []
        chosen = words.finite(facts.get("rate"))
        found = multiples.grid(runs, chosen, styles[arm], span)
        if found is None:
            continue
        name = f"grid-{index}"
        drawn[name] = found
        diverged = sum(run.get("status") == "diverged" for run in runs)
        parts = [f"rate {words.rate(chosen)}" if chosen is not None else "not chosen yet"]
        parts += ["on the grid's edge"] if facts.get("rate_on_edge") else []
        parts += [f"{diverged} of {len(runs)} diverged"] if diverged else []
        made.append({"id": name, "arm": arm, "told": ", ".join(parts), "edge": bool(facts.get("rate_on_edge"))})
    return made


def _descriptive(summary: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "what": str(row.get("what")),
            "arm": str(row.get("arm")),
            "mean": words.number(row.get("mean")),
            "sd": words.number(row.get("sd")),
            "difference": words.signed(row.get("difference")),
            "interval": words.interval(row.get("ci95")),
        }
        for row in summary.get("descriptive") or []
    ]
