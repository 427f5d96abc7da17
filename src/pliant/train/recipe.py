"""A recipe: a task, a stack for `train`, arms and a plan for `compare`, in one TOML file.

version = 1
data = "digits"
model = {name = "mlp", hidden = [100, 100, 100]}

[train]
steps = 600
batch_size = 60
lr = 1.0

[methods]
stack = ["batch_norm"]

[arms]
base = []
bn = ["batch_norm"]
wn = [{method = "weight_norm", init_scale = 1.0}]

[study]
seeds = 8
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant.core.errors import InputError, SettingError, nearest
from pliant.core.method import Method
from pliant.core.stack import Stack
from pliant.data import Augment

from . import checks, toml
from .recipe_default import DEFAULT
from .task import Optimizer, Schedule, Task

VERSION = 1
_TABLES = ("train", "augment", "methods", "arms", "study")
_TOP = ("version", "title", "data", "model", *_TABLES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySettings:
    """The plan of `compare`, as its `make_plan` takes it.

    base: the arm all others are compared with; seeds, tune_seeds: how many, or which; rates: the learning-rate grid
    (None: around the task's own); metric: "steps_to_target", "test_score" or "valid_score"; target: validation score to
    reach (None: from the base's tuning runs); margin: smallest difference that matters (None: the metric's default).
    """

    base: str = "base"
    seeds: int | tuple[int, ...] = 8
    tune_seeds: int | tuple[int, ...] = 2
    rates: tuple[float, ...] | None = None
    metric: str = "steps_to_target"
    target: float | None = None
    margin: float | None = None
    alpha: float = 0.05
    looks: int | None = None

    def __post_init__(self) -> None:
        for field in ("seeds", "tune_seeds"):
            value = getattr(self, field)
            if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
                object.__setattr__(self, field, tuple(value))
            else:
                checks.whole(self, field, 1)
        if self.rates is not None:
            checks.reals(self, "rates", 0, float("inf"))
        checks.choice(self, "metric", ("steps_to_target", "test_score", "valid_score"))
        for field in ("target", "margin"):
            if getattr(self, field) is not None:
                checks.real(self, field, 0, float("inf"), open_high=True)
        checks.real(self, "alpha", 0, 1, open_low=True, open_high=True)
        if self.looks is not None:
            checks.whole(self, "looks", 1)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `pliant.compare`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


# The keys of [train] in their order, each with the settings class and field that it fills. Optimizer and schedule are
# flat there: `train.optimizer = "adam"` and `train.lr = 0.01` read better than two more tables.
_SCALARS = [f.name for f in dataclasses.fields(Task) if f.name not in ("data", "model", "augment")]
_TRAIN: dict[str, tuple[type, str]] = {}
for _name in _SCALARS:
    _nested = {"optimizer": Optimizer, "schedule": Schedule}.get(_name)
    if _nested is None:
        _TRAIN[_name] = (Task, _name)
    else:
        _TRAIN |= {_name if f.name == "name" else f.name: (_nested, f.name) for f in dataclasses.fields(_nested)}
_PATHS = {
    **{f"{owner.__name__}.{field}": f"train.{key}" for key, (owner, field) in _TRAIN.items()},
    **{f"Augment.{f.name}": f"augment.{f.name}" for f in dataclasses.fields(Augment)},
    **{f"StudySettings.{f.name}": f"study.{f.name}" for f in dataclasses.fields(StudySettings)},
    "Task.data": "data",
    "Task.model": "model",
}
_KNOWN: dict[str, Sequence[str]] = {
    "train": list(_TRAIN),
    "augment": [f.name for f in dataclasses.fields(Augment)],
    "methods": ["stack"],
    "study": [f.name for f in dataclasses.fields(StudySettings)],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """title: for the report; task; methods: the stack of `train`; arms: the stacks of `compare`; study: its plan."""

    task: Task
    title: str = ""
    methods: tuple[Method, ...] = ()
    arms: Mapping[str, tuple[Method, ...]] = dataclasses.field(default_factory=dict)
    study: StudySettings = StudySettings()

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in a TOML file, after overrides such as "train.lr=0.1" (values are TOML; bare words are strings).

        InputError names the file, the full path of a wrong key and the nearest right one.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the recipe {path} cannot be read ({error}); check the name") from error
        return cls.from_toml(text, overrides, name=str(path))

    @classmethod
    def default(cls, overrides: Sequence[str] = ()) -> Recipe:
        """The embedded recipe: digits, a sigmoid net of 3 x 100 units, three normalisations against none."""
        return cls.from_toml(DEFAULT, overrides, name="the default recipe")

    @classmethod
    def from_toml(cls, text: str, overrides: Sequence[str] = (), *, name: str = "the recipe") -> Recipe:
        """The recipe in a TOML text; `name` names it in errors."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{name} is no valid TOML: {error}") from error
        for override in overrides:
            _override(values, override)
        _check_version(values, name)
        _check_keys(values, name)
        try:
            return _build(values)
        except InputError as error:
            raise type(error)(f"{name}: {_with_paths(str(error))}") from error

    def to_toml(self) -> str:
        """The fully resolved recipe, every default written out. InputError for a task with objects in memory."""
        task = self.task.to_json()
        for field in ("data", "model"):
            if isinstance(task[field], Mapping) and not task[field].get("name"):
                raise InputError(f"Task.{field} is an object in memory, which a recipe cannot hold; name it instead")
        nested = {Task: task, Optimizer: task["optimizer"], Schedule: task["schedule"]}
        values: dict[str, Any] = {"version": VERSION, "title": self.title, "data": task["data"], "model": task["model"]}
        values["train"] = {key: nested[owner][field] for key, (owner, field) in _TRAIN.items()}
        if task["augment"] is not None:
            values["augment"] = task["augment"]
        values["methods"] = {"stack": Stack(*self.methods).to_json()}
        values["arms"] = {arm: Stack(*methods).to_json() for arm, methods in self.arms.items()}
        values["study"] = checks.plain(self.study)
        return toml.dumps(values)


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set {override!r}: expected key.key=value, for example train.lr=0.1")
    table = values
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {override!r}: {key!r} is {inner!r}, not a table; set {key} itself")
        table = inner
    table[keys[-1]] = _value(text.strip(), override)


