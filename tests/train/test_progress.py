from __future__ import annotations

import io
from collections.abc import Callable

from pliant.train import Progress, Task, fit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_output_is_one_plain_line_for_each_validation(make_task: Callable[..., Task]) -> None:
    stream = io.StringIO()
    record = fit(make_task(), progress=Progress(stream)).record
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(record.curve["step"]) == 4
    assert "\x1b" not in stream.getvalue()
    assert lines[-1].startswith(f"step 40/40  valid accuracy {record.final_valid:.4f}  valid loss ")
    assert lines[-1].endswith(" steps/s")


def test_a_terminal_gets_a_bar(make_task: Callable[..., Task]) -> None:
    stream = Terminal()
    record = fit(make_task(), progress=Progress(stream)).record
    assert "40/40" in stream.getvalue() and f"{record.final_valid:.4f}" in stream.getvalue()


def test_numbers_that_are_none_are_told() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start({}, 0, 10)
    progress.log(5, {})
    progress.log(10, {"valid_score": 0.0, "valid_loss": None})
    assert stream.getvalue().startswith("step 10/10  valid accuracy 0.0000  valid loss no number")
