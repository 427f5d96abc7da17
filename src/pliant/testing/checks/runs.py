"""Training runs: seeds, interruptions, micro-batches, half precision."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pliant.core import keyed
from pliant.core.applied import Applied

from ..case import Case, Kind
from ..nets import KEY, hold_statistics
from ..snapshot import changed, differing, generators, tensors, worst

STEPS = 5


def same_seed_same_run(case: Case) -> None:
    """Equal seeds give equal runs, bit for bit, whatever the global generators hold, and leave those alone.

    Another seed gives another run exactly for methods that draw keyed noise.
    """
    want, drawn = _run(case, seed=1, mood=1)
    again, _ = _run(case, seed=1, mood=2)
    found = differing(want, again)
    assert not found, (
        f"two runs with the same seed differ in {', '.join(found[:4])}: noise must be keyed (core.keyed) by the seed, "
        "never come from a global generator or from state kept outside the model"
    )
    others = (differing(want, _run(case, seed=seed, mood=1)[0]) for seed in range(2, 10 if drawn else 3))
    differs = any(others)
    if drawn:
        assert differs, "it draws keyed noise, but eight other seeds gave the same run: the seed is not used"
    else:
        assert not differs, (
            "another seed gives another run, but no noise was drawn by a function of core.keyed (call it as keyed.name)"
        )


def _run(case: Case, seed: int, mood: int) -> tuple[dict[str, Tensor], bool]:
    """A short run with the global generators in some state: the final tensors, and whether keyed noise was drawn."""
    with _generators(mood), _watched() as draws:
        before = generators()
        applied = case.trained(STEPS, seed=seed)
        moved = changed(before, generators())
        assert not moved, f"apply and training drew from the global generator of {moved[0]}; use core.keyed"
    return tensors(applied.model), bool(draws)


@contextmanager
def _generators(mood: int) -> Iterator[None]:
    legacy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mood)
        np.random.seed(mood)  # noqa: NPY002
        random.seed(mood)
        try:
            yield
        finally:
            np.random.set_state(legacy)  # noqa: NPY002
            random.setstate(python)


DRAWS = ("derive", "host_uniform", "host_uniforms", "generator", "uniform")


@contextmanager
def _watched() -> Iterator[list[str]]:
    """The functions of `core.keyed` that a method calls. The example nets and batches have a key of their own."""
    calls: list[str] = []
    real = {name: getattr(keyed, name) for name in DRAWS}

    def watched(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if args[1:2] != (KEY,):
                calls.append(name)
            return real[name](*args, **kwargs)

        return call

    try:
        for name in DRAWS:
            setattr(keyed, name, watched(name))
        yield calls
    finally:
        for name in DRAWS:
            setattr(keyed, name, real[name])


def interrupted_is_uninterrupted(case: Case) -> None:
    """Saved, loaded into a fresh net with the same stack, and continued: bit for bit the run that never stopped."""
    kinds: tuple[Kind, ...] = ("momentum", "adam")
    for kind in kinds:
        batches = case.example.batches(6)
        straight = case.apply(seed=3)
        optimizer = case.optimizer(straight, kind)
        case.train(straight, optimizer, batches)
        want = _everything(straight, optimizer)

        first = case.apply(seed=3)
        optimizer = case.optimizer(first, kind)
        case.train(first, optimizer, batches[:3])
        file = io.BytesIO()
        torch.save((first.state(), first.model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        log, model, moments = torch.load(file, weights_only=True)
        # Other weights than the saved ones: whatever is not in the checkpoint shows.
        second = case.apply(case.example.net(seed=9), seed=3)
        second.load_state(log)
        second.model.load_state_dict(model)
        optimizer = case.optimizer(second, kind)
        optimizer.load_state_dict(moments)
        case.train(second, optimizer, batches[3:])
        found = differing(want, _everything(second, optimizer))
        assert not found, (
            f"resumed with {kind}, the run differs from the uninterrupted one in {', '.join(found[:4])}: what changes "
            "during training must be a parameter or a persistent buffer"
        )


def _everything(applied: Applied, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = dict(applied.model.state_dict())
    for number, state in optimizer.state_dict()["state"].items():
        found |= {f"optimizer {number}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return found


def accumulation_is_as_declared(case: Case) -> None:
    """ "exact": losses of micro-batches, weighted n_i/N, give the whole batch's gradients; "per_batch": finite ones."""
    exact = case.cls.meta.accumulation == "exact"
    x, y = case.example.batch(0, torch.float64)
    gradients = []
    for parts in ((slice(None),), (slice(0, 5), slice(5, None))):
        net = case.example.net(dtype=torch.float64)
        if exact:
            hold_statistics(net)
        applied = case.apply(net, dtype=torch.float64)
        criterion = applied.criterion(case.example.loss)
        for part in parts:
            (criterion(applied.model(x[part]), y[part]) * (len(y[part]) / len(y))).backward()
        named = applied.model.named_parameters()
        gradients.append({name: p.grad for name, p in named if p.grad is not None})
    whole, parted = gradients
    if exact:
        assert whole.keys() == parted.keys(), f"only one side has gradients of {sorted(whole.keys() ^ parted.keys())}"
        gaps = {name: worst(parted[name], whole[name]) for name in whole}
        name = max(gaps, key=lambda name: gaps[name])
        assert gaps[name] <= 1e-9, f"micro-batches give another gradient of {name} (by {gaps[name]:.2g})"
    bad = [name for name, gradient in parted.items() if not bool(gradient.isfinite().all())]
    assert not bad, f"gradients of micro-batches are not finite: {', '.join(bad[:4])}"


def bfloat16_autocast_is_finite(case: Case) -> None:
    """Under bf16 autocast loss, gradients and steps are finite; parameters and statistics stay float32."""
    applied = case.apply()
    optimizer = case.optimizer(applied, "adam")
    criterion = applied.criterion(case.example.loss)
    for x, y in case.example.batches(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(applied.model(x), y)
        loss.backward()
        found = {"the loss": loss, **tensors(applied.model)}
        bad = [name for name, t in found.items() if t.is_floating_point() and not bool(t.isfinite().all())]
        assert not bad, f"not finite under autocast: {', '.join(bad[:4])}"
        optimizer.step()
        optimizer.zero_grad()
    narrow = [
        name
        for name, tensor in tensors(applied.model).items()
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    ]
    assert not narrow, f"autocast left half-precision parameters or statistics: {', '.join(narrow[:4])}"
