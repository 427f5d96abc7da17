"""Figures are plain dictionaries; plotly's own classes check every property of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from pliant.report import figures, multiples, palette
from pliant.report.view import view

Build = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("metric", ["steps_to_target", "test_score"])
def test_plotly_accepts_every_figure(summary: Build, metric: str) -> None:
    from plotly.graph_objects import Figure

    drawn = view(summary(metric=metric))["figures"]
    assert {name.split("-")[0] for name in drawn} == {"forest", "curve", "pair", "grid"}
    for figure in drawn.values():
        Figure(copy.deepcopy(figure))
        json.dumps(figure, allow_nan=False)


def test_forest_draws_estimate_intervals_zero_and_margin(summary: Build) -> None:
    figure = figures.forest(summary()["verdicts"][:1], "steps", "left", 50.0)
    thin, thick, dot = figure["data"]
    assert [thin["x"][0] - thin["error_x"]["array"][0], thin["x"][0] + thin["error_x"]["array"][0]] == [-185.0, -115.0]
    assert [thick["x"][0] - thick["error_x"]["array"][0], thick["x"][0] + thick["error_x"]["array"][0]] == [-178, -122]
    assert dot["x"] == [-150.0]
    band, zero = figure["layout"]["shapes"]
    assert (band["x0"], band["x1"], zero["x0"], zero["x1"]) == (-50.0, 50.0, 0, 0)
    left, right = figure["layout"]["xaxis"]["range"]
    assert left < -185
    assert right > 50
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["← better", "worse →"]


def test_forest_survives_unbounded_intervals(summary: Build) -> None:
    verdict = summary()["verdicts"][0] | {"ci95": [None, None], "ci90": [None, 3.0]}
    figure = figures.forest([verdict], "steps", "right", None)
    assert len(figure["data"]) == 1
    assert "unbounded" in figure["data"][0]["hovertext"][0]


def test_curves_pair_a_band_with_a_line_per_arm(summary: Build) -> None:
    made = summary()
    styles = palette.styles(list(made["plan"]["arms"]), "base")
    figure = figures.curves(made["arms"], styles, "valid_score", "score", {"bn"}, 0.93)
    assert figure is not None
    assert [trace["meta"] for trace in figure["data"]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [trace["visible"] for trace in figure["data"]] == [False, False, True, True] + [False] * 6
    assert figure["layout"]["shapes"][0]["y0"] == 0.93
    band, line = figure["data"][2:4]
    count = len(line["x"])
    assert band["x"] == line["x"] + line["x"][::-1]
    assert all(
        lo < mean < hi for mean, hi, lo in zip(line["y"], band["y"][:count], band["y"][count:][::-1], strict=True)
    )


def test_curves_skip_missing_values_and_empty_arms(summary: Build) -> None:
    made = summary()
    styles = palette.styles(["base", "bn"], "base")
    course = made["arms"]["bn"]["curves"]
    course["valid_score"]["mean"][3] = None
    course["valid_score"]["lo"][4] = None
    figure = figures.curves({"bn": made["arms"]["bn"]}, styles, "valid_score", "score", {"bn"})
    assert figure is not None
    assert len(figure["data"][1]["x"]) == len(course["step"]) - 1
    assert figures.curves({}, styles, "valid_score", "score", set()) is None


def _pairs(left: list[Any], right: list[Any], limit: float | None = 600.0) -> dict[str, Any]:
    style = palette.styles(["base", "bn"], "base")["bn"]
    return multiples.pairs("base", "bn", (left, right), range(len(left)), style, "steps", False, limit, [0.0, 650.0])


def test_pairs_tell_better_worse_and_not_reached() -> None:
    figure = _pairs([300, 300, 200, None], [200, None, 200, 400])
    lines = {t["line"]["dash"]: t for t in figure["data"] if t["mode"] == "lines"}
    assert lines["solid"]["y"] == [300, 200, None, 600, 400, None]
    assert lines["dash"]["y"] == [300, 600, None]
    assert lines["dot"]["y"] == [200, 200, None]
    open_marks = [t for t in figure["data"] if t.get("marker", {}).get("symbol") == "triangle-up-open"]
    assert [t["y"] for t in open_marks] == [[600], [600]]
    assert all("not reached" in text for t in open_marks for text in t["hovertext"])


def test_pairs_leave_missing_scores_out() -> None:
    figure = _pairs([0.9, None], [0.8, 0.9], limit=None)
    dots = [y for t in figure["data"] if t["mode"] == "markers" for y in t["y"]]
    assert sorted(dots) == [0.8, 0.9, 0.9]


def test_equal_values_stand_side_by_side() -> None:
    figure = _pairs([300, 300], [200, 200])
    base, arm = (t["x"] for t in figure["data"] if t["mode"] == "markers")
    assert base == [0.0, -0.07]
    assert arm == [1.0, 1.07]


def test_grid_marks_the_chosen_rate_and_diverged_runs(summary: Build) -> None:
    made = summary()["arms"]["sd"]
    style = palette.styles(["base", "sd"], "base")["sd"]
    figure = multiples.grid(made["tuning"], made["rate"], style, [0.8, 1.0])
    assert figure is not None
    mean, dots, crosses = figure["data"]
    assert mean["x"] == [0.01, 0.03, 0.1, 0.3]
    assert len(dots["x"]) == 8
    assert (crosses["x"], crosses["y"]) == ([1.0, 1.0], [0.8, 0.8])
    assert figure["layout"]["shapes"][0]["x0"] == 0.1
    assert multiples.grid([], 0.1, style, None) is None


def test_a_single_rate_still_has_an_axis() -> None:
    style = palette.styles(["base", "bn"], "base")["bn"]
    run = {"rate": 0.1, "seed": 0, "best_valid": 0.9, "status": "ok", "steps_to_target": None}
    figure = multiples.grid([run], 0.1, style, None)
    assert figure is not None
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < -1 < high


def test_every_arm_is_told_apart_and_every_colour_has_a_dark_form(summary: Build) -> None:
    arms = [f"arm{i}" for i in range(20)]
    styles = palette.styles(["base", *arms], "base")
    assert len({(s.color, s.dash) for s in styles.values()}) == 21
    assert {c for s in styles.values() for c in (s.color, s.band)} <= set(palette.dark())


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_arm_colours_have_contrast_on_both_grounds() -> None:
    styles = palette.styles(["base", *map(str, range(6))], "base")
    for style in styles.values():
        light, deep = _luminance(style.color), _luminance(palette.dark()[style.color])
        assert 1.05 / (light + 0.05) >= 4.5, style.color
        assert (deep + 0.05) / (_luminance("#14181c") + 0.05) >= 4.5, style.color
