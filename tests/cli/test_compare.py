from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("untimed")
SMALL = ["--workers", "1"]


def _study(path: Path) -> Any:
    from pliant.study import Study

    return Study.load(path)


def test_runs_judges_and_reports(pliant: Any, recipe: str, tmp_path: Path) -> None:
    result = pliant("compare", recipe, *SMALL)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == "run/study.html"
    page = (tmp_path / "run/study.html").read_text(encoding="utf-8")
    verdict = _study(tmp_path / "run/study.db").verdict("wn")
    assert verdict.sentence in result.out
    assert verdict.sentence.replace("'", "&#39;") in page
    row = next(line for line in result.out.splitlines() if line.startswith("wn "))
    assert verdict.verdict in row
    assert "comparing 14/14" in result.err
    assert "plan " in result.err
    assert "\x1b" not in result.out + result.err
    assert "seeds = 7" in page


def test_json_is_the_summary(pliant: Any, recipe: str) -> None:
    result = pliant("compare", recipe, *SMALL, "-o", "out/a.html", "--json")
    assert result.code == 0
    assert result.json["complete"] is True
    assert [v["arm"] for v in result.json["verdicts"]] == ["wn"]
    assert result.json["report"] == "out/a.html"
    assert Path("out/a.html").is_file()


def test_the_same_command_runs_nothing_twice(pliant: Any, recipe: str, tmp_path: Path) -> None:
    first = pliant("compare", recipe, *SMALL, "--json")
    rows = _study(tmp_path / "run/study.db").rows
    second = pliant("compare", recipe, *SMALL, "--json")
    assert "comparing" not in second.err
    assert second.json == first.json
    assert _study(tmp_path / "run/study.db").rows == rows


def test_a_stopped_study_keeps_its_runs(
    pliant: Any, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pliant.cli.progress import StudyProgress

    whole = pliant("compare", recipe, *SMALL, "--store", "whole.db", "--json").json

    def stop(self: StudyProgress, phase: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StudyProgress, "__call__", stop)
        result = pliant("compare", recipe, *SMALL)
    assert result.code == 130
    assert "kept in run/study.db; continue with: pliant compare tiny.toml --workers 1" in result.err
    assert len(_study(tmp_path / "run/study.db").rows) == 5
    partial = pliant("report", "run/study.db", "--json")
    assert partial.code == 0
    assert partial.json["complete"] is False
    again = pliant("compare", recipe, *SMALL, "--json")
    assert "comparing 14/14" in again.err
    assert again.json["verdicts"] == whole["verdicts"]


def test_another_plan_in_the_store_is_refused(pliant: Any, recipe: str) -> None:
    assert pliant("compare", recipe, *SMALL).code == 0
    result = pliant("compare", recipe, *SMALL, "--seeds", "8")
    assert result.code == 2
    assert "seeds: [0, 1, 2, 3, 4, 5, 6] in the store" in result.err
    assert "--store" in result.err
    assert "--extend N" in result.err


def test_more_seeds_are_a_second_look(pliant: Any, recipe: str) -> None:
    assert pliant("compare", recipe, *SMALL).code == 0
    result = pliant("compare", recipe, *SMALL, "--extend", "2", "--json")
    assert result.code == 0, result.err
    assert result.json["plan"]["look"] == 2
    assert result.json["verdicts"][0]["pairs"] == 9
    assert pliant("compare", recipe, *SMALL, "--extend", "2").code == 2


def test_resuming_an_extension_does_not_extend_again(pliant: Any, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pliant.study import Study

    def stop(self: Study, *_: object) -> Study:
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "extend", stop)
    result = pliant("compare", recipe, *SMALL, "--extend", "2")
    assert result.code == 130
    assert result.err.splitlines()[-1].endswith("continue with: pliant compare tiny.toml --workers 1")


def test_arms_may_be_chosen_and_may_be_methods(pliant: Any, recipe: str) -> None:
    result = pliant("compare", recipe, *SMALL, "--arms", "batch_norm, wn", "--set", "study.seeds=8", "--json")
    assert result.code == 0, result.err
    assert list(result.json["plan"]["arms"]) == ["base", "batch_norm", "wn"]
    assert result.json["plan"]["arms"]["batch_norm"][0]["method"] == "batch_norm"
    assert "batch_norm = [" in result.json["recipe"]


def test_failed_runs_are_named_and_the_rest_reported(pliant: Any, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pliant.core import registry

    def plan(self: object, model: object, ctx: object) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr(registry.get("weight_norm"), "plan", plan)
    result = pliant("compare", recipe, *SMALL)
    assert result.code == 1
    assert "7 runs could not be finished" in result.err
    assert "the report of the finished runs: run/study.html" in result.err
    assert "This study is not finished." in Path("run/study.html").read_text(encoding="utf-8")


def test_a_hostile_arm_name_reaches_the_page_as_text(pliant: Any, recipe: str) -> None:
    text = Path(recipe).read_text(encoding="utf-8")
    Path(recipe).write_text(text.replace("wn = [", "'<script>[red]' = ["), encoding="utf-8")
    result = pliant("compare", recipe, *SMALL)
    assert result.code == 0, result.err
    assert "<script>[red]" in result.out
    page = Path("run/study.html").read_text(encoding="utf-8")
    assert "<script>[red]" not in page
    assert "&lt;script&gt;[red]" in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothere.toml"], "cannot be read"),
        (["tiny.toml", "--arms", "wnn"], "--arms: no arm or method 'wnn': did you mean 'wn'"),
        (["tiny.toml", "--arms", "base"], "only arm is the base"),
        (["tiny.toml", "--seeds", "3"], "give at least"),
        (["tiny.toml", "--set", "study.metrik=1"], "did you mean 'study.metric'"),
        (["tiny.toml", "--store", "tiny.toml"], "choose another path"),
    ],
)
def test_bad_input(pliant: Any, recipe: str, argv: list[str], message: str) -> None:
    result = pliant("compare", *argv)
    assert result.code == 2
    assert message in result.err


def test_the_default_recipe_is_used(pliant: Any) -> None:
    result = pliant("compare", "--arms", "nothing")
    assert "'nothing'" in result.err
    assert "weight_norm" in result.err


def test_a_report_that_cannot_be_written_is_told_before_the_runs(pliant: Any, recipe: str, tmp_path: Path) -> None:
    result = pliant("compare", recipe, "-o", f"{recipe}/study.html")
    assert result.code == 2
    assert "name another place" in result.err
    assert not (tmp_path / "run").exists()
