"""What is fixed before anything runs: one frozen plan and its hash."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pliant.core.errors import InputError, nearest
from pliant.core.method import digest

from .contract import TaskLike, complete
from .power import level_at_look, pairs_needed

SCHEMA = 1
"""Version of the plan's JSON form; part of its hash."""
METRICS = ("steps_to_target", "test_score", "valid_score")
RATE_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""The default grid, around the task's own learning rate."""
FIRST_TUNE_SEED = 1_000
STEPS_MARGIN = 0.05
"""Default margin of "no difference" in steps to target: this fraction of the budget."""
ACCURACY_MARGIN = 0.005
"""Default margin of "no difference" in accuracy: half a point."""

Arms = Mapping[str, Sequence[Any]] | Sequence[tuple[str, Sequence[Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The plan of a study, all JSON types. `hash` is the SHA-256 of its canonical JSON.

    task: the task's JSON; arms: name -> the methods' JSON; base: the arm all others are compared with;
    salts: arm -> salt, other random keys for an arm in the same pair (for A/A studies);
    seeds: of the compared runs; tune_seeds: of the tuning runs, disjoint from `seeds`; rates: the learning-rate grid;
    metric: "steps_to_target", "test_score" or "valid_score" (the best of a run); target: validation score to reach, or
    None for the base's median best in its tuning runs; margin: smallest difference that matters, in the metric's unit;
    alpha: chance of a false alarm over all looks; looks: their planned number, None for no bound (look k is tested at
    alpha / 2^k).
    """

    task: dict[str, Any]
    arms: dict[str, list[dict[str, Any]]]
    base: str
    salts: dict[str, str]
    seeds: tuple[int, ...]
    tune_seeds: tuple[int, ...]
    rates: tuple[float, ...]
    metric: str
    target: float | None
    margin: float
    alpha: float = 0.05
    looks: int | None = None

    def __post_init__(self) -> None:
        _check_arms(self)
        _check_numbers(self)
        _check_seeds(self)

    @property
    def others(self) -> list[str]:
        """The arms compared with the base, in the given order."""
        return [arm for arm in self.arms if arm != self.base]

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON with the schema version."""
        return digest({"schema": SCHEMA, **self.to_json()})

    def level(self, look: int) -> float:
        """The level at which look `look` (1, 2, ...) is tested."""
        return level_at_look(self.alpha, look, self.looks)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), **{name: list(getattr(self, name)) for name in _TUPLES}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StudyPlan:
        return cls(**{**values, **{name: tuple(values[name]) for name in _TUPLES}})


_TUPLES = ("seeds", "tune_seeds", "rates")


def make_plan(
    task: TaskLike,
    arms: Arms,
    *,
    base: str = "base",
    salts: Mapping[str, str] | None = None,
    seeds: int | Iterable[int] = 8,
    tune_seeds: int | Iterable[int] = 2,
    rates: Iterable[float] | None = None,
    metric: str = "steps_to_target",
    target: float | None = None,
    margin: float | None = None,
    alpha: float = 0.05,
    looks: int | None = None,
) -> StudyPlan:
    """The plan with its defaults filled in; see `StudyPlan` for the fields.

    arms: name -> methods (objects with `to_json`, or their JSON). seeds, tune_seeds: the seeds, or how many
    (0, 1, ... and 1000, 1001, ...). rates: default the task's own rate times 0.1, 0.3, 1, 3, 10.
    margin: default 5 % of the budget's steps, or half a point of accuracy.
    """
    return StudyPlan(
        task=task.to_json(),
        arms=_arms_json(arms),
        base=base,
        salts=dict(salts or {}),
        seeds=_seeds(seeds, 0),
        tune_seeds=_seeds(tune_seeds, FIRST_TUNE_SEED),
        rates=_default_rates(task) if rates is None else tuple(sorted(float(rate) for rate in rates)),
        metric=metric,
        target=None if target is None else float(target),
        margin=_default_margin(task, metric) if margin is None else float(margin),
        alpha=float(alpha),
        looks=looks,
    )


def differences(stored: StudyPlan, asked: StudyPlan) -> list[str]:
    """What differs between two plans, one line a field: "rates: [0.1, 1.0] in the store, [0.1] asked for"."""
    old, new = _flatten(stored.to_json()), _flatten(asked.to_json())
    lost = "nothing"
    return [
        f"{path}: {old.get(path, lost)} in the store, {new.get(path, lost)} asked for"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, lost) != new.get(path, lost)
    ]


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        parts = [_flatten(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}
    return {path: value}


def _seeds(value: int | Iterable[int], first: int) -> tuple[int, ...]:
    return tuple(range(first, first + value)) if isinstance(value, int) else tuple(value)


def _default_rates(task: TaskLike) -> tuple[float, ...]:
    lr = task.to_json().get("optimizer", {}).get("lr")
    if lr is None:
        raise InputError("the task names no learning rate to build a grid around: give rates=[...]")
    return tuple(float(f"{lr * factor:.6g}") for factor in RATE_FACTORS)


def _default_margin(task: TaskLike, metric: str) -> float:
    if metric == "steps_to_target":
        return STEPS_MARGIN * task.steps
    if task.unit != "accuracy":
        raise InputError(
            f"no default margin for scores in {task.unit!r}: give margin=, the smallest difference that matters"
        )
    return ACCURACY_MARGIN


def _arms_json(arms: Arms) -> dict[str, list[dict[str, Any]]]:
    pairs = list(arms.items()) if isinstance(arms, Mapping) else list(arms)
    seen: dict[str, str] = {}
    for name, _ in pairs:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"an arm is called {name!r}; arm names are non-empty strings")
        if name.strip().casefold() in seen:
            raise InputError(f"two arms have one name, {seen[name.strip().casefold()]!r} and {name!r}: rename one")
        seen[name.strip().casefold()] = name
    return {name: [_method_json(name, method) for method in methods] for name, methods in pairs}


def _method_json(arm: str, method: Any) -> dict[str, Any]:
    if isinstance(method, Mapping | str):
        return complete(method)
    if not hasattr(method, "to_json") or isinstance(method, type):
        raise InputError(f"arm {arm!r} holds {method!r}; expected methods, such as pliant.BatchNorm()")
    return dict(method.to_json())


def _check_arms(plan: StudyPlan) -> None:
    if plan.base not in plan.arms:
        raise InputError(f"the base arm {plan.base!r} is not among the arms: {nearest(plan.base, plan.arms)}")
    if not plan.others:
        raise InputError(f"the only arm is the base {plan.base!r}: add an arm to compare with it")
    for arm in plan.salts:
        if arm not in plan.others:
            raise InputError(
                f"a salt is given for {arm!r}, which is no arm beside the base: {nearest(arm, plan.others)}"
            )
    for first, second in itertools.combinations(plan.arms, 2):
        if plan.arms[first] == plan.arms[second] and plan.salts.get(first, "") == plan.salts.get(second, ""):
            raise InputError(
                f"arms {first!r} and {second!r} are the same methods with the same random keys, so every pair would "
                f"be a tie: change one, or ask for an A/A study with salts={{{second!r}: 'other'}}"
            )


def _check_numbers(plan: StudyPlan) -> None:
    if plan.metric not in METRICS:
        raise InputError(f"the metric is {plan.metric!r}: {nearest(plan.metric, METRICS)}")
    if not plan.rates or not all(math.isfinite(rate) and rate > 0 for rate in plan.rates):
        raise InputError(f"rates are {list(plan.rates)}; expected at least one positive number")
    if len(set(plan.rates)) < len(plan.rates):
        raise InputError(f"rates are {list(plan.rates)}; a rate is listed twice")
    if not (math.isfinite(plan.margin) and plan.margin > 0):
        raise InputError(f"margin is {plan.margin}; expected the smallest difference that matters, above 0")
    if not 0 < plan.alpha < 1:
        raise InputError(f"alpha is {plan.alpha}; expected a probability between 0 and 1, such as 0.05")
    if plan.looks is not None and plan.looks < 1:
        raise InputError(f"looks is {plan.looks}; expected at least 1, or None for no bound")


def _check_seeds(plan: StudyPlan) -> None:
    for name in ("seeds", "tune_seeds"):
        values = getattr(plan, name)
        if any(type(seed) is not int or seed < 0 for seed in values) or len(set(values)) < len(values):
            raise InputError(f"{name} are {list(values)}; expected different whole numbers of at least 0")
    shared = sorted(set(plan.seeds) & set(plan.tune_seeds))
    if shared:
        raise InputError(
            f"seeds {shared} are both tuned on and compared: tuning seeds must be others, or tuning is favoured"
        )
    if len(plan.seeds) < 2:
        raise InputError(f"{len(plan.seeds)} seed is no comparison: nothing tells the arms' difference from chance")
    needed = pairs_needed(plan.level(1), len(plan.others))
    if len(plan.seeds) < needed:
        looks = "" if plan.looks == 1 else " (the first of several looks; study.looks=1 plans one at all of alpha)"
        raise InputError(
            f"{len(plan.seeds)} seeds can never be significant: the smallest exact p is 2^(1-{len(plan.seeds)}), times "
            f"{len(plan.others)} compared arms by Holm's rule, and the level is {plan.level(1):g}{looks}: "
            f"give at least {needed} seeds"
        )
    tunes = len(plan.rates) > 1 or (plan.metric == "steps_to_target" and plan.target is None)
    if tunes and not plan.tune_seeds:
        raise InputError(
            "no tuning seeds, but a rate or target has to be chosen: give tune_seeds, or one rate and a target"
        )
