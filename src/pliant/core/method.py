"""The contract of a method: one frozen dataclass of settings, and the parts it may fill.

A method never holds state. Whatever changes during training is a parameter or buffer of the edited module, so it is
saved, copied, moved and synchronised with the model.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from .errors import SettingError, nearest
from .fields import conform, hints

if TYPE_CHECKING:
    from .context import Context
    from .edits import Edits

SCHEMA = 1
"""Version of the JSON form of methods; part of every identity."""


class Phase(enum.IntEnum):
    """When a method is applied. A Stack sorts by phase, then by name: the user's order never matters."""

    REPLACE = 10
    """exchanges modules (activations, layers)"""
    SITE = 20
    """attaches modules to the outputs of layers (normalisations)"""
    GATE = 30
    """rewrites residual blocks"""
    CHAIN = 40
    """reparametrises tensors"""
    VALUES = 50
    """sets initial values in what is there by now"""
    OBJECTIVE = 60
    """changes only the loss or the step"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How the optimizer treats one parameter.

    lr_scale: multiplies the learning rate; decay: whether weight decay may act;
    owned: the method's `before_step` updates the parameter and clears its gradient.
    """

    lr_scale: float = 1.0
    decay: bool = True
    owned: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """Facts about a method that the Stack, the documents and the battery use.

    refuses: tag of another method -> why they cannot share a stack; by_site: those of these tags that only clash where
    both work on one place, so that two methods with `where` may meet; notes: tag -> remark for the report.
    off: settings under which the edited model is bitwise the base model (None: there are none).
    function: whether applying the method preserves what the model computes, given `preserving` settings.
    compile: "whole" (fullgraph), "parts" (gates in Python, each part fullgraph) or "before" (refuses compiled models).
    processes: data parallel runs equal one process ("exact"), differ by rank ("per_rank") or need statistics
    synchronised ("needs_sync"). accumulation: micro-batches equal the big batch ("exact") or not ("per_batch").
    example: net of `pliant.testing.nets` and the settings with which the battery tries the method on it;
    companions: methods that must be applied with it in the battery, by registry name.
    """

    title: str
    paper: str
    summary: str
    phase: Phase
    tags: frozenset[str] = frozenset()
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    by_site: frozenset[str] = frozenset()
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layer: str | None = None
    function: Literal["preserves", "changes"] = "changes"
    preserving: Mapping[str, Any] | None = None
    off: Mapping[str, Any] | None = None
    compile: Literal["whole", "parts", "before"] = "whole"
    processes: Literal["exact", "per_rank", "needs_sync"] = "exact"
    accumulation: Literal["exact", "per_batch"] = "exact"
    may_skip_parameters: bool = False
    example: str = "mlp"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    companions: tuple[str, ...] = ()


