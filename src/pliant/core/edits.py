"""What a plan says: the edits a method would make, and the places it leaves alone with the reason.

An edit is made on the copy that a Stack rehearses on and replayed on the user's model, so it holds paths and
factories, never references to modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from .errors import ConflictError, NoMatchError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """One change of a model. path: of the module that changes; detail: the change in words.

    slot: the place it fills at that path; a slot is filled once. tensors: full names of the tensors whose values
    `calibrate` may set.
    """

    path: str
    detail: str
    tensors: tuple[str, ...] = ()

    @property
    def slot(self) -> str | None:
        return None

    def apply(self, model: nn.Module) -> None:
        raise TypeError(f"{type(self).__name__} must define apply(model)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values(Edit):
    """Only values change: `calibrate` sets the named tensors."""

    def apply(self, model: nn.Module) -> None:
        """Nothing of the structure changes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replace(Edit):
    """Exchanges the module at `path` for `make(old)`. The root cannot be exchanged: the user holds it."""

    make: Callable[[nn.Module], nn.Module]

    @property
    def slot(self) -> str | None:
        return "module"

    def apply(self, model: nn.Module) -> None:
        parent, _, name = self.path.rpartition(".")
        if not name:
            raise NoMatchError("the model itself cannot be replaced in place; wrap it in a module and apply to that")
        old = model.get_submodule(self.path)
        new = make_like(old, lambda: self.make(old))
        model.get_submodule(parent)._modules[name] = new


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropBias(Edit):
    """Removes a bias that a following mean subtraction cancels."""

    def apply(self, model: nn.Module) -> None:
        module = model.get_submodule(self.path)
        module.register_parameter("bias", None)


@dataclasses.dataclass(frozen=True)
class Skip:
    """A place that a method could have changed and did not."""

    path: str
    reason: str


@dataclasses.dataclass(kw_only=True)
class Edits:
    """A method's plan. notes: remarks for the report."""

    changes: list[Edit] = dataclasses.field(default_factory=list)
    skipped: list[Skip] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def require(self, what: str, remedy: str) -> Edits:
        """Itself, or NoMatchError saying what was looked for, why each candidate was passed over, and the remedy."""
        if self.changes:
            return self
        reasons = "; ".join(f"{skip.path or 'the model'}: {skip.reason}" for skip in self.skipped[:8])
        passed = f" (passed over: {reasons})" if reasons else ""
        raise NoMatchError(f"found no {what}{passed}; {remedy}")

    def apply(self, model: nn.Module, filled: dict[tuple[str, str], str], owner: str) -> None:
        """Makes the changes. filled: who has filled which slot of which path so far; it is updated."""
        for edit in self.changes:
            if edit.slot is not None:
                taken = filled.get((edit.path, edit.slot))
                if taken is not None:
                    raise ConflictError(
                        f"{owner} and {taken} both want the {edit.slot!r} slot of {edit.path!r}; "
                        "keep one of them there with where=[...]"
                    )
                filled[edit.path, edit.slot] = owner
            edit.apply(model)


def make_like(near: nn.Module, make: Callable[[], Any]) -> Any:
    """A new module on the device, in the dtype and in the mode of the module it is put beside."""
    module = make()
    for tensor in [*near.parameters(), *near.buffers()]:
        if tensor.is_floating_point():
            module.to(device=tensor.device, dtype=tensor.dtype)
            break
    return module.train(near.training)
