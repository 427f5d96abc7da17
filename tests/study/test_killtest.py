"""Whole studies of real runs, killed with their workers."""

from __future__ import annotations

import os

import pytest

from pliant.study.killtest import kill_studies


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="POSIX only")
def test_killed_studies_end_with_the_same_rows() -> None:
    report = kill_studies(kills=4, seed=1)
    assert report["kills"] == 4
    for trial in report["trials"]:
        assert trial["rows"] == report["rows_of_a_study"] == 28
        assert trial["lost"] == trial["added"] == trial["different"] == 0
