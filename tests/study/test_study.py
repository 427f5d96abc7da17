from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pliant.core.errors import InputError
from pliant.methods.batch_norm import BatchNorm
from pliant.study import Study, compare
from pliant.study import study as module
from pliant.study.runner import RunsFailed
from pliant.study.simulated import SimulatedTask, simulated_run
from pliant.train import Task

TASK = SimulatedTask(speeds={"fast": 3.0}, effects={"fast": 0.05})
ARMS: dict[str, Any] = {"base": [], "fast": [], "again": []}
SALTS = {"fast": "f", "again": "a"}


def study(**settings: Any) -> Study:
    settings = {"salts": SALTS, "run": simulated_run, "workers": 1, **settings}
    return compare(settings.pop("task", TASK), settings.pop("arms", ARMS), **settings)


def test_a_whole_study() -> None:
    done = study()
    assert done.complete
    assert done.verdict("fast").verdict == "helps"
    assert done.verdict("fast").unit == "steps"
    assert done.verdict("again").verdict != "helps"
    assert [verdict.arm for verdict in done.verdicts()] == ["fast", "again"]
    # 3 arms x 5 rates x 2 tuning seeds, then 3 arms x 8 seeds; the simulated optimum is inside the grid.
    assert len(done.rows) == 30 + 24
    assert {row["phase"] for row in done.rows} == {"tune", "compare"}


def test_arms_of_a_pair_share_seeds_and_read_the_test_set_only_when_compared() -> None:
    done = study()
    seeds = {arm: [row["seed"] for row in done.compared_rows(arm)] for arm in ARMS}
    assert seeds["base"] == seeds["fast"] == seeds["again"] == list(range(8))
    assert all((row["test_score"] is None) == (row["phase"] == "tune") for row in done.rows)
    assert not {row["seed"] for row in done.rows if row["phase"] == "tune"} & set(range(8))


def test_the_target_comes_from_the_bases_tuning_runs() -> None:
    done = study()
    assert done.tuned is not None and done.tuned.target is not None
    best = [row["best_valid"] for row in done.tuning_rows("base") if row["lr"] == 0.3]
    assert done.tuned.target.value == pytest.approx(sum(best) / 2)
    given = study(target=0.5)
    assert given.tuned is not None and given.tuned.target is not None
    assert (given.tuned.target.value, given.tuned.target.source) == (0.5, "a number in the plan")


def test_methods_reach_the_run_as_objects() -> None:
    seen = set()

    def run(task: Any, methods: Any, **call: Any) -> Any:
        seen.update((call["arm"], method) for method in methods)
        return simulated_run(task, methods, **call)

    study(arms={"base": [], "bn": [BatchNorm()]}, salts={}, run=run)
    assert seen == {("bn", BatchNorm())}


def test_diverged_runs_stay_in_at_the_worst_score() -> None:
    done = study(rates=[7.0], metric="test_score", tune_seeds=0)  # above the rate at which the simulation diverges
    verdict = done.verdict("fast")
    assert verdict.diverged == {"base": 8, "arm": 8}
    assert verdict.arm_mean == TASK.worst_score
    assert verdict.verdict == "not enough evidence"


def test_real_runs_do_not_depend_on_the_number_of_workers() -> None:
    task = Task(data="digits", model={"name": "mlp", "hidden": [8]}, steps=20, batch_size=32, eval_every=5)
    settings: dict[str, Any] = {"rates": [0.1], "target": 0.3, "tune_seeds": 0, "seeds": 7}
    one, two = (compare(task, {"base": [], "bn": [BatchNorm()]}, workers=workers, **settings) for workers in (1, 2))
    assert [{**row, "seconds": 0} for row in one.rows] == [{**row, "seconds": 0} for row in two.rows]
    assert one.verdicts() == two.verdicts()
    assert [row["stack"] for row in one.compared_rows("bn")] == [[BatchNorm().to_json()]] * 7


# -- stores, looks and interruptions -----------------------------------------------------------------------------------


def test_a_finished_study_is_loaded_and_runs_nothing_again(tmp_path: Path) -> None:
    done = study(store=tmp_path / "study.db")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished run was run again")

    again = study(store=tmp_path / "study.db", run=never)
    loaded = Study.load(tmp_path / "study.db", task=TASK, run=never)
    assert again.rows == loaded.rows == done.rows
    assert loaded.summary() == done.summary()


