"""The report's figures, as plain plotly dictionaries.

Hover texts are written out here, escaped, and never go through plotly's templates, so that an arm may have any name.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from . import palette, words
from .palette import Style

Figure = dict[str, Any]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def text(label: object) -> str:
    """A label as plotly must get it: it reads tags in every text."""
    return html.escape(str(label), quote=False)


def figure(data: list[dict[str, Any]], height: int, **layout: Any) -> Figure:
    """Data and layout with what all figures share."""
    axis = {
        "automargin": True,
        "gridcolor": palette.GRID,
        "linecolor": palette.GRID,
        "zeroline": False,
        "ticks": "",
        "title": {"standoff": 8},
    }
    shared: dict[str, Any] = {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "font": {"family": FONT, "size": 12, "color": palette.FAINT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
    }
    for name in ("xaxis", "yaxis"):
        shared[name] = {**axis, **layout.pop(name, {})}
        title = shared[name]["title"]
        if isinstance(title, str):
            shared[name]["title"] = {"text": title, "standoff": 8}
    return {"data": data, "layout": {**shared, **layout}}


def padded(values: Iterable[float | None], share: float = 0.06) -> list[float] | None:
    """The range of `values` with some room on both sides."""
    present = [v for v in values if v is not None]
    if not present:
        return None
    lo, hi = min(present), max(present)
    room = (hi - lo) * share or abs(hi) * share or 1.0
    return [lo - room, hi + room]


def forest(verdicts: Sequence[dict[str, Any]], unit: str, better: str, margin: float | None) -> Figure:
    """One row per arm: the paired mean difference, its 90 % (thick) and 95 % (thin) interval, zero and the margin.

    better: "left" or "right", the side on which an arm is better than the base.
    """
    traces: list[dict[str, Any]] = []
    seen: list[float | None] = [0.0]
    if margin:
        seen += [-margin, margin]
    for row, verdict in enumerate(verdicts):
        color = {"helps": palette.BETTER, "hurts": palette.WORSE}.get(verdict["verdict"], palette.NEUTRAL)
        middle = words.finite(verdict.get("difference"))
        if middle is None:
            continue
        seen.append(middle)
        for key, thickness, cap in (("ci95", 1.5, 5), ("ci90", 5, 0)):
            lo, hi = (words.finite(b) for b in verdict.get(key) or (None, None))
            seen += [lo, hi]
            if lo is None or hi is None:
                continue
            # Drawn around the interval's own middle: an inverted test need not hold the estimate inside.
            traces.append(
                {
                    "type": "scatter",
                    "x": [(lo + hi) / 2],
                    "y": [row],
                    "mode": "markers",
                    "marker": {"opacity": 0, "color": color},
                    "error_x": {
                        "type": "data",
                        "array": [(hi - lo) / 2],
                        "thickness": thickness,
                        "width": cap,
                        "color": color,
                    },
                    "hoverinfo": "skip",
                }
            )
        traces.append(
            {
                "type": "scatter",
                "x": [middle],
                "y": [row],
                "mode": "markers",
                "marker": {"size": 11, "color": color, "line": {"width": 2, "color": palette.MARGIN}},
                "hoverinfo": "text",
                "hovertext": [
                    f"<b>{text(verdict['arm'])}</b>: {text(verdict['verdict'])}<br>"
                    f"difference {words.signed(middle, unit)} {text(unit)}<br>"
                    f"95 %: {words.interval(verdict.get('ci95'), unit)}<br>"
                    f"90 %: {words.interval(verdict.get('ci90'), unit)}"
                ],
            }
        )
    sides = ("better", "worse") if better == "left" else ("worse", "better")
    count = len(verdicts)
    shapes: list[dict[str, Any]] = [
        {
            "type": "line",
            "x0": 0,
            "x1": 0,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": palette.FAINT, "width": 1},
        }
    ]
    if margin:
        band = {"type": "rect", "x0": -margin, "x1": margin, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 0}}
        shapes.insert(0, {**band, "fillcolor": palette.MARGIN, "layer": "below"})
    note = {"xref": "paper", "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    return figure(
        traces,
        90 + 44 * count,
        margin={"l": 8, "r": 12, "t": 30, "b": 8},
        xaxis={"title": f"difference to the base, {text(unit)}", "range": padded(seen, 0.08)},
        yaxis={
            "tickvals": list(range(count)),
            "ticktext": [text(words.shorten(v["arm"])) for v in verdicts],
            "range": [count - 0.5, -0.5],
            "gridcolor": "rgba(0,0,0,0)",
            "tickfont": {"size": 13, "color": palette.INK},
        },
        shapes=shapes,
        annotations=[
            {**note, "x": 0, "xanchor": "left", "text": f"← {sides[0]}"},
            {**note, "x": 1, "xanchor": "right", "text": f"{sides[1]} →"},
        ],
    )


def curves(
    arms: dict[str, Any], styles: dict[str, Style], key: str, title: str, shown: set[str], target: float | None = None
) -> Figure | None:
    """Mean over seeds with its band against the step, one line per arm; None when nothing was evaluated yet."""
    traces: list[dict[str, Any]] = []
    heights: list[float] = []
    for index, (arm, style) in enumerate(styles.items()):
        course = (arms.get(arm) or {}).get("curves") or {}
        series = course.get(key) or {}
        points = [
            (step, mean, lo if lo is not None else mean, hi if hi is not None else mean)
            for step, mean, lo, hi in zip(
                course.get("step") or [],
                *(list(map(words.finite, series.get(part) or [])) for part in ("mean", "lo", "hi")),
                strict=False,
            )
            if mean is not None
        ]
        if not points:
            continue
        steps, means, lows, highs = (list(column) for column in zip(*points, strict=True))
        heights += lows + highs
        # meta ties a trace to its arm's check box
        common = {"type": "scatter", "meta": index, "visible": arm in shown}
        traces.append(
            {
                **common,
                "x": steps + steps[::-1],
                "y": highs + lows[::-1],
                "mode": "lines",
                "line": {"width": 0},
                "fill": "toself",
                "fillcolor": style.band,
                "hoverinfo": "skip",
            }
        )
        traces.append(
            {
                **common,
                "x": steps,
                "y": means,
                "mode": "lines" if len(steps) > 1 else "markers",
                "line": {"color": style.color, "dash": style.dash, "width": 2},
                "marker": {"color": style.color},
                "hoverinfo": "text",
                "hovertext": [
                    f"{text(words.shorten(arm))}: {words.number(m)} ({words.number(lo)} to {words.number(hi)})"
                    for _, m, lo, hi in points
                ],
            }
        )
    if not traces:
        return None
    shapes = []
    if target is not None:
        line = {"color": palette.FAINT, "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": target, "y1": target, "line": line})
    logarithmic = key == "train_loss" and min(heights) > 0 and max(heights) > 20 * min(heights)
    yaxis: dict[str, Any] = {"title": text(title) + (" (log)" if logarithmic else "")}
    if logarithmic:
        yaxis |= {"type": "log", "dtick": 1}
    return figure(
        traces,
        320,
        hovermode="x unified",
        xaxis={"title": "step", "unifiedhovertitle": {"text": "step %{x}"}},
        yaxis=yaxis,
        shapes=shapes,
        dragmode="zoom",
    )
