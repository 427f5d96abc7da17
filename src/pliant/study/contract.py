"""What a study needs from a task and from the function that runs it; the only place that rebuilds methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Row = dict[str, Any]
"""A run's record in its JSON form (`pliant.train.RunRecord.to_json`)."""


class TaskLike(Protocol):
    """The part of `pliant.train.Task` that a study reads."""

    @property
    def steps(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def eval_every(self) -> int | None: ...
    @property
    def worst_score(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    def to_json(self) -> dict[str, Any]: ...


class Record(Protocol):
    """The part of `pliant.train.RunRecord` that a study reads."""

    def to_json(self) -> Row: ...


class Run(Protocol):
    """One training run; must be picklable. `pliant.train.run` is the default."""

    def __call__(
        self,
        task: Any,
        methods: Sequence[Any],
        *,
        seed: int,
        lr: float | None = None,
        arm: str = "",
        phase: str = "train",
        salt: str = "",
        test: bool = False,
    ) -> Record: ...


def default_run() -> Run:
    """`pliant.train.run`, imported when a study starts."""
    from pliant import train

    return train.run


def load_task(values: Mapping[str, Any]) -> TaskLike:
    """The task of a stored study."""
    from pliant import train

    return train.Task.from_json(values)


def rebuild(stack: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The method objects of an arm's JSON."""
    from pliant.core.registry import methods_from_json

    return list(methods_from_json(stack))


def complete(method: Mapping[str, Any] | str) -> dict[str, Any]:
    """A method's JSON with all its fields: two ways to write one method must give one plan."""
    from pliant.core.registry import method_from_json

    return method_from_json(method).to_json()


def describe(task: Mapping[str, Any]) -> str:
    """The conditions under which a verdict holds, in a few words.

    >>> describe({"data": "digits", "model": {"name": "mlp", "width": 100}, "steps": 600, "batch_size": 60})
    'digits, model mlp, 600 steps of batch 60'
    """
    data, model = _name(task.get("data"), "digest"), _name(task.get("model"), "callable")
    return f"{data}, model {model}, {task.get('steps')} steps of batch {task.get('batch_size')}"


def _name(value: Any, key: str) -> str:
    if isinstance(value, Mapping):
        value = value.get("name", value.get(key, "given as a table"))
    return str(value)[:40]
