from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A planned study without any run."""
    import pliant
    from pliant.study import Study, make_plan
    from pliant.study.store import Store

    task = pliant.Task(data="digits", model="mlp", steps=4, batch_size=8)
    arms = {"base": [], "wn": [{"method": "weight_norm"}]}
    Study(make_plan(task, arms), task, Store(tmp_path / "s.db"), facts={"title": "planned only"})
    return "s.db"


def test_writes_beside_the_store(pliant: Any, store: str) -> None:
    result = pliant("report", store)
    assert (result.code, result.out) == (0, "s.html\n")
    assert "planned only" in Path("s.html").read_text(encoding="utf-8")


def test_writes_where_asked_and_prints_the_summary(pliant: Any, store: str) -> None:
    result = pliant("report", store, "-o", "sub/page.html", "--json")
    assert result.code == 0
    assert result.json["report"] == "sub/page.html"
    assert result.json["complete"] is False
    assert Path("sub/page.html").is_file()


def test_bad_input(pliant: Any, store: str) -> None:
    Path("junk.db").write_text("junk", encoding="utf-8")
    for argv, message in (
        (["nothere.db"], "no study at nothere.db"),
        (["junk.db"], "not a database"),
        ([store, "-o", "junk.db/x.html"], "name another place with -o"),
    ):
        result = pliant("report", *argv)
        assert result.code == 2, result
        assert message in result.err
