"""Steps per second of pliant's training loop beside a bare hand-written PyTorch loop doing the same work.

    python benchmarks/loop.py [--repeats 40] [--json]

The loops take turns in one process, so that a slow spell of the machine meets both; the ratio is the median over the
turns. With `lightning` installed its Trainer is timed on the first network as well: a shuffling DataLoader over the
same tensors, with the losses logged (which pliant's loop does too) and without.
Floors: 0.97 of the bare loop, twice Lightning with the losses logged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.stack import Stack
from pliant.data import ArrayData
from pliant.models import build
from pliant.train.session import Session, process
from pliant.train.task import Optimizer, Task

BARE_FLOOR, LIGHTNING_FLOOR = 0.97, 2.0
WARM_UP = 50
Steps = Callable[[int], None]


def normalised_mlp(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    width = input_shape[0]
    for _ in range(3):
        layers += [nn.Linear(width, 100), nn.BatchNorm1d(100), nn.ReLU()]
        width = 100
    return nn.Sequential(*layers, nn.Linear(width, classes))


def make_task(shape: tuple[int, ...], batch_size: int, model: Any) -> Task:
    generator = torch.Generator().manual_seed(0)
    count = 8192 if len(shape) == 1 else 2048
    data = ArrayData(torch.randn(count, *shape, generator=generator), torch.arange(count) % 10)
    return Task(
        data=data, model=model, steps=10**6, batch_size=batch_size, optimizer=Optimizer(lr=0.01), eval_every=10**6
    )


def pliant_steps(task: Task) -> Steps:
    session = Session(task, Stack(), 0, None, "")
    loop = session.loop(0)
    done = 0

    def steps(count: int) -> None:
        nonlocal done
        loop.run(done, done + count)
        done += count

    return steps


def tensors(task: Task) -> tuple[Tensor, Tensor, nn.Module]:
    """The training part as the task scales it, and a new model."""
    session = Session(task, Stack(), 0, None, "")
    part = session.source.train
    assert isinstance(part.x, Tensor)
    return part.x, part.y, session.model


def bare_steps(task: Task, fused: bool) -> Steps:
    """What one writes by hand: shuffled batches from memory, zero_grad, forward, backward, step."""
    x, y, model = tensors(task)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for rows in torch.randperm(len(x))[: len(x) - len(x) % task.batch_size].split(task.batch_size):
                yield x.index_select(0, rows), y.index_select(0, rows)

    feed = batches()
    model.train()

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            inputs, target = next(feed)
            loss = F.cross_entropy(model(inputs), target)
            loss.backward()
            optimizer.step()

    return steps


def lightning_rate(task: Task, count: int, log: bool) -> float:
    """Steps per second of Lightning's Trainer on a shuffling DataLoader, its start left out.

    log: whether the loss is kept with `self.log`, as pliant's loop keeps it.
    """
    import lightning

    x, y, model = tensors(task)
    times: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, _: int) -> Tensor:
            inputs, target = batch
            loss = F.cross_entropy(self.net(inputs), target)
            if log:
                self.log("loss", loss)
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            times.append(time.perf_counter())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    rows = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(rows, batch_size=task.batch_size, shuffle=True, drop_last=True)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        lightning.Trainer(accelerator="cpu", max_steps=count + WARM_UP, **quiet).fit(Module(), loader)
    return count / (times[-1] - times[-1 - count])


def measure_lightning(task: Task, turns: int, count: int = 200) -> dict[str, Any]:
    """Pliant's rate over Lightning's with and without `self.log`, medians over turns; empty when not installed."""
    if importlib.util.find_spec("lightning") is None:
        return {}
    with process(task):
        steps = pliant_steps(task)
        steps(WARM_UP)
        ratios: dict[str, list[float]] = {"lightning_logging": [], "lightning": []}
        for _ in range(turns):
            own = count / seconds(steps, count)
            ratios["lightning_logging"].append(own / lightning_rate(task, count, log=True))
            ratios["lightning"].append(own / lightning_rate(task, count, log=False))
    return {f"ratio_to_{key}": statistics.median(values) for key, values in ratios.items()}


def seconds(steps: Steps, count: int) -> float:
    began = time.perf_counter()
    steps(count)
    return time.perf_counter() - began


def measure(name: str, task: Task, count: int, repeats: int) -> dict[str, Any]:
    """Medians over `repeats` turns of `count` steps each."""
    with process(task):
        contestants = {
            "pliant": pliant_steps(task),
            "bare": bare_steps(task, fused=False),
            "bare_fused": bare_steps(task, fused=True),
        }
        for steps in contestants.values():
            steps(max(2, count // 4))
        times: dict[str, list[float]] = {key: [] for key in contestants}
        for turn in range(repeats):
            for key in list(contestants) if turn % 2 == 0 else reversed(list(contestants)):
                times[key].append(seconds(contestants[key], count))
        medians = {key: statistics.median(values) for key, values in times.items()}
        result: dict[str, Any] = {
            "network": name,
            "steps_per_second": {key: count / value for key, value in medians.items()},
            "ratio_to_bare": statistics.median(b / p for b, p in zip(times["bare"], times["pliant"], strict=True)),
            "ratio_to_bare_fused": statistics.median(
                b / p for b, p in zip(times["bare_fused"], times["pliant"], strict=True)
            ),
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40, help="turns of the small network (the large one: a fifth)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    small = make_task((784,), 64, normalised_mlp)
    large = make_task(
        (3, 32, 32), 128, lambda input_shape, classes: build("resnet20", input_shape=input_shape, classes=classes)
    )
    results = [
        measure("mlp 784-100-100-100-10, batch norm, batch 64", small, 50, options.repeats),
        measure("resnet20, 3 x 32 x 32, batch 128", large, 2, max(3, options.repeats // 5)),
    ]
    results[0] |= measure_lightning(small, max(3, options.repeats // 8))
    missed = [r["network"] for r in results if min(r["ratio_to_bare"], r["ratio_to_bare_fused"]) < BARE_FLOOR]
    missed += [r["network"] for r in results if r.get("ratio_to_lightning_logging", LIGHTNING_FLOOR) < LIGHTNING_FLOOR]
    report = {"torch": torch.__version__, "threads": small.threads, "results": results, "floors_missed": missed}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for result in results:
            print(result["network"])
            for key, value in result["steps_per_second"].items():
                print(f"  {key:<12} {value:10.1f} steps/s")
            for key, value in result.items():
                if key.startswith("ratio"):
                    print(f"  {key:<26} {value:.3f}")
        floors = f"{BARE_FLOOR} of bare, {LIGHTNING_FLOOR} of Lightning"
        print(f"floors missed: {', '.join(missed) or 'none'} (floors: {floors})")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
