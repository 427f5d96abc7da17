"""Run by test_fabric under two processes: trains and leaves each rank's result in a folder."""

import json
import os
import sys
from pathlib import Path

import torch

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


def main(folder: Path, accumulate: int) -> None:
    trained = fit(make_task(accumulate), seed=3, test=True, checkpoint=folder / "run.safetensors")
    rank = os.environ["RANK"]
    torch.save(trained.model.state_dict(), folder / f"weights{rank}.pt")
    (folder / f"record{rank}.json").write_text(json.dumps(trained.record.to_json()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
