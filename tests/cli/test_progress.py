from __future__ import annotations

import io
import sys

import pytest

from pliant.cli import progress
from pliant.cli.progress import StudyProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_piped_lines_come_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress(4) as told:
        for done in range(1, 7):
            clock[0] += 4
            told("tune", done, 6)
        for done in range(1, 5):
            clock[0] += 4
            told("compare", done, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "tuning 3/6, about 28 s left",
        "tuning 6/6, about 16 s left",
        "comparing 3/4, about 4 s left",
        "comparing 4/4",
    ]


def test_long_studies_are_told_in_minutes(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress(0) as told:
        clock[0] += 60
        told("compare", 1, 11)
    assert "about 10 min left" in capsys.readouterr().err


def test_a_resumed_study_does_not_count_old_runs_as_fast(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with StudyProgress(10) as told:
        clock[0] += 12
        told("compare", 9, 10)
    assert "about 12 s left" in capsys.readouterr().err


def test_a_terminal_gets_bars_on_stderr(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "100")
    with StudyProgress(2) as told:
        told("tune", 1, 2)
        told("tune", 2, 2)
        told("compare", 2, 2)
    assert "tuning" in stream.getvalue()
    assert "comparing" in stream.getvalue()
    assert capsys.readouterr().out == ""
