"""What the edited net computes: off, preserved or changed, in float64, in eval mode, and its derivatives."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from pliant.core.applied import Applied, bind
from pliant.core.clock import STEP
from pliant.core.migrate import rules

from ..case import Case
from ..nets import main
from ..snapshot import differing, same, tensors, worst

WIDE = 1e-9
"""Allowed distance in float64, relative to the largest value, of two ways to compute the same."""


def off_is_bitwise_the_base(case: Case) -> None:
    """With `meta.off` outputs, loss, gradients and eval outputs are bit for bit those of the net without the method."""
    off = case.having(**(case.cls.meta.off or {}))
    base, applied = off.apply(stack=off.bare), off.apply()
    pairs = {"the base": base, "the edited net": applied}
    seen: dict[str, dict[str, Tensor]] = {}
    for name, one in pairs.items():
        criterion = one.criterion(off.example.loss)
        told: dict[str, Tensor] = {}
        for number, (x, y) in enumerate(off.example.batches(3)):
            output = one.model(x)
            loss = criterion(output, y)
            loss.backward()
            told |= {f"training output {number}": main(output), f"loss {number}": loss}
        told |= {
            f"gradient of {_plain(key)}": parameter.grad
            for key, parameter in one.model.named_parameters()
            if parameter.grad is not None
        }
        with torch.no_grad():
            told["evaluation output"] = one.model.eval()(off.example.sample())
        seen[name] = told
    first, second = seen.values()
    found = [key for key in first if key not in second or not same(first[key], second[key])]
    assert not found, f"with {off.method!r}, declared off, these differ from the base net: {', '.join(found[:4])}"


def _plain(name: str) -> str:
    return name.replace("parametrizations.", "").removesuffix(".original")


def function_is_as_declared(case: Case) -> None:
    """Outputs in train and eval mode stay (`preserves`, or with `meta.preserving`), or do change (`changes`)."""
    meta = case.cls.meta
    if meta.function == "changes":
        gaps = _gaps(case, torch.float32)
        assert max(gaps.values()) > 1e-6, (
            f"meta says that {case.method!r} changes what the net computes, and it does not; "
            'say function="preserves", or settings with which it shows'
        )
    if meta.function == "preserves" or meta.preserving is not None:
        kept = case.having(**(meta.preserving or {}))
        for dtype, allowed in ((torch.float32, 1e-6), (torch.float64, WIDE)):
            for mode, gap in _gaps(kept, dtype).items():
                assert gap <= allowed, (
                    f"{kept.method!r} is declared to preserve the function, but {mode} outputs differ by {gap:.2g} "
                    f"in {dtype} (allowed: {allowed:g})"
                )


def _gaps(case: Case, dtype: torch.dtype) -> dict[str, float]:
    base, model = case.apply(stack=case.bare, dtype=dtype).model, case.apply(dtype=dtype).model
    gaps = {}
    with torch.no_grad():
        for mode in (True, False):
            outputs = [main(net.train(mode)(case.example.sample(dtype))) for net in (model, base)]
            gaps["training" if mode else "evaluation"] = worst(*outputs)
    return gaps


def float64_throughout(case: Case) -> None:
    """A float64 net stays float64: parameters, buffers, outputs and loss, through apply and training steps."""
    applied = case.apply(dtype=torch.float64)
    losses = case.train(applied, case.optimizer(applied), case.example.batches(2, torch.float64))
    output = main(applied.model(case.example.sample(torch.float64)))
    found = {"the output": output, "the loss": losses[-1], **tensors(applied.model)}
    narrow = [name for name, tensor in found.items() if tensor.is_floating_point() and tensor.dtype != torch.float64]
    assert not narrow, f"in a float64 net these are {found[narrow[0]].dtype}: {', '.join(narrow[:4])}"
    bad = [name for name, tensor in found.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    assert not bad, f"not finite after two steps: {', '.join(bad[:4])}"


def gradients_are_derivatives(case: Case) -> None:
    """First and second derivatives of the loss agree with differences, in float64, in train mode at a fixed step.

    The loss is without the stack's terms, whose moments are detached on purpose. With respect to all trainable
    parameters but the owned ones: those are moved by rules of their own.
    """
    applied = case.apply(dtype=torch.float64)
    model = applied.model.train()
    binding: Any = model._pliant
    clock, base = binding.clock, applied.criterion(case.example.loss).base
    owned = {p for p, rule in rules(model, applied.stack.methods).items() if rule.owned}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad and p not in owned}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x, y = case.example.batch(0, torch.float64)

    def loss(*values: Tensor) -> Tensor:
        # No training loop: that the terms and the step part are not used is meant.
        clock.without_terms = clock.without_step = 0
        # Fresh copies: the step stands still and statistics do not accumulate between two evaluations.
        state = {name: buffer.clone() for name, buffer in buffers.items()} | dict(zip(named, values, strict=True))
        return base(functional_call(model, state, (x,)), y)

    point = tuple(p.detach().clone().requires_grad_() for p in named.values())
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    try:
        torch.autograd.gradcheck(loss, point)
        torch.autograd.gradgradcheck(loss, point, (one,), fast_mode=True)
    except GradcheckError as error:
        raise AssertionError(f"with the parameters in the order {', '.join(named)}: {error}") from error


def evaluation_is_pure(case: Case) -> None:
    """Eval mode: the same output every time, example by example; no buffer and no clock moves.

    In train mode the clock counts forwards, one each.
    """
    applied = case.trained(dtype=torch.float64)
    model = applied.model.eval()
    x = case.example.sample(torch.float64)
    before = tensors(model)
    with torch.no_grad():
        first, second, part = model(x), model(x), model(x[:3])
    assert same(first, second), "two eval forwards of the same input differ"
    # torch's own LSTM rounds differently with gradients and without.
    gap = worst(model(x), first)
    assert gap <= WIDE, f"an eval forward with gradients enabled differs by {gap:.2g}"
    gap = worst(part, first[:3])
    assert gap <= WIDE, f"in eval mode an example's output depends on the others in its batch (by {gap:.2g})"
    moved = differing(before, tensors(model))
    assert not moved, f"an eval forward changed {', '.join(moved[:4])}"
    step = getattr(model, STEP, None)
    if isinstance(step, Tensor):
        at = int(step)
        with torch.no_grad():
            model.train()(x)
        assert int(step) == at + 1, f"a training forward moved the clock from {at} to {int(step)}"


def copies_are_independent(case: Case) -> None:
    """A deep copy trains like the original and apart from it; `bind` finds its stack."""
    batches, other = case.example.batches(4), case.example.batches(2, start=50)
    straight = case.apply()
    case.train(straight, case.optimizer(straight, "sgd"), batches)
    want = tensors(straight.model)

    applied = case.apply()
    case.train(applied, case.optimizer(applied, "sgd"), batches[:2])
    twins = [_bound(copy.deepcopy(applied.model)) for _ in range(2)]
    case.train(twins[0], case.optimizer(twins[0], "sgd"), other)
    case.train(applied, case.optimizer(applied, "sgd"), batches[2:])
    found = differing(want, tensors(applied.model))
    assert not found, f"training a deep copy changed the original's training: {', '.join(found[:4])}"
    case.train(twins[1], case.optimizer(twins[1], "sgd"), batches[2:])
    found = differing(want, tensors(twins[1].model))
    assert not found, f"a deep copy trains differently from its original: {', '.join(found[:4])}"


def _bound(model: nn.Module) -> Applied:
    applied = bind(model)
    assert applied.model is model, "bind gave the Applied of another model"
    return applied
