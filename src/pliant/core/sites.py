"""Sites: modules run on a layer's output without renaming anything that was there.

`fc1` with a site gains the child `fc1.norm` and a forward hook that runs it; `fc1.weight` keeps its name, type and
identity. The hook holds the child's name only, so copies of the model are right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .context import Context
from .edits import Edit, Skip, make_like
from .errors import SettingError
from .selectors import select
from .trace import is_layer, isolated, record

Position = Literal["before_activation", "after_activation"]

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers that compute a weighted sum: what normalisations attach to."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_NOT_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)
_ACTIVATION_NAMES = frozenset(
    [
        "relu",
        "relu6",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "leaky_relu",
        "prelu",
        "rrelu",
        "sigmoid",
        "tanh",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "logsigmoid",
        "softplus",
        "softsign",
        "tanhshrink",
        "softshrink",
        "hardshrink",
        "threshold",
    ]
)
_ACTIVATION_FUNCTIONS = frozenset(
    getattr(home, name + mark)
    for home in (F, torch, torch._C._nn)
    for name in _ACTIVATION_NAMES
    for mark in ("", "_")
    if hasattr(home, name + mark)
)


@dataclasses.dataclass(frozen=True)
class RunChild:
    """The forward hook of a site: passes the module's output through its child `name`."""

    name: str

    def __call__(self, module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return getattr(module, self.name)(output)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attach(Edit):
    """Makes a site: `make()` becomes the child `name` of the layer at `path` and runs on its output.

    like: the module whose device and dtype it takes, when the layer has no tensors to tell them (an activation).
    """

    name: str
    make: Callable[[], nn.Module]
    like: str | None = None

    @property
    def slot(self) -> str:
        return self.name

    def apply(self, model: nn.Module) -> None:
        layer = model.get_submodule(self.path)
        near = layer if self.like is None else model.get_submodule(self.like)
        layer.add_module(self.name, make_like(near, self.make))
        layer.register_forward_hook(RunChild(self.name))


def detach(layer: nn.Module, name: str) -> None:
    """Undoes `Attach`: the layer is what it was before."""
    for key, hook in list(layer._forward_hooks.items()):
        if isinstance(hook, RunChild) and hook.name == name:
            del layer._forward_hooks[key]
    del layer._modules[name]


def attached(model: nn.Module, kind: type[nn.Module]) -> list[tuple[str, nn.Module, str, nn.Module]]:
    """All sites holding a module of `kind`: (path of the layer, layer, child's name, child)."""
    return [
        (path, layer, hook.name, layer._modules[hook.name])
        for path, layer in model.named_modules()
        for hook in layer._forward_hooks.values()
        if isinstance(hook, RunChild) and isinstance(layer._modules.get(hook.name), kind)
    ]


@dataclasses.dataclass(frozen=True)
class Site:
    """A place for a normalisation. path: the layer to attach to; source: the weighted layer that feeds it;
    shape: of the tensor there; channel_dim: which of its dimensions counts features; activation: what follows or, for
    "after_activation", what the site is on."""

    path: str
    source: str
    shape: tuple[int, ...]
    channel_dim: int
    activation: str

    @property
    def features(self) -> int:
        return self.shape[self.channel_dim]


def find_sites(
    model: nn.Module, ctx: Context, where: Sequence[str] | None, position: Position
) -> tuple[list[Site], list[Skip]]:
    """Places where a weighted layer feeds an activation, from one recorded call of a copy of the model.

    where: patterns naming the layers that feed; those named are taken whatever follows them. Without patterns every
    weighted layer whose only consumer is an activation is taken, unless a normalisation is there already.
    """
    if position not in ("before_activation", "after_activation"):
        raise SettingError(f"position={position!r}; choose 'before_activation' or 'after_activation'")
    args, kwargs = ctx.sample_call()
    twin = isolated(model)
    recording = record(twin, args, kwargs, leaf=is_layer)
    calls: dict[str, list[fx.Node]] = {}
    for node in recording.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    modules = dict(model.named_modules())
    candidates = [path for path in modules if path in calls and isinstance(modules[path], LINEAR)]
    named = None if where is None else set(select(where, candidates, "linear and convolution layers of this model"))
    sites: list[Site] = []
    skipped: list[Skip] = []
    for path in candidates:
        if named is not None and path not in named:
            skipped.append(Skip(path, "not selected by where="))
            continue
        found = _site(path, calls, modules, recording.values, position, forced=named is not None)
        (sites if isinstance(found, Site) else skipped).append(found)  # type: ignore[arg-type]
    return sites, skipped


def _site(
    path: str,
    calls: dict[str, list[fx.Node]],
    modules: dict[str, nn.Module],
    values: Any,
    position: Position,
    *,
    forced: bool,
) -> Site | Skip:
    if len(calls[path]) > 1:
        return Skip(path, f"called {len(calls[path])} times in one forward: its outputs have different distributions")
    if normalised(modules[path]):
        return Skip(path, "already normalised")
    node = calls[path][0]
    users = list(node.users)
    following = activation_name(users[0], modules) if len(users) == 1 else None
    if following is None and not (forced and position == "before_activation"):
        return Skip(path, _why_not(users, modules))
    linear = isinstance(modules[path], nn.Linear)
    if position == "before_activation":
        shape = tuple(values[node].shape)
        return Site(path, path, shape, len(shape) - 1 if linear else 1, following or "nothing")
    target = str(users[0].target)
    if users[0].op != "call_module":
        return Skip(path, f"its activation {following} is a function call; make it a module or use before_activation")
    if len(calls[target]) > 1:
        return Skip(path, f"its activation module {target!r} is shared by {len(calls[target])} layers")
    if normalised(modules[target]):
        return Skip(path, "already normalised")
    shape = tuple(values[users[0]].shape)
    return Site(target, path, shape, len(shape) - 1 if linear else 1, following or "")


def normalised(layer: nn.Module) -> bool:
    """Whether a layer has a site already."""
    return any(isinstance(hook, RunChild) for hook in layer._forward_hooks.values())


def activation_name(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The name of the elementwise nonlinearity that a node computes, or None."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        own = type(module).__module__ in ("torch.nn.modules.activation",) or hasattr(module, "is_activation")
        return str(node.target) if own and not isinstance(module, _NOT_ACTIVATIONS) else None
    if node.op == "call_function" and node.target in _ACTIVATION_FUNCTIONS:
        return str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method" and str(node.target).rstrip("_") in _ACTIVATION_NAMES:
        return str(node.target)
    return None


def _why_not(users: list[fx.Node], modules: dict[str, nn.Module]) -> str:
    if not users:
        return "nothing uses its output"
    if len(users) > 1:
        return f"its output has {len(users)} consumers"
    user = users[0]
    if user.op == "output":
        return "its output is the model's output"
    if user.op == "call_module" and isinstance(modules[str(user.target)], _NORMS):
        return f"already normalised by {user.target!r}"
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", user.target)
    return f"followed by {name}, not by an activation"
