from __future__ import annotations

import math

import pytest

from pliant.report import words


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234.4, "steps", "1,234"),
        (7.25, "steps", "7.2"),
        (0.93125, "accuracy", "0.9313"),
        (-0.0123, "accuracy", "−0.0123"),
        (-0.00001, "accuracy", "0.0000"),
        (25.123, "BLEU", "25.12"),
        (None, "steps", words.NONE),
        (math.nan, "steps", words.NONE),
        (math.inf, "steps", words.NONE),
        (True, "steps", words.NONE),
    ],
)
def test_number(value: object, unit: str, text: str) -> None:
    assert words.number(value, unit) == text


def test_signed_shows_both_signs_but_none_for_zero() -> None:
    assert [words.signed(v, "steps") for v in (12, -12, 0)] == ["+12", "−12", "0"]


def test_interval_says_which_end_is_open() -> None:
    assert words.interval([-3, 4], "steps") == "−3 to +4"
    assert words.interval([None, 4], "steps") == "up to +4"
    assert words.interval([4, math.inf], "steps") == "+4 or more"
    assert words.interval([None, None], "steps") == "unbounded"
    assert words.interval(None) == words.NONE


def test_probability() -> None:
    assert words.probability(0.0004) == "< 0.001"
    assert words.probability(0.0312) == "0.031"
    assert words.probability(None) == words.NONE


def test_duration_picks_the_unit() -> None:
    assert [words.duration(s) for s in (0.27, 85, 91, 5401)] == ["270 ms", "85.0 s", "1.5 min", "1.5 h"]


def test_shorten_keeps_the_length() -> None:
    assert words.shorten("a" * 50, 10) == "a" * 9 + "…"
    assert words.shorten("two\nlines") == "two lines"
