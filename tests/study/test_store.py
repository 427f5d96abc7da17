from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from pliant.core.errors import InputError
from pliant.study import store as module
from pliant.study.plan import StudyPlan, make_plan
from pliant.study.simulated import SimulatedTask
from pliant.study.store import Key, Store

KEY = Key("tune", "base", 0.1, 3)


def plan(**settings: Any) -> StudyPlan:
    return make_plan(SimulatedTask(), {"base": [], "again": []}, salts={"again": "x"}, **settings)


def opened(path: Path | None, **settings: Any) -> Store:
    store = Store(path)
    store.open(plan(**settings), {"title": "a study"})
    return store


def test_rows_come_back_as_they_were_in_another_process(tmp_path: Path) -> None:
    row = {"curve": {"step": [1, 2]}, "loss": float("nan"), "tuple": (1, 2), "rate": 0.1 + 0.2}
    store = opened(tmp_path / "study.db")
    store.add(KEY, row)
    written = json.dumps(store.row(KEY))
    again = Store(tmp_path / "study.db")  # while the first is still open: readers do not wait
    assert json.dumps(again.row(KEY)) == written == json.dumps(row)
    assert again.plan() == plan()
    assert again.looks() == [tuple(range(8))]
    assert again.fact("title") == "a study"


def test_a_key_keeps_its_first_row(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    store.add(KEY, {"value": 1})
    store.add(KEY, {"value": 2})
    store.add(Key("tune", "base", 0.1, 3, salt="x"), {"value": 3})
    assert [row["value"] for row in Store(tmp_path / "study.db").rows().values()] == [1, 3]


def test_another_plan_is_refused_with_what_changed(tmp_path: Path) -> None:
    opened(tmp_path / "study.db").close()
    with pytest.raises(InputError, match=r"another plan \(alpha: 0.05 in the store, 0.04 asked for; margin: 30.0 in"):
        opened(tmp_path / "study.db", alpha=0.04, margin=8)
    with pytest.raises(InputError, match=r"seeds: .* call .extend\(\) for more seeds"):
        opened(tmp_path / "study.db", seeds=12)
    assert opened(tmp_path / "study.db").plan() == plan()


def test_failures_are_cleared_by_success(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    store.add_failure(KEY, 3, "died")
    assert store.failures() == {KEY: (3, "died")}
    store.add(KEY, {})
    assert store.failures() == {}


def test_looks_are_kept_in_order(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    store.add_look((8, 9))
    store.add_look((10,))
    assert Store(tmp_path / "study.db").looks() == [tuple(range(8)), (8, 9), (10,)]


def test_a_copy_of_a_study_in_memory_is_a_study(tmp_path: Path) -> None:
    store = opened(None)
    store.add(KEY, {"value": 1})
    store.copy(tmp_path / "copy.db")
    assert Store(tmp_path / "copy.db").row(KEY) == {"value": 1}
    assert Store(tmp_path / "copy.db").plan() == plan()


# -- what can go wrong with a file: every message has a cause and a remedy, and rows survive ---------------------------


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist; create it or choose another store"):
        Store(tmp_path / "nowhere" / "study.db")


def test_a_file_that_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database at all, but long enough to be looked at" * 50)
    with pytest.raises(InputError, match="no intact study file"):
        Store(tmp_path / "study.db")
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(InputError, match="holds no study"):
        Store(tmp_path / "empty.db").plan()


def test_a_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "study.db").close()
    monkeypatch.setattr(module, "_WAIT", 0.05)
    store = opened(tmp_path / "study.db")
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match=r"another process has locked it.*Finished runs are safe in"):
        store.add(KEY, {"value": 1})
    store.close()
    other.execute("ROLLBACK")
    other.close()
    assert opened(tmp_path / "study.db").row(KEY) == {"value": 1}  # from the rescue file
    assert list(tmp_path.glob("*.rescue.jsonl")) == []


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    big = {"text": "x" * 100_000}
    with pytest.raises(InputError, match=r"the disk is full; make room.*Finished runs are safe in"):
        store.add(KEY, big)
    assert store.row(KEY) == big
    # In the same process, once there is room:
    store._database.execute("PRAGMA max_page_count = 1000000")
    store.add(Key("tune", "base", 0.1, 4), {"value": 2})
    # and in another process:
    assert set(Store(tmp_path / "study.db").rows()) == {KEY, Key("tune", "base", 0.1, 4)}


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no read-only mode on Windows")
def test_a_read_only_file(tmp_path: Path) -> None:
    store = opened(tmp_path / "study.db")
    # Even root, who may write to any file, cannot write through a connection that SQLite made read-only.
    store._database.execute("PRAGMA query_only = ON")
    with pytest.raises(InputError, match="read-only; change its permissions or choose another store"):
        store.add(KEY, {})
