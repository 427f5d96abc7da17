"""Figures that come once per arm: paired values, and the tuning grid."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from . import palette, words
from .figures import Figure, figure, padded, text
from .palette import Style


def pairs(
    base: str,
    arm: str,
    values: tuple[Sequence[Any], Sequence[Any]],
    seeds: Sequence[int],
    style: Style,
    unit: str,
    higher: bool,
    limit: float | None,
    span: list[float] | None,
) -> Figure:
    """One line per seed from the base's value to the arm's.

    limit: where a run that never reached the target is drawn (the budget's end); None leaves missing values out.
    span: the y range, the same for all arms.
    """
    lines: dict[str, tuple[list[Any], list[Any]]] = {"better": ([], []), "worse": ([], []), "same": ([], [])}
    points: list[tuple[int, float, float, bool, str]] = []
    taken: Counter[tuple[int, float]] = Counter()
    for seed, left, right in zip(seeds, *values, strict=False):
        ends = [words.finite(left), words.finite(right)]
        drawn = [end if end is not None else limit for end in ends]
        told = [words.number(end, unit) if end is not None else "not reached" for end in ends]
        hover = f"seed {seed}<br>{text(words.shorten(base))}: {told[0]}<br>{text(words.shorten(arm))}: {told[1]}"
        places = [0.0, 1.0]
        for side, end in enumerate(drawn):
            if end is None:
                continue
            # Equal values stand side by side, outwards, instead of hiding each other.
            places[side] += (2 * side - 1) * 0.07 * taken[side, end]
            taken[side, end] += 1
            points.append((side, places[side], end, ends[side] is not None, hover))
        if drawn[0] is None or drawn[1] is None:
            continue
        gain = (drawn[1] - drawn[0]) * (1 if higher else -1)
        xs, ys = lines["better" if gain > 0 else "worse" if gain < 0 else "same"]
        xs += [*places, None]
        ys += [*drawn, None]
    looks = {"better": (palette.BETTER, "solid"), "worse": (palette.WORSE, "dash"), "same": (palette.NEUTRAL, "dot")}
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "x": xs,
            "y": ys,
            "mode": "lines",
            "line": {"color": looks[kind][0], "dash": looks[kind][1], "width": 1.5},
            "opacity": 0.75,
            "hoverinfo": "skip",
        }
        for kind, (xs, ys) in lines.items()
        if xs
    ]
    for side, color in ((0, palette.NEUTRAL), (1, style.color)):
        for reached, symbol in ((True, "circle"), (False, "triangle-up-open")):
            chosen = [p for p in points if p[0] == side and p[3] is reached]
            if chosen:
                traces.append(
                    {
                        "type": "scatter",
                        "x": [p[1] for p in chosen],
                        "y": [p[2] for p in chosen],
                        "mode": "markers",
                        "marker": {
                            "color": color,
                            "size": 8 if reached else 10,
                            "symbol": symbol,
                            "line": {"width": 1.5},
                        },
                        "hoverinfo": "text",
                        "hovertext": [p[4] for p in chosen],
                    }
                )
    shapes = []
    if limit is not None:
        line = {"color": palette.FAINT, "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit, "line": line})
    reach = 0.07 * max(taken.values(), default=1)
    yaxis: dict[str, Any] = {"nticks": 5}
    if span:
        yaxis["range"] = span
    return figure(
        traces,
        240,
        xaxis={
            "range": [-0.15 - reach, 1.15 + reach],
            "tickvals": [0, 1],
            "ticktext": [text(words.shorten(name, 14)) for name in (base, arm)],
            "gridcolor": "rgba(0,0,0,0)",
            "tickfont": {"color": palette.INK},
        },
        yaxis=yaxis,
        shapes=shapes,
        dragmode=False,
    )


def grid(runs: Sequence[dict[str, Any]], chosen: float | None, style: Style, span: list[float] | None) -> Figure | None:
    """Best validation score against the learning rate: a dot per tuning run, a line through the means.

    Diverged runs are crosses at the bottom. None when there were no tuning runs.
    """
    rates = sorted({r for run in runs if (r := words.finite(run.get("rate"))) is not None and r > 0})
    if not rates:
        return None
    floor = span[0] if span else 0.0
    dots: list[tuple[float, float, str]] = []
    crosses: list[tuple[float, float, str]] = []
    by_rate: dict[float, list[float]] = {}
    for run in runs:
        rate, score = words.finite(run.get("rate")), words.finite(run.get("best_valid"))
        if rate is None or rate <= 0:
            continue
        where = f"rate {words.rate(rate)}, seed {run.get('seed')}"
        if run.get("status") == "diverged" or score is None:
            crosses.append((rate, floor, f"{where}<br>diverged"))
            continue
        steps = run.get("steps_to_target")
        told = f"<br>target after {words.number(steps, 'steps')} steps" if steps is not None else ""
        dots.append((rate, score, f"{where}<br>best score {words.number(score)}{told}"))
        by_rate.setdefault(rate, []).append(score)
    means = [(rate, sum(scores) / len(scores)) for rate, scores in sorted(by_rate.items())]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "x": [m[0] for m in means],
            "y": [m[1] for m in means],
            "mode": "lines",
            "line": {"color": style.color, "width": 1.5},
            "hoverinfo": "skip",
        }
    ]
    for marks, symbol, color in ((dots, "circle", style.color), (crosses, "x-thin", palette.WORSE)):
        if marks:
            traces.append(
                {
                    "type": "scatter",
                    "x": [m[0] for m in marks],
                    "y": [m[1] for m in marks],
                    "mode": "markers",
                    "cliponaxis": False,
                    "marker": {"color": color, "size": 7, "symbol": symbol, "line": {"width": 1.5, "color": color}},
                    "hoverinfo": "text",
                    "hovertext": [m[2] for m in marks],
                }
            )
    shapes = []
    if chosen is not None:
        line = {"color": palette.INK, "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "x0": chosen, "x1": chosen, "yref": "paper", "y0": 0, "y1": 1, "line": line})
    ticks = rates if len(rates) <= 4 else rates[:: math.ceil(len(rates) / 4)]
    room = 0.12 * (math.log10(rates[-1] / rates[0]) or 1.0)
    yaxis: dict[str, Any] = {"nticks": 4}
    if span:
        yaxis["range"] = span
    return figure(
        traces,
        170,
        xaxis={
            "type": "log",
            "range": [math.log10(rates[0]) - room, math.log10(rates[-1]) + room],
            "tickvals": ticks,
            "ticktext": [words.rate(r) for r in ticks],
            "minor": {"ticks": ""},
        },
        yaxis=yaxis,
        shapes=shapes,
        dragmode=False,
    )


def span_of_pairs(values: Sequence[Sequence[Any]], limit: float | None) -> list[float] | None:
    """The y range that all paired figures share."""
    return padded([*(words.finite(v) for column in values for v in column), limit], 0.08)


def span_of_grids(arms: Sequence[dict[str, Any]]) -> list[float] | None:
    """The y range that all tuning figures share; diverged runs do not stretch it."""
    runs = [run for arm in arms for run in arm.get("tuning") or [] if run.get("status") != "diverged"]
    return padded([words.finite(run.get("best_valid")) for run in runs], 0.1)
