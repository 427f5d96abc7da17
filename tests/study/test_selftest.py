from __future__ import annotations

import json

from pliant.study import selftest
from pliant.study.power import power


def test_a_small_self_test_has_every_block_and_keeps_its_promises() -> None:
    # 8 studies a block are too few to measure rates; only what cannot happen by chance is asserted.
    result = selftest.selftest(workers=1, null=8, planted=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len(result["blocks"]) == 6 + len(selftest.TUNE_SEEDS) + 2 * len(selftest.EFFECTS)
    named = {block["what"]: block for block in result["blocks"]}
    large = named["real, test_score: planted effect of 2 sd"]
    assert large["power"]["promised"] == power(2.0, selftest.PAIRS, 0.025)
    assert large["wrong_direction"]["count"] == 0
    assert named["simulated, test_score: margin of 2 sd"]["no_difference_and_equal"]["count"] >= 7
    assert 0 < result["tasks"]["real"]["paired_sd"] < 0.2
    assert len(selftest.lines(result)) >= len(result["blocks"])


def test_different_keys_give_different_runs_and_equal_keys_equal_ones() -> None:
    pool = selftest._real_runs(1, 1)
    again = selftest._real_runs(1, 1)
    assert all(pool[key]["curve"] == again[key]["curve"] for key in pool)
    assert all(pool[seed, ""]["curve"] != pool[seed, selftest.SALT]["curve"] for seed in range(selftest.PAIRS))