class Setting:
    """Base of nested frozen dataclasses that may stand in a method's field; found again by class name."""

    kinds: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Setting.kinds[cls.__name__] = cls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods. Subclasses are frozen keyword-only dataclasses with a class attribute `meta`."""

    meta: ClassVar[Meta]

    def __post_init__(self) -> None:
        annotations = hints(type(self))
        for field in dataclasses.fields(self):
            where = f"{type(self).__name__}.{field.name}"
            value = _canonical(getattr(self, field.name), where)
            object.__setattr__(self, field.name, conform(value, annotations[field.name], where))
        self.validate()

    def __call__(self, *_: Any, **__: Any) -> Any:
        layer = f"; the layer is {self.meta.layer}" if self.meta.layer else ""
        raise TypeError(
            f"{type(self).__name__} is a method, not a layer: put it in pliant.Stack(...) and apply it{layer}"
        )

    @property
    def name(self) -> str:
        """The registry's name: the file the method lives in."""
        return type(self).__module__.rpartition(".")[2]

    # -- the parts; each is inherited empty ------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise SettingError where a field has an impossible value."""

    def plan(self, model: nn.Module, ctx: Context) -> Edits:
        """What would change. Mutates nothing."""
        from .edits import Edits

        return Edits()

    def calibrate(self, model: nn.Module, ctx: Context, when: Literal["start", "end"]) -> None:
        """Set values in tensors the edits declared: after apply ("start"), before evaluation ("end")."""

    def groups(self, model: nn.Module) -> dict[nn.Parameter, Rule]:
        """How the optimizer must treat this method's parameters."""
        return {}

    def terms(self, model: nn.Module) -> dict[str, Tensor]:
        """Scalars added to the loss, computed from detached moments and parameters."""
        return {}

    def loss(self, base: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A replacement of the base loss; at most one method in a stack may have one."""
        return base

    def on_forward(self, model: nn.Module, ctx: Context) -> None:
        """Once per training forward, before it, on the host: draw gates, reset moments."""

    def before_step(self, model: nn.Module, ctx: Context) -> None:
        """Before the optimizer's step. Read gradients with `ctx.gradient(p)`: they may be scaled under AMP."""

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """After the optimizer's step: constraints, masks."""

    def advance(self, model: nn.Module, ctx: Context, batch: Any) -> Any:
        """Between two steps: change the structure (growth). Returns what `replay` needs (JSON), or None for no change.

        The method fits `ctx.optimizer` to what it changed (`core.migrate`).
        """

    def replay(self, model: nn.Module, ctx: Context, entry: Any) -> None:
        """Makes a change of `advance` again on a fresh model, structure only: values come from the checkpoint."""

    def bake(self, model: nn.Module, ctx: Context) -> None:
        """Finalize, stage 1: replace reparametrisations by plain values."""

    def fold(self, model: nn.Module, ctx: Context) -> None:
        """Finalize, stage 2: fold what is linear into neighbours, or claim it (`ctx.claims`)."""

    def pack(self, model: nn.Module, ctx: Context) -> None:
        """Finalize, stage 3: pack or prune."""

    # -- data form -------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """{"method": name, field: value, ...}: all fields, JSON types only."""
        fields = {f.name: encode(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"method": self.name, **fields}

    @property
    def identity(self) -> str:
        """SHA-256 of the canonical JSON with the schema version."""
        return digest({"schema": SCHEMA, **self.to_json()})

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> Method:
        """The method from its JSON fields; unknown fields are refused with the nearest right name."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in settings:
            if key not in known:
                raise SettingError(f"{cls.__name__} has no setting {key!r}: {nearest(key, known)}")
        return cls(**{key: decode(value, f"{cls.__name__}.{key}") for key, value in settings.items()})


def overrides(method: Method, part: str) -> bool:
    """Whether a method fills a part itself."""
    return getattr(type(method), part) is not getattr(Method, part)


def digest(data: Any) -> str:
    """SHA-256 of the canonical JSON of `data`."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def encode(value: Any) -> Any:
    """A field's value as JSON types; nested settings carry their class name under "setting"."""
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, Setting):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        return {"setting": type(value).__name__, **{f.name: encode(getattr(value, f.name)) for f in fields}}
    return value


def decode(value: Any, where: str = "a setting") -> Any:
    """The inverse of `encode`; `where` names the field in errors."""
    if isinstance(value, list | tuple):
        return tuple(decode(item, where) for item in value)
    if isinstance(value, Mapping):
        kind = value.get("setting")
        if kind not in Setting.kinds:
            raise SettingError(f"{where} holds an unknown nested setting {kind!r}: {nearest(str(kind), Setting.kinds)}")
        settings = {key: decode(item, where) for key, item in value.items() if key != "setting"}
        try:
            return Setting.kinds[kind](**settings)
        except TypeError as error:
            raise SettingError(f"{where}: {error}") from error
    return value


def _canonical(value: Any, where: str) -> Any:
    """Lists become tuples; anything that has no JSON form is refused."""
    if value is None or isinstance(value, bool | int | float | str | Setting):
        return value
    if isinstance(value, list | tuple):
        return tuple(_canonical(item, where) for item in value)
    raise SettingError(
        f"{where} is a {type(value).__name__}; a method's fields are numbers, strings, tuples of these or nested "
        'settings, so that it can be stored and compared (name a callable as "module:name")'
    )
