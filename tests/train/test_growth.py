"""Structure that changes while training: stretches, checkpoints and optimizer state must follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pliant.core.context import Context
from pliant.core.method import Meta, Method, Phase
from pliant.core.migrate import migrate, rules
from pliant.train import Optimizer, Task, fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Widen(Method):
    """Adds units to the hidden layer at given steps; their outgoing weights start at zero."""

    meta = Meta(title="widen", paper="", summary="", phase=Phase.OBJECTIVE)
    at: tuple[int, ...] = (15, 25)
    units: int = 4

    def advance(self, model: nn.Module, ctx: Context, batch: Any) -> Any:
        if ctx.step not in self.at:
            return None
        self.replay(model, ctx, self.units)
        return self.units

    def replay(self, model: nn.Module, ctx: Context, entry: Any) -> None:
        before = {p for p in model.parameters() if p.requires_grad}
        old, out = model.get_submodule("fc1"), model.get_submodule("out")
        old.weight = nn.Parameter(torch.cat([old.weight.detach(), torch.ones(entry, old.weight.shape[1])]))  # type: ignore[operator]
        old.bias = nn.Parameter(torch.cat([old.bias.detach(), torch.zeros(entry)]))
        out.weight = nn.Parameter(torch.cat([out.weight.detach(), torch.zeros(out.weight.shape[0], entry)], 1))  # type: ignore[operator]
        if ctx.optimizer is not None:
            migrate(ctx.optimizer, before, rules(model, (self,)))


class Stop(Exception):
    pass


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, facts: Mapping[str, Any], step: int, steps: int) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        if step >= self.step:
            raise Stop

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("optimizer", [Optimizer(lr=0.1, momentum=0.9), Optimizer(name="adam", lr=0.01)])
def test_a_run_that_grows_resumes_bit_for_bit(
    make_task: Callable[..., Task], tmp_path: Path, optimizer: Optimizer
) -> None:
    task = make_task(optimizer=optimizer)
    whole = fit(task, [Widen()])
    assert whole.record.parameters == 20 * (5 + 1) + 3 * (20 + 1) and whole.record.steps == 40
    assert whole.record.status == "ok" and len(whole.record.curve["step"]) == 4
    path = tmp_path / "run.safetensors"
    for step in (8, 16, 20, 28):
        with pytest.raises(Stop):
            fit(task, [Widen()], checkpoint=path, checkpoint_every=4, trackers=[StopAt(step)])
    resumed = fit(task, [Widen()], checkpoint=path, checkpoint_every=4)
    assert resumed.record.same(whole.record)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
