"""One weight, one chain: source → mask → scale → quantise.

Several methods may want the same tensor. Each tensor has at most one parametrization, a `Chain`, whose slots are filled
once each and always run in this order, whatever the order of application. The chain's input, `original`, stays the very
Parameter that the layer had, so optimizers and references stay right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .edits import Edit, make_like
from .errors import ConflictError

SLOTS = ("source", "mask", "scale", "quantise")


class Chain(nn.Module):
    """weight = quantise(scale(mask(source(original)))), with the empty slots left out."""

    def fill(self, slot: str, part: nn.Module) -> None:
        if slot not in SLOTS:
            raise ConflictError(f"a chain has the slots {', '.join(SLOTS)}; {slot!r} is none of them")
        if slot in self._modules:
            raise ConflictError(f"the {slot!r} slot is taken by {type(self._modules[slot]).__name__}")
        self.add_module(slot, part)

    def forward(self, original: Tensor) -> Tensor:
        value = original
        for slot in SLOTS:
            part = self._modules.get(slot)
            if part is not None:
                value = part(value)
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parametrise(Edit):
    """Fills a slot of the chain of one tensor of the module at `path`. make: from the present tensor."""

    tensor: str
    into: str
    make: Callable[[Tensor], nn.Module]

    @property
    def slot(self) -> str:
        return f"{self.tensor}.{self.into}"

    def apply(self, model: nn.Module) -> None:
        module = model.get_submodule(self.path)
        part = make_like(module, lambda: self.make(getattr(module, self.tensor).detach()))
        existing = chain(module, self.tensor)
        if existing is not None:
            existing.fill(self.into, part)
            return
        fresh = Chain()
        fresh.fill(self.into, part)
        parametrize.register_parametrization(module, self.tensor, fresh)
        # torch's containers of parametrisations start in training mode.
        module.parametrizations.train(module.training)  # type: ignore[union-attr]
        recurrent = isinstance(module, nn.RNNBase)
        if recurrent and not any(isinstance(hook, ForgetFlatWeights) for hook in module._forward_hooks.values()):
            module.register_forward_hook(ForgetFlatWeights())


class ForgetFlatWeights:
    """torch's recurrent modules keep the weights of their last call in a list; computed ones cannot be deep-copied."""

    def __call__(self, module: nn.Module, _: object, output: object) -> None:
        module.__dict__["_flat_weights"] = []


def chain(module: nn.Module, tensor: str) -> Chain | None:
    """The chain of a tensor, or None."""
    if not parametrize.is_parametrized(module, tensor):
        return None
    first = module.parametrizations[tensor][0]  # type: ignore[index]
    if not isinstance(first, Chain):
        raise ConflictError(
            f"{type(module).__name__}.{tensor} is already parametrised by {type(first).__name__}, not by pliant; "
            "bake it first with torch.nn.utils.parametrize.remove_parametrizations"
        )
    return first


def chains(model: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """All chain parts of a kind: (path of the module, module, tensor's name, part)."""
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for tensor in list(module.parametrizations):
            first = module.parametrizations[tensor][0]
            if isinstance(first, Chain):
                for part in first.children():
                    if isinstance(part, kind):
                        yield path, module, tensor, part


@torch.no_grad()
def bake(module: nn.Module, shared: Collection[nn.Parameter] = ()) -> None:
    """Replaces every chain of a module by the value it computes; the tensors are plain Parameters again.

    shared: parameters that the model holds elsewhere too; they keep their values, and the module gets its own.

    torch's remove_parametrizations deletes the property from the class, which copies of the module share (torch 2.13),
    so baking a copy would break the original: the class is left alone here and the module goes back to its own.
    """
    names = list(module.parametrizations)  # type: ignore[arg-type]
    baked = {name: getattr(module, name).detach().clone() for name in names}
    originals = {name: module.parametrizations[name].original for name in names}  # type: ignore[index,union-attr]
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    rest = dict(module._parameters)
    module._parameters.clear()
    for name in names:
        original = originals[name]
        if original in shared:
            module._parameters[name] = nn.Parameter(baked[name], requires_grad=original.requires_grad)
        else:
            original.set_(baked[name])
            module._parameters[name] = original
    module._parameters.update(rest)
    if isinstance(module, nn.RNNBase):
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, ForgetFlatWeights):
                del module._forward_hooks[key]
        module._init_flat_weights()
