"""A study's process is killed, as a power cut would; the same command continues to the same rows."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pliant.study import Study, compare
from pliant.study.simulated import SimulatedTask, simulated_run

SCRIPT = """
import functools, sys, time
from pliant.study import compare
from pliant.study.simulated import SimulatedTask, simulated_run

def slow(*arguments, **call):
    time.sleep(0.01)
    return simulated_run(*arguments, **call)

compare(SimulatedTask(), {"base": [], "again": []}, salts={"again": "x"}, run=slow,
        store=sys.argv[1], workers=int(sys.argv[2]))
"""


def rows_in(path: Path) -> int:
    if not path.exists():
        return 0
    reader = sqlite3.connect(path, timeout=5)
    try:
        return int(reader.execute("SELECT count(*) FROM rows").fetchone()[0])
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0
    finally:
        reader.close()


@pytest.mark.parametrize(("workers", "kills"), [(1, 3), (2, 1)])
def test_a_killed_study_resumes_to_the_same_rows(tmp_path: Path, workers: int, kills: int) -> None:
    path = tmp_path / "study.db"
    chance = random.Random()
    reached = 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-W", "error", "-c", SCRIPT, str(path), str(workers)])
        wanted = reached + chance.randint(1, 9)
        while rows_in(path) < wanted:
            assert process.poll() is None, "the study ended before it could be killed"
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.wait()
        assert rows_in(path) >= wanted > reached
        reached = rows_in(path)
    arms: dict[str, list[object]] = {"base": [], "again": []}
    whole = compare(SimulatedTask(), arms, salts={"again": "x"}, run=simulated_run, workers=1)
    resumed = Study.load(path, task=SimulatedTask(), run=simulated_run, workers=1)
    assert len(resumed.rows) == reached < len(whole.rows)
    assert resumed.resume().rows == whole.rows
    assert resumed.verdicts() == whole.verdicts()