def test_an_interrupted_study_resumes_to_the_same_rows(tmp_path: Path) -> None:
    whole = study()
    left = 20

    def run(task: Any, methods: Any, **call: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return simulated_run(task, methods, **call)

    for _ in range(2):
        left = 20
        with pytest.raises(KeyboardInterrupt):
            study(store=tmp_path / "study.db", run=run)
    partial = Study.load(tmp_path / "study.db", task=TASK, run=simulated_run, workers=1)
    assert len(partial.rows) == 40
    assert not partial.complete
    assert partial.summary()["complete"] is False
    with pytest.raises(InputError, match="no verdict yet: 14 of 24 compared runs are missing"):
        partial.verdict("fast")
    with pytest.raises(InputError, match="not complete"):
        partial.extend(2)
    assert partial.resume().rows == whole.rows


def test_before_tuning_is_complete_the_summary_says_so(tmp_path: Path) -> None:
    def run(task: Any, methods: Any, **call: Any) -> Any:
        if call["lr"] == 3.0:
            raise KeyboardInterrupt
        return simulated_run(task, methods, **call)

    with pytest.raises(KeyboardInterrupt):
        study(store=tmp_path / "study.db", run=run)
    partial = Study.load(tmp_path / "study.db", task=TASK, run=simulated_run)
    summary = partial.summary()
    assert (summary["complete"], summary["verdicts"], summary["arms"]["base"]["rate"]) == (False, [], None)
    assert len(summary["arms"]["base"]["tuning"]) == 4
    with pytest.raises(InputError, match="tuning runs are missing"):
        partial.time()


def test_a_failed_run_is_named_kept_and_tried_again(tmp_path: Path) -> None:
    def run(task: Any, methods: Any, **call: Any) -> Any:
        if (call["arm"], call["seed"]) == ("again", 4):
            raise RuntimeError("broken")
        return simulated_run(task, methods, **call)

    with pytest.raises(RunsFailed, match=r"compare run of arm 'again'.*seed 4, salt 'a': RuntimeError: broken"):
        study(store=tmp_path / "study.db", run=run)
    partial = Study.load(tmp_path / "study.db", task=TASK, run=simulated_run, workers=1)
    assert any("Not finished: compare run of arm 'again'" in note for note in partial.notes())
    assert partial.resume().rows == study().rows
    assert not any("Not finished" in note for note in partial.notes())


def test_an_extension_is_a_look_at_half_the_level(tmp_path: Path) -> None:
    done = study(store=tmp_path / "study.db")
    first = [verdict.verdict for verdict in done.verdicts()]
    old = done.rows
    done.extend(3)
    assert done.seeds == tuple(range(11))
    assert all(row in done.rows for row in old)
    assert [verdict.verdict for verdict in done.verdicts(look=1)] == first
    assert [verdict.level for verdict in (*done.verdicts(look=1)[:1], *done.verdicts()[:1])] == [0.025, 0.0125]
    assert done.verdict("fast").pairs == 11
    assert f"At look 1, with 8 seeds: fast: {first[0]}, again: {first[1]}." in done.notes()
    # The plan itself is untouched: the same call continues the extended study.
    again = study(store=tmp_path / "study.db")
    assert again.summary() == done.summary()
    assert again.summary()["plan"]["look"] == 2
    assert again.summary()["plan"]["hash"] == study().plan.hash


def test_an_extension_steps_over_tuning_seeds() -> None:
    done = study(tune_seeds=[8, 10])
    done.extend(3)
    assert done.seeds[8:] == (9, 11, 12)


def test_looks_are_planned() -> None:
    done = study(looks=1)
    assert done.verdict("fast").level == 0.05
    with pytest.raises(InputError, match=r"1 look\(s\) and all of alpha is spent"):
        done.extend(2)
    with pytest.raises(InputError, match="more_seeds is 0"):
        study().extend(0)


def test_a_study_in_memory_can_be_saved(tmp_path: Path) -> None:
    done = study()
    done.save(tmp_path / "copy.db")
    assert Study.load(tmp_path / "copy.db", task=TASK).summary() == done.summary()
    with pytest.raises(InputError, match="there is no study at"):
        Study.load(tmp_path / "copi.db")


def test_progress_counts_every_run(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    study(store=tmp_path / "study.db", progress=lambda *event: seen.append(event))
    assert seen == [("tune", i, 30) for i in range(1, 31)] + [("compare", i, 24) for i in range(1, 25)]


# -- what is handed on -------------------------------------------------------------------------------------------------


def test_the_summary_is_plain_json_with_every_promised_key() -> None:
    done = study(title="A title", recipe="version = 1")
    summary = json.loads(json.dumps(done.summary(), allow_nan=False))
    assert summary == done.summary()
    assert list(summary) == [
        "schema", "title", "created", "complete", "plan", "target", "verdicts", "arms", "descriptive", "environment",
        "recipe", "notes",
    ]  # fmt: skip
    assert (summary["title"], summary["recipe"]) == ("A title", "version = 1")
    assert {"hash", "unit", "higher_is_better", "margin", "alpha", "look", "steps", "batch_size"} <= set(
        summary["plan"]
    )
    arm = summary["arms"]["fast"]
    assert arm["cost"]["tuning_steps"] == 10 * 600
    assert arm["cost"]["run_steps"] == 8 * 600
    assert arm["curves"]["step"] == list(range(30, 601, 30))
    band = arm["curves"]["valid_score"]
    assert all(low <= mean <= high for low, mean, high in zip(band["lo"], band["mean"], band["hi"], strict=True))
    assert len(arm["values"]) == len(arm["test_scores"]) == 8
    assert arm["timing"] == {"step_ms": None, "step_ms_ratio": None, "peak_mb": None, "seconds_to_target": None}
    assert [entry["arm"] for entry in summary["descriptive"]] == list(ARMS)
    assert summary["descriptive"][0]["difference"] is None
    assert summary["environment"]["torch"]


def test_the_table_names_arms_verdicts_and_conditions() -> None:
    text = study().table()
    assert "fast   helps" in text
    assert "This holds for simulated, model curve, 600 steps of batch 60." in " ".join(text.split())
    assert "Look 1 is tested at 0.025, not 0.05" in text


def test_the_report_gets_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = study()
    assert module.REPORTER == "pliant.report:write"
    assert done.report(tmp_path / "study.html") == tmp_path / "study.html"
    assert "fast" in (tmp_path / "study.html").read_text(encoding="utf-8")


def test_times_come_from_their_own_pass() -> None:
    def time_step(task: Any, methods: Any, *, lr: float, steps: int) -> dict[str, float]:
        return {"step_ms": 2.0, "peak_mb": 100.0}

    done = study(arms={"base": [], "fast": []}, salts={"fast": "f"}).time(time_step=time_step, rounds=1)
    timing = done.summary()["arms"]["fast"]["timing"]
    mean = sum(value for value in done.summary()["arms"]["fast"]["values"]) / 8
    assert timing == {"step_ms": 2.0, "step_ms_ratio": 1.0, "peak_mb": 100.0, "seconds_to_target": mean * 0.002}


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'fast'"):
        study().verdict("fats")
