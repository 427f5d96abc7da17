"""Finding residual branches: what a block adds to what it was given.

In a block's recorded graph every addition of two equally shaped tensors is looked at. The latest common ancestor of
its operands is where the paths part; the nodes between it and one operand are the branch, if they hold parameters.
Everything else the addition needs is the shortcut.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import TraceError
from .trace import Call, Recording, record

_ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of a block's forward as one function `run(block, *inputs) -> tuple of outputs`.

    gate: which residual branch of the block this is (None: always runs). A branch takes, after its inputs, the factor
    on the branch; its only output is the sum. skip: the name of the value that stands for the sum when it does not run;
    copied: as a copy, because the sum is returned or changed in place and others may hold the shortcut.
    modules: the children called in it; last: the child that computes the branch's value and nothing else in the block,
    or None.
    """

    run: Callable[..., tuple[Any, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    gate: int | None = None
    skip: str | None = None
    copied: bool = False
    modules: tuple[str, ...] = ()
    last: str | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A block's forward, cut at its residual branches. result: the structure of what it returns, by value names."""

    segments: tuple[Segment, ...]
    arguments: tuple[str, ...]
    constants: dict[str, Any]
    result: Any
    shapes: tuple[tuple[int, ...], ...]
    asked: bool

    @property
    def gates(self) -> tuple[Segment, ...]:
        return tuple(segment for segment in self.segments if segment.gate is not None)


@dataclasses.dataclass(frozen=True)
class _Branch:
    add: fx.Node
    value: fx.Node
    skip: fx.Node
    nodes: frozenset[fx.Node]
    copied: bool


def cut(block: nn.Module, call: Call) -> Program | str:
    """The program of a block in its present mode, or the reason why it has no usable residual branch."""
    recording = record(block, *call)
    nodes = list(recording.graph.nodes)
    position = {node: at for at, node in enumerate(nodes)}
    branches: list[_Branch] = []
    reasons: list[str] = []
    for node in nodes:
        if not _is_addition(node, recording):
            continue
        found = _branch(node, block, recording, position)
        if isinstance(found, str):
            reasons.append(found)
        else:
            branches.append(found)
    if not branches:
        return "; ".join(reasons) or "its forward adds no two equally shaped tensors"
    return _program(block, recording, branches)


def _is_addition(node: fx.Node, recording: Recording) -> bool:
    adds = (node.op == "call_function" and node.target in _ADDITIONS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    if not adds or len(node.args) < 2 or node.kwargs:
        return False
    operands = node.args[:2]
    if not all(isinstance(operand, fx.Node) for operand in operands):
        return False
    first, second = (recording.values[operand] for operand in operands)  # type: ignore[index]
    return isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        at = stack.pop()
        if at not in seen:
            seen.add(at)
            stack.extend(at.all_input_nodes)
    return seen


def _branch(add: fx.Node, block: nn.Module, recording: Recording, position: dict[fx.Node, int]) -> _Branch | str:
    left, right = add.args[0], add.args[1]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    above = {left: _ancestors(left), right: _ancestors(right)}
    common = [node for node in above[left] & above[right] if isinstance(recording.values[node], Tensor)]
    if not common:
        return f"the operands of {add.name!r} have no common origin"
    origin = max(common, key=lambda node: position[node])
    # The branch is the operand with more layers between it and the common origin; a shortcut may hold a projection.
    weights = {side: _layers(above[side] - _ancestors(origin), block) for side in (left, right)}
    value, skip = (left, right) if weights[left] >= weights[right] else (right, left)
    if weights[value] == weights[skip]:
        return f"both operands of {add.name!r} hold {weights[value]} layers with parameters, so neither is the shortcut"
    own = frozenset(node for node in above[value] - above[skip] if node is not origin and node.op != "placeholder")
    for node in own:
        outside = [user.name for user in node.users if user not in own and user is not add]
        if outside:
            return f"the branch's value {node.name!r} is also used by {outside[0]!r}"
    return _disturbed(add, own, recording, position) or _Branch(add, value, skip, own, _escapes(add, recording))


def _disturbed(add: fx.Node, own: frozenset[fx.Node], recording: Recording, position: dict[fx.Node, int]) -> str | None:
    """Why leaving out or moving a branch would change values elsewhere or in it: in-place operations, or None.

    The branch runs right before the addition, after everything else that came before it.
    """
    read = own | {node for inside in own for node in inside.all_input_nodes}
    start = min((position[node] for node in own), default=position[add])
    for node, operands in recording.mutated.items():
        for changed in operands:
            same = {other for other in position if _share(recording.values.get(other), recording.values[changed])}
            if node in own and not same <= own:
                return (
                    f"{node.name!r} changes {changed.name!r} in place, outside its branch; use inplace=False there "
                    "(the shortcut would see another value when the branch is skipped)"
                )
            if node not in own and start < position[node] < position[add] and same & read:
                return (
                    f"{node.name!r} changes {changed.name!r} in place after the branch has read it; use inplace=False "
                    "there (the branch is run last, and would see the changed value)"
                )
    return None


def _escapes(add: fx.Node, recording: Recording) -> bool:
    """Whether the sum's memory leaves the block or is changed in place in it."""
    written = [operand for node, operands in recording.mutated.items() if node is not add for operand in operands]
    (output,) = (node for node in recording.graph.nodes if node.op == "output")
    held = [*written, *output.all_input_nodes]
    return any(_share(recording.values[node], recording.values[add]) for node in held)


def _share(first: Any, second: Any) -> bool:
    """Whether two values are tensors on the same memory: views see each other's changes."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _layers(nodes: set[fx.Node], block: nn.Module) -> int:
    """How many of these nodes call a module that has parameters, or read a parameter."""
    names = {name for name, _ in block.named_parameters(remove_duplicate=False)}
    calls = sum(node.op == "call_module" and any(n.startswith(f"{node.target}.") for n in names) for node in nodes)
    return calls + sum(node.op == "get_attr" and str(node.target) in names for node in nodes)


def _program(block: nn.Module, recording: Recording, branches: Sequence[_Branch]) -> Program:
    owner = {node: index for index, branch in enumerate(branches) for node in branch.nodes}
    sums = {branch.add: index for index, branch in enumerate(branches)}
    runs: list[tuple[int | None, list[fx.Node]]] = []
    straight: list[fx.Node] = []
    output: fx.Node | None = None
    for node in recording.graph.nodes:
        if node.op == "output":
            output = node
        elif node.op == "placeholder" or node in owner:
            continue
        elif node in sums:
            index = sums[node]
            if straight:
                runs.append((None, straight))
            own = [n for n in recording.graph.nodes if n in branches[index].nodes]
            runs.append((index, [*own, node]))
            straight = []
        else:
            straight.append(node)
    if straight:
        runs.append((None, straight))
    assert output is not None
    segments = []
    for at, (gate, nodes) in enumerate(runs):
        later = [n for _, following in runs[at + 1 :] for n in following] + [output]
        segments.append(_segment(nodes, later, branches[gate] if gate is not None else None, gate))
    return Program(
        segments=tuple(segments),
        arguments=tuple(recording.inputs),
        constants=dict(recording.constants),
        result=_named(output.args[0]),
        shapes=tuple(tuple(recording.values[node].shape) for node in recording.inputs.values()),
        asked=recording.asked,
    )


def _named(structure: Any) -> Any:
    """What a graph returns, with its nodes replaced by names."""

    def name(item: Any) -> Any:
        return Name(item.name) if isinstance(item, fx.Node) else item

    return fx.node.map_aggregate(structure, name)


@dataclasses.dataclass(frozen=True)
class Name:
    """Stands for a value in the structure that a program returns."""

    name: str


def _segment(nodes: list[fx.Node], later: list[fx.Node], branch: _Branch | None, gate: int | None) -> Segment:
    inside = set(nodes)
    inputs = list(dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside))
    needed = {n for node in later for n in node.all_input_nodes}
    outputs = [node for node in nodes if node in needed]
    graph = fx.Graph()
    twin = {node: graph.placeholder(node.name) for node in inputs}
    factor = graph.placeholder("factor_") if branch is not None else None
    for node in nodes:
        twin[node] = graph.node_copy(node, lambda old: twin[old])
        if branch is not None and node is branch.value:
            twin[node] = graph.call_function(scaled, (twin[node], factor))
    if branch is not None and branch.value not in inside:
        raise TraceError(f"the branch of {branch.add.name!r} is empty")
    graph.output(tuple(twin[node] for node in outputs))
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<pliant: part of a residual block>", "exec"), namespace)
    called = tuple(str(node.target) for node in nodes if node.op == "call_module")
    last = str(branch.value.target) if branch is not None and branch.value.op == "call_module" else None
    if branch is not None and sum(node.target == last for node in branch.add.graph.nodes) > 1:
        last = None
    return Segment(
        run=namespace["forward"],
        inputs=tuple(node.name for node in inputs),
        outputs=tuple(node.name for node in outputs),
        gate=gate,
        skip=branch.skip.name if branch is not None else None,
        copied=branch is not None and branch.copied,
        modules=called,
        last=last,
    )


def scaled(value: Tensor, factor: float) -> Tensor:
    """factor * value, and `value` itself for factor 1, so that the off-setting is bitwise the plain block."""
    return value if factor == 1.0 else value * factor
