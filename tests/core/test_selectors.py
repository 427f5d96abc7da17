"""Globs over whole path segments, against an independent translation to regular expressions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.core.errors import NoMatchError
from pliant.core.method import decode, encode
from pliant.core.selectors import Residual, matches, select

names = st.text(alphabet="ab1", min_size=1, max_size=3)
paths = st.lists(names, min_size=1, max_size=4).map(".".join)
patterns = st.lists(st.one_of(names, st.sampled_from(["*", "**", "a*", "?"])), min_size=1, max_size=4)


def as_regex(segments: list[str]) -> re.Pattern[str]:
    """`**` is any number of whole segments, `*` and `?` stay within one; a path is written ".a.b"."""
    parts = []
    for segment in segments:
        if segment == "**":
            parts.append(r"(?:\.[^.]+)*")
        else:
            parts.append(r"\." + re.escape(segment).replace(r"\*", "[^.]*").replace(r"\?", "[^.]"))
    return re.compile("".join(parts))


@given(segments=patterns, path=paths)
def test_a_glob_is_its_regular_expression(segments: list[str], path: str):
    assert matches(".".join(segments), path) == bool(as_regex(segments).fullmatch("." + path))


@given(path=paths)
def test_every_path_matches_itself_and_the_double_star(path: str):
    assert matches(path, path) and matches("**", path) and matches(f"**.{path}", path)


@given(path=paths, other=paths)
def test_a_pattern_without_wildcards_matches_one_path_only(path: str, other: str):
    assert matches(path, other) == (path == other)


def test_a_prefix_of_a_number_is_another_module():
    assert select(["layers.1"], ["layers.1", "layers.10", "layers.11"], "layers") == ["layers.1"]


def test_the_order_is_the_models_and_doubles_vanish():
    assert select(["c", "*", "a"], ["b", "a", "c"], "layers") == ["b", "a", "c"]


def test_a_pattern_without_a_match_names_near_misses():
    with pytest.raises(NoMatchError, match=r"where='fc9' matches none of the linear layers: did you mean 'fc1'"):
        select(["fc9"], ["fc1", "other"], "linear layers")


def test_one_dead_pattern_is_an_error_even_beside_a_live_one():
    with pytest.raises(NoMatchError, match="typo"):
        select(["fc1", "typo"], ["fc1"], "layers")


def test_residual_selectors_survive_json():
    choice = Residual("layers.*", branch="body")
    assert decode(encode((choice, "x"))) == (choice, "x")
