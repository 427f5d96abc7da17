from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pliant.core.errors import InputError
from pliant.train import Task, TensorBoard, fit


class Notes:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, facts: Mapping[str, Any], step: int, steps: int) -> None:
        self.calls.append(("start", facts["arm"], facts["lr"], step, steps))

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        self.calls.append(("log", step, dict(values)))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_trackers_hear_the_curve(make_task: Callable[..., Task]) -> None:
    notes = Notes()
    record = fit(make_task(), arm="bn", lr=0.2, trackers=[notes]).record
    assert notes.calls[0] == ("start", "bn", 0.2, 0, 40) and notes.calls[-1] == ("finish",)
    told = [(call[1], call[2]["valid_score"]) for call in notes.calls if call[0] == "log" and call[2]]
    assert told == list(zip(record.curve["step"], record.curve["valid_score"], strict=True))


def test_trackers_finish_after_an_error_too(make_task: Callable[..., Task]) -> None:
    class Failing(Notes):
        def log(self, step: int, values: Mapping[str, float | None]) -> None:
            raise RuntimeError("lost")

    notes, failing = Notes(), Failing()
    with pytest.raises(RuntimeError, match="lost"):
        fit(make_task(), trackers=[notes, failing])
    assert notes.calls[-1] == failing.calls[-1] == ("finish",)


def test_tensorboard_writes_scalars(make_task: Callable[..., Task], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = fit(make_task(), trackers=[TensorBoard(tmp_path)]).record
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scores = [(event.step, event.value) for event in events.Scalars("valid_score")]
    assert [step for step, _ in scores] == record.curve["step"]
    assert [value for _, value in scores] == pytest.approx(record.curve["valid_score"])


def test_a_missing_tensorboard_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"pip install 'pliant\[trackers\]'"):
        TensorBoard(tmp_path)
