from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pliant.core.errors import InputError
from pliant.methods.batch_norm import BatchNorm
from pliant.methods.weight_norm import WeightNorm
from pliant.study.plan import StudyPlan, differences, make_plan
from pliant.study.simulated import SimulatedTask

ARMS: dict[str, Any] = {"base": [], "bn": [BatchNorm()]}


def plan(arms: Any = ARMS, **settings: Any) -> StudyPlan:
    return make_plan(SimulatedTask(), arms, **settings)


def test_the_defaults() -> None:
    made = plan()
    assert made.seeds == tuple(range(8))
    assert not set(made.seeds) & set(made.tune_seeds)
    assert made.rates == (0.03, 0.09, 0.3, 0.9, 3.0)
    assert made.margin == 0.05 * 600
    assert plan(metric="test_score").margin == 0.005
    assert made.others == ["bn"]
    assert (made.level(1), made.level(2), plan(looks=1).level(1)) == (0.025, 0.0125, 0.05)


def test_json_round_trip_keeps_the_plan_the_hash_and_the_order_of_the_arms() -> None:
    made = plan({"wn": [WeightNorm()], "base": [], "bn": [BatchNorm()]}, target=0.9)
    again = StudyPlan.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    assert again.hash == made.hash
    assert list(again.arms) == ["wn", "base", "bn"]


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": 9},
        {"tune_seeds": 3},
        {"rates": [0.1, 0.3]},
        {"metric": "test_score"},
        {"target": 0.5},
        {"margin": 7.0},
        {"alpha": 0.04},
        {"looks": 2},
        {"arms": {"base": [], "bn": [BatchNorm(eps=1e-3)]}},
    ],
)
def test_every_field_is_hashed(change: dict[str, Any]) -> None:
    assert plan(**change).hash != plan().hash


def test_two_ways_to_write_a_method_are_one_plan() -> None:
    written = plan({"base": [], "bn": [{"method": "batch_norm"}]})
    assert plan({"base": [], "bn": ["batch_norm"]}).hash == written.hash == plan().hash


def test_differences_name_the_field_and_both_values() -> None:
    other = plan({"base": [], "bn": [BatchNorm(eps=1e-3)]}, alpha=0.04)
    found = differences(plan(), other)
    assert found[0] == "alpha: 0.05 in the store, 0.04 asked for"
    assert len(found) == 2
    assert found[1].startswith("arms.bn")
    assert differences(plan(), plan()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 1}, "1 seed is no comparison"),
        ({"seeds": 6}, "6 seeds can never be significant.*give at least 7 seeds"),
        ({"seeds": 5, "looks": 1}, "5 seeds can never be significant.*give at least 6 seeds"),
        ({"seeds": [0, 1, 2, 3, 4, 5, 6, 6]}, "different whole numbers"),
        ({"seeds": [0, 1, 2, 3, 4, 5, 6, -7]}, "different whole numbers"),
        ({"tune_seeds": [3, 100]}, r"seeds \[3\] are both tuned on and compared"),
        ({"tune_seeds": 0}, "no tuning seeds"),
        ({"tune_seeds": 0, "rates": [0.1]}, "no tuning seeds"),
        ({"rates": []}, "at least one positive number"),
        ({"rates": [0.1, -1.0]}, "at least one positive number"),
        ({"rates": [0.1, 0.1]}, "listed twice"),
        ({"metric": "step_to_target"}, "did you mean 'steps_to_target'"),
        ({"margin": 0.0}, "margin is 0"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"looks": 0}, "looks is 0"),
        ({"base": "bass"}, "'bass' is not among the arms: did you mean 'base'"),
        ({"arms": {"base": []}}, "the only arm is the base"),
        ({"arms": [("base", []), ("bn", [BatchNorm()]), ("bn", [WeightNorm()])]}, "two arms have one name"),
        ({"arms": {"base": [], "bn": [BatchNorm()], "BN ": [WeightNorm()]}}, "two arms have one name"),
        ({"arms": {"base": [], "": [BatchNorm()]}}, "non-empty strings"),
        ({"arms": {"base": [], "same": []}}, "'base' and 'same' are the same methods.*salts="),
        ({"arms": {"base": [], "a": [BatchNorm()], "b": [BatchNorm()]}}, "'a' and 'b' are the same methods"),
        ({"arms": {"base": [], "bn": [BatchNorm]}}, "expected methods"),
        ({"arms": {"base": [], "bn": ["bath_norm"]}}, "did you mean 'batch_norm'"),
        ({"salts": {"bnn": "x"}}, "no arm beside the base: did you mean 'bn'"),
        ({"salts": {"base": "x"}}, "no arm beside the base"),
    ],
)
def test_what_cannot_be_honest_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**settings)


def test_more_arms_need_more_seeds() -> None:
    arms: dict[str, Any] = {"base": [], **{f"arm{i}": [BatchNorm(eps=10.0**-i)] for i in range(1, 6)}}
    with pytest.raises(InputError, match=r"times 5 compared arms by Holm's rule.*give at least 9 seeds"):
        plan(arms)
    assert len(plan(arms, seeds=9).others) == 5


def test_an_arm_like_the_base_needs_a_salt() -> None:
    assert plan({"base": [], "again": []}, salts={"again": "other"}).salts == {"again": "other"}


def test_one_rate_and_a_target_need_no_tuning_seeds() -> None:
    assert plan(rates=[0.1], target=0.9, tune_seeds=0).tune_seeds == ()
    assert plan(rates=[0.1], metric="test_score", tune_seeds=0).tune_seeds == ()


def test_a_task_without_rate_or_known_unit_needs_them_named() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Odd(SimulatedTask):
        @property
        def unit(self) -> str:
            return "bits"

        def to_json(self) -> dict[str, Any]:
            return {}

    with pytest.raises(InputError, match="give rates="):
        make_plan(Odd(), ARMS)
    with pytest.raises(InputError, match="no default margin for scores in 'bits'"):
        make_plan(Odd(), ARMS, rates=[0.1], metric="test_score")
