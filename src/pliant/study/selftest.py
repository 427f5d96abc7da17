"""Does the comparison keep its promises? Studies whose truth is known, run through `compare` itself.

    python -m pliant.study.selftest --out docs/evidence/selftest.json

* A/A studies, whose second arm gets other keys in the same pair, must say "helps" or "hurts" no more often than the
  level they are tested at, and their 95 % intervals must cover 0 in at least 95 % of the studies. The same holds for
  any of three A/A arms (Holm's rule), and, at alpha, for studies extended twice while undecided (alpha spending).
* A/A studies that tune each arm are not quite exchangeable: an unlucky rate is then a real difference between the
  compared runs. Two blocks measure what this adds with 2 and with 4 tuning seeds; it must stay within alpha.
* Planted effects of 0.5, 1 and 2 standard deviations of the paired difference must be found as often as
  `pliant.study.power.power` promises, and be covered as often as no effect is.
* Arms that differ by exactly the margin must be called "no difference" in at most 5 % of the studies.

On a simulated task (a formula) and on a real one (digits, 8 hidden units, 25 steps), where effects are added to scores.
Only the blocks on steps to a target and on tuning tune; the others run at one rate, so that the truth is known.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant.core.errors import InputError
from pliant.train import Optimizer, RunRecord, Task, run

from .environment import describe_machine
from .power import attained_level, equivalence_power, power
from .runner import Runner
from .simulated import PAIR_SD, SimulatedTask, simulated_run
from .statistics import wilson_interval
from .store import Key
from .study import Study, compare
from .verdict import HELPS, HURTS, NO_DIFFERENCE, Verdict

NULL_STUDIES, PLANTED_STUDIES = 400, 100
EFFECTS = (0.5, 1.0, 2.0)
PAIRS = 8
ALPHA = 0.05
TINY_MARGIN = 1e-6
"""So that "no difference" never replaces a significant answer where power is measured."""
SALT = "other keys"
TUNE_SEEDS, TUNE_RATES = (2, 4), (0.1, 0.3, 1.0, 3.0)
PROMISES = ("promised", "at_most", "at_least")
REAL_TASK = Task(
    data="digits",
    model={"name": "mlp", "hidden": [8]},
    steps=25,
    batch_size=32,
    eval_every=25,
    optimizer=Optimizer(lr=0.3),
)


def selftest(workers: int | None = None, *, null: int = NULL_STUDIES, planted: int = PLANTED_STUDIES) -> dict[str, Any]:
    """All blocks as one JSON dict; null, planted: studies per block without and with an effect.

    Planted effect k takes the studies k planted to (k + 1) planted - 1, so that no two effects share runs.
    """
    pool = _real_runs(null, workers)
    sd = statistics.stdev(pool[s, SALT]["test_score"] - pool[s, ""]["test_score"] for s in range(null * PAIRS))
    real = functools.partial(_real, pool)
    blocks = [
        _null("simulated", "test_score", null, _simulated),
        _null("simulated", "steps_to_target", null, _simulated),
        _null("real", "test_score", null, real),
        *_tuned(null, workers),
        _three_arms(null),
        _three_looks(null),
        _at_the_margin(null),
    ]
    for name, study, scale in (("simulated", _simulated, PAIR_SD), ("real", real, sd)):
        for k, effect in enumerate(EFFECTS):
            blocks.append(_planted(name, range(k * planted, (k + 1) * planted), effect, scale, study))
    return {
        "schema": 1,
        "alpha": ALPHA,
        "pairs": PAIRS,
        "seeds": f"study i starts at seed {2 * PAIRS} i on the simulated task, at {PAIRS} i on the real one",
        "tasks": {
            "simulated": {"task": SimulatedTask().to_json(), "paired_sd": PAIR_SD},
            "real": {"task": REAL_TASK.to_json(), "paired_sd": sd},
        },
        "blocks": blocks,
        "environment": describe_machine(REAL_TASK.threads),
    }


def _null(task: str, metric: str, studies: int, study: Any) -> dict[str, Any]:
    """A/A studies."""
    verdicts = [study(index, metric=metric) for index in range(studies)]
    alarms = sum(verdict.verdict in (HELPS, HURTS) for verdict in verdicts)
    return {
        "what": f"{task}, {metric}: A/A",
        "studies": studies,
        "false_alarm": _rate(alarms, studies, at_most=verdicts[0].level),
        "coverage95": _coverage(verdicts, 0.0),
    }


def _planted(task: str, indices: range, effect: float, sd: float, study: Any) -> dict[str, Any]:
    """Studies with a true effect of `effect` times sd."""
    verdicts = [study(index, truth=effect * sd) for index in indices]
    names = [verdict.verdict for verdict in verdicts]
    return {
        "what": f"{task}, test_score: planted effect of {effect:g} sd",
        "studies": len(indices),
        "power": _rate(names.count(HELPS), len(indices), promised=power(effect, PAIRS, verdicts[0].level)),
        "wrong_direction": _rate(names.count(HURTS), len(indices), at_most=verdicts[0].level / 2),
        "coverage95": _coverage(verdicts, effect * sd),
    }


def _tuned(studies: int, workers: int | None) -> list[dict[str, Any]]:
    """Real A/A studies in which each arm is tuned, with few and with more tuning seeds."""
    import joblib

    jobs = (joblib.delayed(_tuned_verdicts)(index) for index in range(studies))
    found = joblib.Parallel(n_jobs=workers or joblib.cpu_count())(jobs)
    return [
        {
            "what": f"real, test_score: A/A, each arm tuned on {count} seeds",
            "studies": studies,
            "false_alarm": _rate(sum(study[i][0] in (HELPS, HURTS) for study in found), studies, at_most=ALPHA),
            "arms_at_the_same_rate": _rate(sum(study[i][1] for study in found), studies),
        }
        for i, count in enumerate(TUNE_SEEDS)
    ]


def _tuned_verdicts(index: int) -> list[tuple[str, bool]]:
    """Per number of tuning seeds: the verdict, and whether both arms got one rate."""
    import torch

    torch.set_num_threads(REAL_TASK.threads)
    known: dict[str, RunRecord] = {}

    def once(task: Any, methods: Any, **call: Any) -> RunRecord:
        key = json.dumps({name: call[name] for name in ("seed", "lr", "salt", "test")}, sort_keys=True)
        if key not in known:
            known[key] = run(task, methods, **call)
        return known[key]

    found = []
    for count in TUNE_SEEDS:
        first = 10**6 + index * max(TUNE_SEEDS)
        study = _real_study(index, once, rates=TUNE_RATES, tune_seeds=range(first, first + count))
        assert study.tuned is not None
        found.append((study.verdict("other").verdict, len(set(study.tuned.rates.values())) == 1))
    return found


def _three_arms(studies: int) -> dict[str, Any]:
    """Any false alarm among three A/A arms."""
    arms = ("a", "b", "c")
    found = [_simulated_study(index, arms) for index in range(studies)]
    alarms = sum(any(verdict.verdict in (HELPS, HURTS) for verdict in study.verdicts()) for study in found)
    level = found[0].plan.level(1)
    return {
        "what": "simulated, test_score: three A/A arms",
        "studies": studies,
        "any_false_alarm": _rate(alarms, studies, at_most=level),
    }


def _three_looks(studies: int) -> dict[str, Any]:
    """A/A studies extended by half their seeds, twice, as long as they are undecided."""
    alarms = 0
    for index in range(studies):
        study = _simulated_study(index, ("other",))
        while study.verdict("other").verdict not in (HELPS, HURTS) and study.look < 3:
            study.extend(PAIRS // 2)
        alarms += study.verdict("other").verdict in (HELPS, HURTS)
    return {
        "what": "simulated, test_score: A/A, extended twice while undecided",
        "studies": studies,
        "false_alarm_over_looks": _rate(alarms, studies, at_most=ALPHA),
    }


def _at_the_margin(studies: int) -> dict[str, Any]:
    """A true difference of exactly the margin, for which "no difference" is wrong; and none, for which it is right."""
    margin = 2 * PAIR_SD
    names = [_simulated(i, truth=margin, margin=margin).verdict for i in range(studies)]
    equal = [_simulated(i, margin=margin).verdict for i in range(studies)]
    return {
        "what": "simulated, test_score: margin of 2 sd",
        "studies": studies,
        "no_difference_though_at_margin": _rate(names.count(NO_DIFFERENCE), studies, at_most=0.05),
        "no_difference_and_equal": _rate(
            equal.count(NO_DIFFERENCE), studies, promised=equivalence_power(0.0, 2.0, PAIRS)
        ),
    }


def _coverage(verdicts: Sequence[Verdict], truth: float) -> dict[str, Any]:
    # The shift of a planted effect is exact up to rounding, and a tie with the truth is covered.
    inside = sum(v.ci95[0] - 1e-12 <= truth <= v.ci95[1] + 1e-12 for v in verdicts)
    return _rate(inside, len(verdicts), at_least=1 - attained_level(0.05, PAIRS))


def _rate(count: int, studies: int, **promise: float) -> dict[str, Any]:
    """A measured rate with its Wilson interval, and what it should be."""
    return {"rate": count / studies, "count": count, "wilson95": list(wilson_interval(count, studies)), **promise}


def _seeds(index: int) -> range:
    # Room for two extensions, so that no two studies share a seed.
    return range(2 * index * PAIRS, (2 * index + 1) * PAIRS)


def _simulated(index: int, *, metric: str = "test_score", truth: float = 0.0, margin: float = TINY_MARGIN) -> Verdict:
    return _simulated_study(index, ("other",), metric=metric, truth=truth, margin=margin).verdict("other")


def _simulated_study(
    index: int, others: Sequence[str], *, metric: str = "test_score", truth: float = 0.0, margin: float = TINY_MARGIN
) -> Study:
    task = SimulatedTask(effects=dict.fromkeys(others, truth))
    tuning: dict[str, Any] = {"rates": [task.best_lr], "tune_seeds": 0}
    if metric == "steps_to_target":
        tuning = {"tune_seeds": [10**9 + 2 * index, 10**9 + 2 * index + 1]}
    return compare(
        task,
        {"base": [], **{arm: [] for arm in others}},
        salts={arm: f"{SALT} of {arm}" for arm in others},
        seeds=_seeds(index),
        metric=metric,
        margin=margin,
        alpha=ALPHA,
        run=simulated_run,
        workers=1,
        **tuning,
    )


def _real(
    pool: Mapping[tuple[int, str], Any], index: int, *, metric: str = "test_score", truth: float = 0.0
) -> Verdict:
    replay = functools.partial(_replay, pool, truth)
    return _real_study(index, replay, rates=[REAL_TASK.optimizer.lr], tune_seeds=0, metric=metric).verdict("other")


def _real_study(index: int, run: Any, *, metric: str = "test_score", **tuning: Any) -> Study:
    return compare(
        REAL_TASK,
        {"base": [], "other": []},
        salts={"other": SALT},
        seeds=range(index * PAIRS, (index + 1) * PAIRS),
        metric=metric,
        margin=TINY_MARGIN,
        alpha=ALPHA,
        run=run,
        workers=1,
        **tuning,
    )


def _real_runs(studies: int, workers: int | None) -> dict[tuple[int, str], Any]:
    """The records of `pliant.train.run` by seed and salt; planted effects are added to them when they are replayed."""
    pool: dict[tuple[int, str], Any] = {}

    def save(key: Key, row: Mapping[str, Any]) -> None:
        pool[key.seed, key.salt] = row

    def fail(key: Key, attempts: int, error: str) -> None:
        raise InputError(f"{key} failed after {attempts} attempts: {error}")

    rate = REAL_TASK.optimizer.lr
    keys = [Key("compare", "base", rate, seed, salt) for seed in range(studies * PAIRS) for salt in ("", SALT)]
    Runner(run, REAL_TASK, {"base": []}, workers).execute(keys, save=save, fail=fail)
    return pool


def _replay(pool: Mapping[tuple[int, str], Any], truth: float, task: Any, methods: Any, **call: Any) -> RunRecord:
    record = RunRecord.from_json(pool[call["seed"], call["salt"]])
    assert record.test_score is not None
    shift = truth if call["arm"] == "other" else 0.0
    return dataclasses.replace(record, arm=call["arm"], test_score=record.test_score + shift)


def lines(result: Mapping[str, Any]) -> list[str]:
    """One line a rate: measured, its sampling error, and what it should be."""
    found = []
    for block in result["blocks"]:
        for name, rate in block.items():
            if isinstance(rate, dict):
                low, high = rate["wilson95"]
                promise = ", ".join(f"{k.replace('_', ' ')} {rate[k]:.3f}" for k in PROMISES if k in rate)
                measured = f"{name} {rate['rate']:.3f} (95 % {low:.3f} to {high:.3f})"
                found.append(f"{block['what']}, {block['studies']} studies: {measured}; {promise}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--workers", type=int, help="processes for the real runs (default: one per core)")
    options = parser.parse_args(arguments)
    result = selftest(options.workers)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(result)))


if __name__ == "__main__":
    main()