def _value(text: str, override: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        # A word needs no quotes on a command line; whatever starts like a TOML value was meant as one.
        if re.fullmatch(r"[A-Za-z_][\w.:/+-]*", text):
            return text
        raise InputError(f"--set {override!r}: {text!r} is no TOML value ({error})") from error


def _check_version(values: Mapping[str, Any], name: str) -> None:
    version = values.get("version")
    if version is None:
        raise InputError(f"{name} has no version; add the line: version = {VERSION}")
    if version != VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > VERSION
        remedy = "install a newer pliant, or rewrite it" if newer else "rewrite it"
        raise InputError(
            f"{name} is written for recipe version {version!r}, this pliant reads version {VERSION}; {remedy} like "
            "pliant.train.Recipe.default().to_toml()"
        )


def _check_keys(values: Mapping[str, Any], name: str) -> None:
    for key in values:
        if key not in _TOP:
            raise InputError(f"{name}: unknown key {key!r}: {_suggest(key, '', _TOP)}")
    for table in _TABLES:
        content = values.get(table, {})
        if not isinstance(content, Mapping):
            raise InputError(f"{name}: {table} is {content!r}; expected a table [{table}]")
        for key in content:
            if table in _KNOWN and key not in _KNOWN[table]:
                raise InputError(f"{name}: unknown key '{table}.{key}': {_suggest(key, table, _KNOWN[table])}")


def _suggest(key: str, table: str, known: Sequence[str]) -> str:
    """The same key in another table, or the nearest in this one."""
    for other, keys in _KNOWN.items():
        if key in keys:
            return f"did you mean '{other}.{key}'?"
    dot = f"{table}." if table else ""
    return nearest(f"{dot}{key}", [f"{dot}{right}" for right in known])


def _build(values: Mapping[str, Any]) -> Recipe:
    sections: dict[type, dict[str, Any]] = {Task: {}, Optimizer: {}, Schedule: {}}
    for key, value in values.get("train", {}).items():
        owner, field = _TRAIN[key]
        sections[owner][field] = value
    task = {"data": values.get("data"), "model": values.get("model"), **sections[Task]}
    missing = [path for path, found in (("data", "data"), ("model", "model")) if task[found] is None]
    missing += [f"train.{key}" for key in ("steps", "batch_size") if key not in task]
    if missing:
        raise SettingError(f"lacks {', '.join(missing)}; pliant.train.Recipe.default().to_toml() shows a whole recipe")
    settings = StudySettings(**values.get("study", {}))
    arms = {str(arm): _methods(entries, f"arms.{arm}") for arm, entries in values.get("arms", {}).items()}
    if arms and settings.base not in arms:
        raise SettingError(
            f"study.base is {settings.base!r}, which is none of the arms: {nearest(settings.base, arms)}"
        )
    return Recipe(
        title=str(values.get("title", "")),
        task=Task(
            **task,
            optimizer=Optimizer(**sections[Optimizer]),
            schedule=Schedule(**sections[Schedule]),
            augment=values.get("augment"),
        ),
        methods=_methods(values.get("methods", {}).get("stack", []), "methods.stack"),
        arms=arms,
        study=settings,
    )


def _methods(entries: Any, path: str) -> tuple[Method, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, str | Mapping) for entry in entries):
        raise SettingError(f'{path} is {entries!r}; expected a list of methods such as ["batch_norm"]')
    try:
        return Stack.from_json(entries).methods
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def _with_paths(text: str) -> str:
    """The message with the recipe's key ("train.lr") for the settings' field ("Optimizer.lr") that it starts with."""
    field = re.match(r"\w+\.\w+", text)
    return _PATHS.get(field.group(), field.group()) + text[field.end() :] if field else text
