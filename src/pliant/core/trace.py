"""Recording what a module computes, on real values.

`record` runs a module's forward while an fx graph of it is written. Unlike symbolic tracing every proxy also carries
the value it stands for, so control flow on shapes, attributes or types takes the branch that real data takes, and
nothing is compiled. The price: the graph holds for the mode (train or eval) and the kind of input it was made with.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import TraceError


@dataclass(frozen=True)
class Recording:
    """A graph and what was seen while it was made.

    values: what every node evaluated to. inputs: the forward's argument name of every placeholder.
    constants: arguments that are not tensors; they are baked into the graph. signature: of the forward.
    mutated: the nodes that changed one of their operands in place, with the operands they changed.
    asked: whether the forward asked about values or sizes in plain Python, so that the graph may not hold for others.
    """

    graph: fx.Graph
    values: Mapping[fx.Node, Any]
    inputs: Mapping[str, fx.Node]
    constants: Mapping[str, Any]
    signature: inspect.Signature
    mutated: Mapping[fx.Node, tuple[fx.Node, ...]]
    asked: bool


def isolated(model: nn.Module) -> nn.Module:
    """A deep copy to run and edit freely; the remedy is in the error when a model cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TraceError(
            f"the model cannot be deep-copied ({type(error).__name__}: {error}); pliant plans on a copy so that a "
            "refusal leaves your model as it was. Remove non-leaf tensors or open handles stored on its modules"
        ) from error


def record(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    leaf: Callable[[nn.Module], bool] = lambda _: True,
) -> Recording:
    """The graph of one call of `module`, in the mode it is in. Runs the module: pass a copy (see `isolated`).

    leaf: which submodules stay calls (by default all children); the others are traced into.
    """
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*args, **(kwargs or {}))
    except TypeError as error:
        raise TraceError(
            f"{type(module).__name__}.forward cannot be called with this sample: {error}. Pass sample= as you call the "
            "model: a tensor, a tuple of all arguments, or a dict of keyword arguments"
        ) from error
    bound.apply_defaults()
    tracer = _Tracer(bound.arguments, leaf)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            graph = tracer.trace(module)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(
                f"the forward of {type(module).__name__} could not be followed ({type(error).__name__}: {error})"
            ) from error
    mutated = {node: tuple(operands) for node, operands in tracer.mutated.items()}
    for node in reversed(graph.nodes):
        # Questions about shapes and types have been answered; left in, they would count as uses of what they ask about.
        if node.op in ("call_function", "call_method") and not node.users and not _holds_tensor(tracer.values[node]):
            graph.erase_node(node)
    return Recording(graph, tracer.values, tracer.inputs, tracer.constants, signature, mutated, tracer.asked)


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


