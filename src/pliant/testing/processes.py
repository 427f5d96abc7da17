"""Data parallel runs in two gloo processes, compared with one process.

Starting processes costs seconds, so one start serves all methods that are to be tested.
"""

from __future__ import annotations

import datetime
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn
from torch.nn.parallel import DistributedDataParallel

from pliant.core.method import Method

from .case import Case
from .nets import hold_statistics
from .snapshot import differing, tensors, worst

RANKS = 2
STEPS = 3
TIMEOUT = datetime.timedelta(seconds=60)


class Processes:
    """Runs every given method in two processes, once, when the first result is asked for."""

    def __init__(self, *classes: type[Method]) -> None:
        self.classes = classes
        self._results: dict[type[Method], list[Any]] | None = None

    def runs(self, cls: type[Method]) -> list[dict[str, Tensor]]:
        """The tensors of the trained model on each rank; AssertionError with the traceback when a rank failed."""
        if self._results is None:
            results: dict[type[Method], list[Any]] = {}
            # After a failure the ranks may wait for different things: the classes behind it get new processes.
            while len(results) < len(self.classes):
                results |= _start(self.classes[len(results) :])
            self._results = results
        ranks = self._results[cls]
        failed = next((told for told in ranks if isinstance(told, str)), None)
        assert failed is None, f"in two processes it fails:\n{failed}"
        return ranks


def _start(classes: tuple[type[Method], ...]) -> dict[type[Method], list[Any]]:
    """The results of the first classes, up to and including the first that fails."""
    with tempfile.TemporaryDirectory() as folder:
        ended = "a process ended without a result"
        try:
            spawn(_rank, (folder, classes), nprocs=RANKS)
        except (ProcessRaisedException, ProcessExitedException) as error:
            ended = f"{ended}: {error}"
        results: dict[type[Method], list[Any]] = {}
        for number, cls in enumerate(classes):
            files = [Path(folder) / f"{number}.{rank}.pt" for rank in range(RANKS)]
            results[cls] = [torch.load(file, weights_only=True) if file.is_file() else ended for file in files]
            if any(isinstance(told, str) for told in results[cls]):
                break
        return results


def _rank(rank: int, folder: str, classes: tuple[type[Method], ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=TIMEOUT)
    for number, cls in enumerate(classes):
        try:
            told: Any = train(Case(cls), rank)
        except Exception:
            told = traceback.format_exc()
        torch.save(told, Path(folder) / f"{number}.{rank}.pt")
        if isinstance(told, str):
            break
    dist.destroy_process_group()


def train(case: Case, rank: int | None) -> dict[str, Tensor]:
    """A short float64 run on the rank's half of every batch, or on whole batches (None); the final tensors."""
    net = case.example.net(dtype=torch.float64)
    if case.cls.meta.processes == "exact":
        hold_statistics(net)
    applied = case.apply(net, dtype=torch.float64)
    optimizer = case.optimizer(applied)
    criterion = applied.criterion(case.example.loss)
    outer: nn.Module = applied.model
    half = case.example.rows // RANKS
    part = slice(None) if rank is None else slice(rank * half, (rank + 1) * half)
    if rank is not None:
        outer = DistributedDataParallel(outer, find_unused_parameters=applied.may_skip_parameters)
    for x, y in case.example.batches(STEPS, torch.float64):
        criterion(outer(x[part]), y[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
        applied.advance((x[part], y[part]))
    return tensors(applied.model)


def compare(case: Case, processes: Processes) -> None:
    """Two processes train as `meta.processes` says.

    "exact": on halves of the batches they reach the parameters of one process on whole batches. "per_rank" and
    "needs_sync": they stay finite. Always: the parameters are bitwise equal on both ranks.
    """
    first, second = processes.runs(case.cls)
    names = [name for name, _ in case.apply().model.named_parameters()]
    apart = [name for name in differing(first, second) if name in names]
    assert not apart, f"the two processes hold different parameters: {', '.join(apart[:4])}"
    bad = [name for name in names if not bool(first[name].isfinite().all())]
    assert not bad, f"not finite in two processes: {', '.join(bad[:4])}"
    if case.cls.meta.processes == "exact":
        want = train(case, None)
        gaps = {name: worst(first[name], want[name]) for name in names}
        name = max(gaps, key=lambda name: gaps[name])
        assert gaps[name] <= 1e-9, f"two processes on half batches differ from one in {name} by {gaps[name]:.2g}"
