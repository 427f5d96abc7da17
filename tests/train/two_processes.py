"""Run by test_fabric under two processes: trains and leaves each rank's result in a folder."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

import pliant
from pliant.data import ArrayData
from pliant.train import Optimizer, Task, fit


def make_task(accumulate: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(171) % 3
    x = torch.randn(171, 5, generator=generator) + y[:, None]
    return Task(
        data=ArrayData(x, y),
        model={"name": "mlp", "hidden": [16], "activation": "tanh"},
        steps=30,
        batch_size=15,
        accumulate=accumulate,
        optimizer=Optimizer(lr=0.2, momentum=0.9),
        eval_every=10,
    )


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.act(self.fc1(x)))


def residual(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(Block(*input_shape), Block(*input_shape), nn.Linear(*input_shape, classes))


def main(folder: Path, accumulate: int, case: str) -> None:
    task, methods = make_task(accumulate), ()
    if case == "skips":
        task = dataclasses.replace(task, model=residual, optimizer=Optimizer(lr=0.05))
        methods = (pliant.StochasticDepth(p_last=0.5, schedule="uniform"), pliant.BatchlessNorm())
    trained = fit(task, methods, seed=3, test=True, checkpoint=folder / "run.safetensors")
    rank = os.environ["RANK"]
    torch.save(trained.model.state_dict(), folder / f"weights{rank}.pt")
    (folder / f"record{rank}.json").write_text(json.dumps(trained.record.to_json()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
