"""Gates: residual branches that can be skipped, so that a skipped branch is not computed at all.

A gated block keeps its class, its children and their names; only its `forward` is replaced, on this instance, by one
that runs the block's program (see `residual`) and leaves out closed branches.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .context import Context
from .edits import Edit, Skip
from .errors import ContractError, TraceError
from .residual import Name, Program, cut, scaled
from .selectors import Residual, select
from .trace import Call, is_layer, isolated, record_calls

Chances = tuple[float, ...]
Factors = tuple[tuple[float, float], ...]


class Gates:
    """The forward of a block with residual branches that can be closed.

    chances: survival probability of every branch. open: one flag per branch, read in training mode only.
    factors: (train, eval) multiplier of every branch's value.
    """

    def __init__(
        self, block: nn.Module, train: Program, evaluation: Program, chances: Chances, factors: Factors
    ) -> None:
        self.block = block
        self.programs = {True: train, False: evaluation}
        self.compiled: dict[bool, Program] | None = None
        self.open = [True] * len(train.gates)
        self.chances, self.factors = chances, factors
        self.signature = inspect.signature(type(block).forward)

    def last(self, gate: int) -> str | None:
        """The child that computes a branch's value."""
        return self.programs[False].gates[gate].last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        training = self.block.training
        if training and torch.compiler.is_compiling():
            raise ContractError(
                "a net with skipped branches cannot be compiled whole (every pattern of open branches would compile "
                "anew); call applied.compile() instead: it compiles the parts and keeps the gates in Python"
            )
        program = (self.compiled or self.programs)[training]
        values = self._bind(program, args, kwargs)
        for segment in program.segments:
            given = [values[name] for name in segment.inputs]
            if segment.gate is None:
                made = segment.run(self.block, *given)
            elif training and not self.open[segment.gate]:
                skip = values[segment.skip]  # type: ignore[index]
                made = (skip.clone() if segment.copied else skip,)
            else:
                made = segment.run(self.block, *given, self.factors[segment.gate][0 if training else 1])
            values.update(zip(segment.outputs, made, strict=False))
        return _fill(program.result, values)

    def _bind(self, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if not kwargs and not program.constants and len(args) == len(program.arguments):
            values = dict(zip(program.arguments, args, strict=True))
        else:
            bound = self.signature.bind(self.block, *args, **kwargs)
            bound.apply_defaults()
            values = dict(bound.arguments)
            for name, constant in program.constants.items():
                if values[name] is not constant and values[name] != constant:
                    raise TraceError(
                        f"the residual block {type(self.block).__name__} was followed with {name}={constant!r} and is "
                        f"now called with {values[name]!r}; pass a sample that calls it as training does"
                    )
        if program.asked:
            for name, shape in zip(program.arguments, program.shapes, strict=True):
                if tuple(values[name].shape[1:]) != shape[1:]:
                    raise TraceError(
                        f"the residual block {type(self.block).__name__} decides by its input's shape and was followed "
                        f"with {shape}; it now gets {tuple(values[name].shape)}. Apply with a sample of this shape"
                    )
        return values

    def compile(self, **options: Any) -> None:
        """Compiles every segment; the gates stay in Python."""
        self.compiled = {}
        for mode, program in self.programs.items():
            segments = tuple(
                dataclasses.replace(segment, run=torch.compile(segment.run, fullgraph=True, **options))
                for segment in program.segments
            )
            self.compiled[mode] = dataclasses.replace(program, segments=segments)

    def uncompile(self) -> None:
        self.compiled = None


class NamedBranch:
    """The forward of a child that the user named as a residual branch: a closed one gives a zero that broadcasts."""

    def __init__(self, block: nn.Module, chances: Chances, factors: Factors) -> None:
        self.block = block
        self.open = [True]
        self.chances, self.factors = chances, factors
        self.run = _forward

    def last(self, gate: int) -> str | None:
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        training = self.block.training
        if training and not self.open[0]:
            near = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            return torch.zeros(()) if near is None else near.new_zeros(())
        return scaled(self.run(self.block, *args, **kwargs), self.factors[0][0 if training else 1])

    def compile(self, **options: Any) -> None:
        """Compiles the branch; the gate stays in Python."""
        self.run = torch.compile(own_frame(_forward), fullgraph=True, **options)

    def uncompile(self) -> None:
        self.run = _forward


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # A frame of ours: dynamo compiles nothing when it starts at a forward of torch.nn.
    return type(block).forward(block, *args, **kwargs)


def own_frame(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy with a code object of its own: dynamo counts recompilations by code object, and gives up after eight."""
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )


def _fill(structure: Any, values: dict[str, Any]) -> Any:
    """What the block returns, in the types it returns it in (fx keeps structures as immutable ones of its own)."""
    if isinstance(structure, Name):
        return values[structure.name]
    if isinstance(structure, dict):
        return {key: _fill(item, values) for key, item in structure.items()}
    if isinstance(structure, list):
        return [_fill(item, values) for item in structure]
    if isinstance(structure, tuple):
        items = [_fill(item, values) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else tuple(items)
    return structure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate(Edit):
    """Makes the residual branches of the block at `path` skippable.

    train, evaluation: its programs, or None for a child that the user named. chances, factors: see `Gates`.
    """

    train: Program | None
    evaluation: Program | None
    chances: Chances = ()
    factors: Factors = ()

    @property
    def slot(self) -> str:
        return "forward"

    def apply(self, model: nn.Module) -> None:
        block = model.get_submodule(self.path)
        if self.train is None or self.evaluation is None:
            block.forward = NamedBranch(block, self.chances, self.factors)
        else:
            block.forward = Gates(block, self.train, self.evaluation, self.chances, self.factors)

    @property
    def count(self) -> int:
        return 1 if self.train is None else len(self.train.gates)


def gates(model: nn.Module) -> list[tuple[str, Gates | NamedBranch]]:
    """All gated blocks of a model in its modules' order."""
    return [
        (path, module.forward)
        for path, module in model.named_modules()
        if isinstance(module.forward, Gates | NamedBranch)
    ]


def ungate(block: nn.Module) -> None:
    """Gives a block its class's own forward back."""
    del block.__dict__["forward"]


def find_gates(model: nn.Module, ctx: Context, where: Sequence[str | Residual] | None) -> tuple[list[Gate], list[Skip]]:
    """The residual blocks of a model in the order in which they run, from one recorded call of a copy.

    where: patterns naming blocks, or `Residual(path, branch)` for blocks whose forward cannot be followed.
    """
    twin = isolated(model).train()
    calls = record_calls(twin, ctx.sample_call())
    modules = dict(twin.named_modules())
    blocks = [path for path in calls if _may_hold_branch(modules[path])]
    found: list[Gate] = []
    skipped: list[Skip] = []
    named = [choice for choice in where or () if isinstance(choice, Residual)]
    for choice in named:
        for path in select([choice.path], list(calls), "modules this model calls"):
            branch = f"{path}.{choice.branch}" if path else choice.branch
            if branch not in calls:
                raise TraceError(
                    f"{path!r} has no child {choice.branch!r} that is called; its children: {_children(modules[path])}"
                )
            _try_closed(modules[path], modules[branch], calls[path][0], path, choice.branch)
            found.append(
                Gate(path=branch, detail=f"residual branch of {path!r}, named by you", train=None, evaluation=None)
            )
    patterns = [choice for choice in where or () if isinstance(choice, str)]
    chosen = blocks if where is None else select(patterns, blocks, "modules with children") if patterns else []
    for path in chosen:
        if len(calls[path]) > 1:
            skipped.append(Skip(path, f"called {len(calls[path])} times in one forward"))
            continue
        programs = _programs(modules[path], calls[path][0])
        if isinstance(programs, str):
            if where is not None or "adds no" not in programs:
                skipped.append(Skip(path, programs))
            continue
        train, evaluation = programs
        names = ", ".join("+".join(segment.modules) for segment in train.gates)
        found.append(Gate(path=path, detail=f"branch {names}", train=train, evaluation=evaluation))
    return found, skipped


def _try_closed(block: nn.Module, branch: nn.Module, call: Call, path: str, name: str) -> None:
    """TraceError unless the block still works, with outputs of the same shape, when its named branch gives a zero."""
    args, kwargs = call
    given, shut = branch.forward, NamedBranch(branch, (0.0,), ((1.0, 1.0),))
    shut.open[0] = False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        expected = [tensor.shape for tensor in tree_leaves(block(*args, **kwargs)) if isinstance(tensor, Tensor)]
        branch.forward = shut
        try:
            found = [tensor.shape for tensor in tree_leaves(block(*args, **kwargs)) if isinstance(tensor, Tensor)]
            problem = None if found == expected else f"returns {[*map(tuple, found)]}, not {[*map(tuple, expected)]}"
        except Exception as error:
            problem = f"fails ({type(error).__name__}: {error})"
        finally:
            branch.forward = given
    if problem:
        raise TraceError(
            f"{path!r} {problem} when its branch {name!r} is left out; a named branch may only be added to the rest, "
            f"as in x + self.{name}(x) (not +=, which needs the branch's own memory)"
        )


def _may_hold_branch(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict | nn.MultiheadAttention)
    container = not is_layer(module) or isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
    return not plain and container and next(module.children(), None) is not None


def _programs(block: nn.Module, call: Call) -> tuple[Program, Program] | str:
    try:
        train = cut(block.train(), call)
        evaluation = cut(block.eval(), call)
    except TraceError as error:
        return f'{error}; name it with where=[Residual("path", branch="child")]'
    finally:
        block.train()
    if isinstance(train, str) or isinstance(evaluation, str):
        return train if isinstance(train, str) else str(evaluation)
    if len(train.gates) != len(evaluation.gates):
        return "it has other residual branches in eval mode than in train mode"
    return train, evaluation


def _children(module: nn.Module) -> str:
    return ", ".join(repr(name) for name, _ in module.named_children()) or "none"
