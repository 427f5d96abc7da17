"""What is learnt: data, model, optimizer and budget, as data that can be stored, compared and hashed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.core.errors import SettingError
from pliant.core.method import digest
from pliant.data import Augment, Dataset

from . import checks

SCHEMA = 1
"""Version of the JSON form; part of every identity."""

LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy}
METRICS = ("accuracy",)
INPUTS = ("standardise", "unit", "binarise", "none")
PRECISIONS = ("32", "bf16", "16")
DEVICES = ("cpu", "cuda")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One of torch's optimizers. lr: learning rate; momentum, nesterov: of sgd; betas: of adam and adamw."""

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        checks.choice(self, "name", ("sgd", "adam", "adamw"))
        checks.real(self, "lr", 0, math.inf, open_low=True, open_high=True)
        checks.real(self, "momentum", 0, 1, open_high=True)
        checks.flag(self, "nesterov")
        checks.real(self, "weight_decay", 0, math.inf, open_high=True)
        checks.reals(self, "betas", -1e-300, 1, count=2)
        if self.nesterov and self.momentum == 0:
            raise checks.refuse(self, "nesterov", True, "false without momentum: Nesterov's step looks along it")

    def build(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over parameter groups that already carry their rates and decays."""
        groups = list(groups)
        # The fused step is one call for all parameters, 2 to 4 times faster where there is state or decay; plain SGD on
        # the CPU gains nothing from it and loses 2 % of a small network's step.
        parameters = [parameter for group in groups for parameter in group["params"]]
        plain = self.name == "sgd" and self.momentum == 0 and self.weight_decay == 0
        fused = all(p.is_floating_point() and not (plain and p.device.type == "cpu") for p in parameters)
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return kind(groups, lr=self.lr, betas=self.betas, fused=fused)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate at step s of S = rate · factor(s, S).

    warmup: fraction of the steps over which the factor rises linearly to 1; after it, `constant` stays,
    `cosine` falls to 0 as (1 + cos(π·progress))/2, and `step` multiplies by `gamma` at each of the
    `milestones` (fractions of all steps).
    """

    name: str = "constant"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        checks.choice(self, "name", ("constant", "cosine", "step"))
        checks.real(self, "warmup", 0, 1, open_high=True)
        checks.reals(self, "milestones", 0, 1)
        checks.real(self, "gamma", 0, 1, open_low=True)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise checks.refuse(self, "milestones", self.milestones, "rising fractions")

    @property
    def moves(self) -> bool:
        """Whether the rate ever changes."""
        return self.name != "constant" or self.warmup > 0

    def factor(self, step: int, total: int) -> float:
        """The factor of step 0 ≤ step < total.

        >>> [round(Schedule(name="cosine").factor(s, 4), 3) for s in range(4)]
        [1.0, 0.854, 0.5, 0.146]
        """
        rise = round(self.warmup * total)
        if step < rise:
            return (step + 1) / rise
        if self.name == "cosine":
            return (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2
        if self.name == "step":
            return self.gamma ** sum(step >= mark * total for mark in self.milestones)
        return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A learning problem with its budget; the methods under study are no part of it.

    data: what `pliant.data.load` takes ("digits", "npz:FILE"), or a Dataset. model: what `pliant.models.build` takes: a
    name, a table with "name" and the model's own keys, or a callable that returns a module.
    steps: optimizer steps; batch_size: examples per step over all processes and micro-batches;
    accumulate: micro-batches a batch is split into (the step is the same, only memory changes).
    eval_every: steps between validations (default: a twentieth of all). worst_score: what a diverged run scores.
    augment: random crops and flips of training images, or None. valid_fraction, test_fraction: of the data where no
    official part exists. input: "standardise" (training part's mean and deviation), "unit" (uint8 / 255),
    "binarise" (1 from half of full scale on, else 0) or "none".
    calibration: training examples that methods may look at before the first step. precision: "32", "bf16" or "16".
    threads: torch's threads per process; they belong to the task, because sums depend on them.
    """

    data: str | Dataset
    model: Any
    steps: int
    batch_size: int
    accumulate: int = 1
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augment: Augment | None = None
    loss: str = "cross_entropy"
    metric: str = "accuracy"
    worst_score: float = 0.0
    eval_every: int | None = None
    valid_fraction: float = 0.2
    test_fraction: float = 0.2
    input: str = "standardise"
    calibration: int = 500
    precision: str = "32"
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        for field, kind in (("optimizer", Optimizer), ("schedule", Schedule)):
            object.__setattr__(self, field, checks.build(kind, getattr(self, field), f"Task.{field}"))
        if self.augment is not None:
            object.__setattr__(self, "augment", _augment(self.augment))
        for field in ("steps", "batch_size", "accumulate", "threads"):
            checks.whole(self, field, 1)
        checks.whole(self, "calibration", 2)
        if self.eval_every is None:
            object.__setattr__(self, "eval_every", max(1, self.steps // 20))
        checks.whole(self, "eval_every", 1)
        checks.choice(self, "loss", LOSSES)
        checks.choice(self, "metric", METRICS)
        checks.choice(self, "input", INPUTS)
        checks.choice(self, "precision", PRECISIONS)
        checks.choice(self, "device", DEVICES)
        checks.real(self, "worst_score", -math.inf, math.inf, open_low=True, open_high=True)
        checks.real(self, "valid_fraction", 0, 1, open_low=True, open_high=True)
        checks.real(self, "test_fraction", 0, 1, open_low=True, open_high=True)
        if self.valid_fraction + self.test_fraction >= 1:
            found = (self.valid_fraction, self.test_fraction)
            raise checks.refuse(
                self, "valid_fraction, test_fraction", found, "a sum below 1, so that training data remain"
            )
        if self.accumulate > self.batch_size:
            raise checks.refuse(self, "accumulate", self.accumulate, f"at most batch_size = {self.batch_size}")
        if self.precision == "16" and self.device == "cpu":
            raise checks.refuse(
                self, "precision", "16", '"bf16" or "32" on the CPU, which has no 16-bit float training'
            )
        if not isinstance(self.data, str | Dataset):
            raise checks.refuse(self, "data", self.data, 'a name such as "digits", or a pliant.data Dataset')
        if not (isinstance(self.model, str | Mapping) or callable(self.model)):
            raise checks.refuse(self, "model", self.model, "a name, a table or a callable that returns a module")

    @property
    def unit(self) -> str:
        """What the scores are measured in."""
        return self.metric

    @property
    def higher_is_better(self) -> bool:
        return True

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types. A dataset in memory is stored as its digest, a callable as its qualified name."""
        return {
            **{f.name: checks.plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "data"},
            "data": self.data if isinstance(self.data, str) else {"digest": self.data.digest},
            "model": _model_json(self.model),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, data: Any = None, model: Any = None) -> Task:
        """The task of `to_json`. data, model: the objects, where the JSON could store only their digest or name."""
        values = dict(values)
        for field, given, mark in (("data", data, "digest"), ("model", model, "callable")):
            stored = values.get(field)
            if given is not None:
                values[field] = given
            elif isinstance(stored, Mapping) and mark in stored:
                raise SettingError(
                    f"Task.{field} was an object in memory ({stored[mark]}); give it again: from_json(..., {field}=...)"
                )
        return checks.build(cls, values, "Task")

    @property
    def identity(self) -> str:
        """SHA-256 of the canonical JSON with the schema version."""
        return digest({"schema": SCHEMA, **self.to_json()})


def _augment(value: Any) -> Augment:
    """Augment from a table, its values checked first: it compares them unseen."""
    if isinstance(value, Mapping):
        crop, flip = value.get("crop", 0), value.get("flip", True)
        if type(crop) is not int or crop < 0:
            raise checks.refuse("Augment", "crop", crop, "a number of pixels, 0 for no crop")
        if not isinstance(flip, bool):
            raise checks.refuse("Augment", "flip", flip, "true or false")
    return checks.build(Augment, value, "Task.augment")


def _model_json(model: Any) -> Any:
    if isinstance(model, str | Mapping):
        return checks.plain(model)
    kind = model if hasattr(model, "__qualname__") else type(model)
    return {"callable": f"{kind.__module__}:{kind.__qualname__}"}
