from __future__ import annotations

import dataclasses
import json
import math

import pytest

from pliant.core.errors import SettingError
from pliant.train import RunRecord
from pliant.train.record import new_curve, number

RECORD = RunRecord(
    arm="bn", phase="tune", seed=3, salt="", lr=0.1, stack=[{"method": "elu"}], steps=10, status="ok",
    curve=new_curve() | {"step": [10]}, best_valid=0.5, final_valid=0.4, test_score=None, parameters=7, changes="",
    seconds=1.25, threads=1,
)  # fmt: skip


def test_json_round_trip() -> None:
    assert RunRecord.from_json(json.loads(json.dumps(RECORD.to_json(), allow_nan=False))) == RECORD


def test_same_sets_measured_time_aside_and_nothing_else() -> None:
    assert RECORD.same(dataclasses.replace(RECORD, seconds=9.0))
    assert not RECORD.same(dataclasses.replace(RECORD, best_valid=math.nextafter(0.5, 1)))


def test_foreign_json_is_refused() -> None:
    with pytest.raises(SettingError, match=r"no field 'armm': did you mean 'arm'"):
        RunRecord.from_json({**RECORD.to_json(), "armm": ""})


def test_numbers_that_json_cannot_hold_become_none() -> None:
    assert [number(value) for value in (1.5, math.nan, math.inf, -math.inf)] == [1.5, None, None, None]
