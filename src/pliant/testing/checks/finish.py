"""Compiling, finalizing and exporting."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pliant.core.applied import Applied, bind
from pliant.core.clock import Clock
from pliant.core.errors import ContractError
from pliant.core.sites import RunChild

from ..case import Case
from ..nets import main
from ..snapshot import changed, differing, structure, tensors, worst
from .function import WIDE


def compiles_as_declared(case: Case, backend: str = "aot_eager") -> None:
    """Compiled with the backend, training steps, eval mode and finalize give what eager gives; or it refuses.

    "whole" is one graph; a step after the second compiles nothing anew.
    """
    eager = case.trained(1, dtype=torch.float64)
    compiled = bind(copy.deepcopy(eager.model))
    if case.cls.meta.compile == "before":
        try:
            compiled.compile(backend=backend)
        except ContractError as error:
            assert case.method.name in str(error), f"the refusal does not name the method: {error}"
            return
        raise AssertionError('meta.compile is "before", but applied.compile() did not refuse')
    keys = set(eager.model.state_dict())
    graphs: list[int] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    # Dynamo looks at attributes that warn; under a test runner that makes warnings errors it would fail.
    # It refuses recurrent layers unless told otherwise.
    with warnings.catch_warnings(), torch._dynamo.config.patch(allow_rnn=True):
        warnings.simplefilter("ignore")
        compiled.compile(backend=counted)
        assert set(compiled.model.state_dict()) == keys, "compiling changed the keys of state_dict"
        made = []
        for number, batch in enumerate(case.example.batches(4, torch.float64, start=10)):
            want, got = (_step(case, one, *batch) for one in (eager, compiled))
            assert want.keys() == got.keys(), f"step {number}: only one has {sorted(want.keys() ^ got.keys())[:4]}"
            gaps = {name: worst(got[name], want[name]) for name in want}
            name = max(gaps, key=lambda name: gaps[name])
            assert gaps[name] <= WIDE, f"compiled, {name} of step {number} differs from eager by {gaps[name]:.2g}"
            made.append(len(graphs))
        data, x = case.example.batches(2, torch.float64, start=20), case.example.batch(30, torch.float64)[0]
        with torch.no_grad():
            gap = worst(compiled.finalize(data=data)(x), eager.finalize(data=data)(x))
            assert gap <= WIDE, f"finalized after compiling it differs by {gap:.2g}"
            for one in (compiled, eager):
                one.calibrate_end(data)
            gap = worst(compiled.model.eval()(x), eager.model.eval()(x))
            assert gap <= WIDE, f"compiled, eval mode differs from eager by {gap:.2g}"
    assert made[-1], "nothing was compiled"
    if case.cls.meta.compile == "whole":
        assert made[0] == 1, f'meta.compile is "whole", but the first step compiled {made[0]} graphs'
        assert made[1] == made[-1], f"every step compiles anew: {made} graphs after each step"


def _step(case: Case, applied: Applied, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    output = applied.model(x)
    loss = applied.criterion(case.example.loss)(output, y)
    loss.backward()
    found = {"the output": main(output).detach(), "the loss": loss.detach(), **tensors(applied.model)}
    applied.model.zero_grad()
    return found


def finalize_is_evaluation(case: Case) -> None:
    """The finished net computes what the recalibrated net computes in eval mode, on unseen data, with every setting.

    The trained model is left as it was and trains on. Nothing that only training needs is left in the finished one.
    """
    for one in itertools.chain(case.variants(), case.everywhere()):
        where = f"{one.method!r} on {one.example.name!r}"
        applied = one.trained(dtype=torch.float64)
        data = one.example.batches(2, torch.float64, start=20)
        before = structure(applied.model), tensors(applied.model)
        lean = applied.finalize(data=data)
        found = changed(before[0], structure(applied.model)) + differing(before[1], tensors(applied.model))
        assert not found, f"finalize changed the trained model ({where}): {', '.join(found[:4])}"
        twin = bind(copy.deepcopy(applied.model))
        twin.calibrate_end(data)
        unseen = one.example.batch(30, torch.float64)[0]
        with torch.no_grad():
            gap = worst(lean(unseen), twin.model.eval()(unseen))
        assert gap <= WIDE, f"the finished net differs from eval mode by {gap:.2g} on unseen data ({where})"
        left = leftovers(lean)
        assert not left, f"the finished net still has {', '.join(left[:4])} ({where})"
        assert not lean.training, f"the finished net is in train mode ({where})"
        one.train(applied, one.optimizer(applied), data)


def leftovers(model: nn.Module) -> list[str]:
    """What only training needs and is still there. Layers that could not be folded may stay, run by their hook."""
    found = ["the binding to its stack"] if hasattr(model, "_pliant") else []
    for path, module in model.named_modules():
        place = path or "the model"
        found += [f"the buffer {place}.{name}" for name in module._buffers if name.startswith("pliant")]
        if parametrize.is_parametrized(module):
            found.append(f"a parametrization of {place}")
        if isinstance(module, nn.Module) and "forward" in vars(module):
            found.append(f"a rewritten forward of {place}")
        hooks: list[Any] = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        found += [
            f"the hook {type(hook).__name__} of {place}"
            for hook in hooks
            if isinstance(hook, Clock) or not isinstance(hook, RunChild)
        ]
    return found


def finished_net_exports(case: Case) -> None:
    """torch.export of the finished net gives a graph of aten ops only that computes the same."""
    applied = case.trained()
    lean = applied.finalize(data=case.example.batches(2, start=20))
    x = case.example.sample()
    with warnings.catch_warnings():
        # torch.export warns of what torch's own LSTM does.
        warnings.simplefilter("ignore")
        program = torch.export.export(lean, (x,))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    foreign = [str(op) for op in calls if isinstance(op, torch._ops.OpOverload) and op.namespace != "aten"]
    assert not foreign, f"the exported graph calls {', '.join(foreign[:4])}; a finished net holds aten ops only"
    with torch.no_grad():
        gap = worst(program.module()(x), lean(x))
    assert gap <= 1e-6, f"the exported net differs from the finished one by {gap:.2g}"