def record_calls(model: nn.Module, call: Call) -> dict[str, list[Call]]:
    """Runs the model once and returns, by module path, the arguments of every call that each module got."""
    calls: dict[str, list[Call]] = {}
    handles = []
    for path, module in model.named_modules():

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
            calls.setdefault(path, []).append((args, kwargs))

        handles.append(module.register_forward_pre_hook(note, with_kwargs=True, prepend=True))
    args, kwargs = call
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        raise TraceError(
            f"the model fails on the sample ({type(error).__name__}: {error}); "
            "pass sample= exactly as you call the model"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def is_layer(module: nn.Module) -> bool:
    """Whether a module counts as one layer: it has no children, or it is torch's or pliant's own and no container."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    has_children = next(module.children(), None) is not None
    if type(module).__module__.startswith(("torch.nn", "torch.ao", "pliant.nn")):
        return True
    # A childless module of the user's with parameters is a custom layer; without, it is a function in a module's coat.
    return not has_children and next(module.parameters(), None) is not None


class _Proxy(fx.Proxy):
    """A proxy that knows its value: questions whose answer must be a plain Python object are answered from it."""

    tracer: _Tracer

    def __init__(self, node: fx.Node, tracer: _Tracer, value: Any) -> None:
        super().__init__(node, tracer)
        self.value = value

    def answer(self) -> Any:
        self.tracer.asked = True
        return self.value

    def __bool__(self) -> bool:
        return bool(self.answer())

    def __len__(self) -> int:
        return len(self.answer())

    def __int__(self) -> int:
        return int(self.answer())

    def __float__(self) -> float:
        return float(self.answer())

    def __index__(self) -> int:
        return int(self.answer().__index__())

    def __iter__(self) -> Any:
        return iter([self[position] for position in range(len(self.value))])  # type: ignore[index]

    def __contains__(self, item: object) -> bool:
        return item in self.value

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)
        # Metadata that is no tensor and no size can be plain: it does not change with the batch.
        if isinstance(found, bool | int | torch.dtype | torch.device | torch.layout) and not isinstance(
            self.value, torch.Size
        ):
            return found
        return _Attribute(self, name, found)

    def dim(self) -> int:
        return int(self.value.dim())


def _in_place(name: str) -> Callable[[_Proxy, Any], Any]:
    def change(self: _Proxy, other: Any) -> Any:
        if not isinstance(self.value, Tensor):
            # Numbers are not changed, a name is bound anew; the written graph would bind the old name.
            return getattr(operator, name[1:])(self, other)
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return change


# fx writes `a += b` as `a + b`: another memory, so whatever else holds `a` would not see the change.
for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


class _Attribute(_Proxy):
    """An attribute of a proxy: a method when it is called, otherwise a node."""

    def __init__(self, root: _Proxy, name: str, value: Any) -> None:
        self.root, self.attribute, self.tracer, self.value = root, name, root.tracer, value
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is None:
            made = self.tracer.create_proxy("call_function", getattr, (self.root, self.attribute), {})
            self._node = made.node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attribute, (self.root, *args), kwargs)


class _Tracer(fx.Tracer):
    def __init__(self, bound: Mapping[str, Any], leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.bound, self.leaf = bound, leaf
        self.values: dict[fx.Node, Any] = {}
        self.inputs: dict[str, fx.Node] = {}
        self.constants: dict[str, Any] = {}
        self.mutated: dict[fx.Node, list[fx.Node]] = {}
        self.asked = False
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.leaf(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Tensor arguments become placeholders; everything else stays the constant it is."""
        given: dict[str, Any] = {}
        for name, value in self.bound.items():
            if isinstance(value, Tensor):
                given[name] = self.create_proxy("placeholder", name, (), {})
                self.inputs[name] = given[name].node
            elif _holds_tensor(value):
                raise TraceError(
                    f"argument {name!r} of {type(self.root).__name__}.forward is a {type(value).__name__} of tensors; "
                    "only plain tensor arguments can be followed: apply to a part of the model that takes tensors"
                )
            else:
                given[name] = self.constants[name] = value

        def call(module: nn.Module) -> Any:
            bound = inspect.signature(module.forward).bind_partial()
            bound.arguments.update(given)
            return module.forward(*bound.args, **bound.kwargs)

        return call, [self.root]

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Any = None,
    ) -> Any:
        operands: list[tuple[fx.Node, Tensor, int]] = []

        def value_of(item: Any) -> Any:
            if not isinstance(item, _Proxy):
                return item
            if isinstance(item.value, Tensor):
                operands.append((item.node, item.value, item.value._version))
            return item.value

        real_args = fx.node.map_aggregate(args, value_of)
        real_kwargs = fx.node.map_aggregate(kwargs, value_of)
        outer, self._evaluating = self._evaluating, True
        try:
            value = self._evaluate(kind, target, real_args, real_kwargs)
        finally:
            self._evaluating = outer
        proxy = super().create_proxy(
            kind, target, args, kwargs, name, type_expr, lambda node: _Proxy(node, self, value)
        )
        self.values[proxy.node] = value
        changed = [node for node, tensor, version in operands if tensor._version != version]
        if changed:
            self.mutated[proxy.node] = changed
        return proxy

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.bound[target]
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        found: Any = self.root
        for part in target.split("."):
            found = getattr(found, part)
        return found(*args, **kwargs) if kind == "call_module" else found


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    return isinstance(value, tuple | list) and any(_holds_tensor(item) for item in value)
