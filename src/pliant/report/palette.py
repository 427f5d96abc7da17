"""Colours that survive colour-blindness and a dark screen; shape and dash repeat what colour says."""

from __future__ import annotations

from typing import NamedTuple

# Okabe and Ito's hues, darkened until each has a contrast of 4.5 to white; the second column has it to the dark ground.
_HUES = {
    "#0072b2": "#56b4e9",
    "#c04f00": "#ff9a5c",
    "#007a5a": "#3fcf9f",
    "#a8437f": "#eb9fca",
    "#8a6200": "#e6b93c",
    "#5a4fcf": "#aba3ff",
}
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")

INK = "#1d2329"
FAINT = "#5c6670"
GRID = "#e3e6ea"
NEUTRAL = "#59636e"
BETTER = "#0072b2"
WORSE = "#c04f00"
MARGIN = "#eef1f4"

_DARK = {INK: "#e8eaed", FAINT: "#a3adb8", GRID: "#2c333b", NEUTRAL: "#aab4bf", MARGIN: "#232a32"}


class Style(NamedTuple):
    """How one arm is drawn everywhere in a report."""

    color: str
    band: str
    dash: str
    symbol: str


def styles(arms: list[str], base: str) -> dict[str, Style]:
    """One style per arm; the base is always the neutral one."""
    hues = list(_HUES)
    found: dict[str, Style] = {}
    index = 0
    for arm in arms:
        if arm == base:
            found[arm] = Style(NEUTRAL, _veil(NEUTRAL), "solid", "circle")
            continue
        color = hues[index % len(hues)]
        turn = index // len(hues)
        found[arm] = Style(color, _veil(color), _DASHES[turn % len(_DASHES)], _SYMBOLS[index % len(_SYMBOLS)])
        index += 1
    return found


def dark() -> dict[str, str]:
    """Light colour -> dark colour, for every colour a figure may contain."""
    solid = {**_HUES, **_DARK}
    return {**solid, **{_veil(light): _veil(deep) for light, deep in solid.items()}}


def _veil(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"
