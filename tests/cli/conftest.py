"""Commands run in this process, in a folder of their own, on a study that takes a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pliant.cli import main

RECIPE = """\
version = 1
title = "tiny"
data = "digits"
model = {name = "mlp", hidden = [8], activation = "relu"}

[train]
steps = 12
batch_size = 20
lr = 0.1
eval_every = 4

[methods]
stack = ["weight_norm"]

[arms]
base = []
wn = ["weight_norm"]

[study]
seeds = 7
rates = [0.1]
metric = "valid_score"
looks = 2
margin = 0.02
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Result]


@pytest.fixture
def pliant(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """pliant("verb", ...) -> code, stdout, stderr; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLIANT_DEBUG", raising=False)

    def run(*argv: str) -> Result:
        capsys.readouterr()
        code = main(list(argv))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """The name of a recipe in the current folder."""
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    return "tiny.toml"


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timing pass starts processes, which costs seconds; its own tests are the study's."""
    from pliant.study import Study

    def time(self: Study) -> Study:
        facts = {"step_ms": 1.5, "step_ms_ratio": 1.25, "peak_mb": 100.0}
        self.store.set_fact("timing", dict.fromkeys(self.plan.arms, facts))
        return self

    monkeypatch.setattr(Study, "time", time)
