from __future__ import annotations

import io
import re
import sys

import pytest

from pliant.cli.output import Output, plain_table


class Terminal(io.StringIO):
    """A stream that says a person is watching."""

    def isatty(self) -> bool:
        return True


def _watch(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes stdout a terminal; called inside a test, since pytest changes stdout after the fixtures."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


def test_piped_tables_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(["arm", "verdict"], [["[bold]x[/bold]", "helps"]], {"helps": "green"})
    assert capsys.readouterr().out == "arm             verdict\n--------------  -------\n[bold]x[/bold]  helps\n"


def test_a_cell_stays_on_its_line() -> None:
    assert plain_table(["a"], [["two\nlines"]]).splitlines()[-1] == "two lines"


def test_a_terminal_gets_colour_and_names_stay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _watch(monkeypatch)
    Output().table(["arm", "verdict"], [["[bold]x[/bold]", "helps"]], {"helps": "bold green"})
    text = terminal.getvalue()
    assert "\x1b[1;32mhelps" in text
    assert "[bold]x[/bold]" in text


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _watch(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    Output().table(["arm", "verdict"], [["x", "helps"]], {"helps": "green"})
    assert "helps" in terminal.getvalue()
    assert not re.search(r"\x1b\[[\d;]*3\d", terminal.getvalue())


def test_markdown_is_rendered_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _watch(monkeypatch)
    Output().markdown("# Title\n\nsome *text*")
    assert "# Title" not in terminal.getvalue()
    assert "Title" in terminal.getvalue()


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=True)
    out.line("no")
    out.heading("no")
    out.table(["no"], [["no"]])
    out.markdown("no")
    out.say("a message")
    out.data({"a": "−1"})
    captured = capsys.readouterr()
    assert captured.out == '{\n  "a": "−1"\n}\n'
    assert captured.err == "a message\n"


def test_json_never_holds_what_json_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Output(as_json=True).data({"a": float("nan")})
