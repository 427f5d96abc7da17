"""What pliant costs where it should cost nothing: importing it, its help, its hooks and its keyed randomness.

    python benchmarks/overhead.py [--json] [--rounds 60]

Floors: import at most 0.3 s beyond torch's, `pliant --help` under 1 s, hooks below 2 % of a step of the network of
Ioffe & Szegedy 2015 (784-100-100-100-10 with batch norm, batch 64, one thread).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

import pliant
from pliant.core import keyed
from pliant.core.method import Meta, Method, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idle(Method):
    """Fills every part that runs each step and draws one number per hidden layer, but changes nothing."""

    meta: ClassVar[Meta] = Meta(title="Idle", paper="none", summary="costs only its hooks", phase=Phase.OBJECTIVE)

    def on_forward(self, model: nn.Module, ctx: Any) -> None:
        keyed.host_uniforms(3, ctx.seed, "idle", ctx.step)

    def before_step(self, model: nn.Module, ctx: Any) -> None:
        """Nothing."""

    def after_step(self, model: nn.Module, ctx: Any) -> None:
        """Nothing."""


def hooks(rounds: int) -> float:
    """Median ratio of neighbouring rounds: a step with idle hooks over the same net's step without.

    One net with its hooks put in and taken out: two nets lie elsewhere in memory, which alone makes a few per cent.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((784, 100), (100, 100), (100, 100)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.Sigmoid()]
    net = nn.Sequential(*layers, nn.Linear(100, 10))
    x, y = torch.randn(64, 784), torch.randint(0, 10, (64,))
    applied = pliant.Stack(Idle()).apply(net, sample=x)
    criterion = applied.criterion(F.cross_entropy)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1)))
    places = (net._forward_pre_hooks, optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    kept = [dict(place) for place in places]

    def seconds(hooked: bool) -> float:
        for place, own in zip(places, kept, strict=True):
            place.clear()
            place.update(own if hooked else {})
        # One thread, so processor time is the step's own even on a busy machine.
        start = time.process_time()
        for _ in range(10):
            optimizer.zero_grad()
            criterion(net(x), y).backward()
            optimizer.step()
        return time.process_time() - start

    for hooked in (True, False):
        seconds(hooked)
    ratios = []
    for index in range(rounds):
        order = (True, False) if index % 2 else (False, True)
        taken = {hooked: seconds(hooked) for hooked in order}
        ratios.append(taken[True] / taken[False])
    return statistics.median(ratios)


def process(code: str) -> float:
    """Seconds of one Python process that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def importing(repeats: int = 7) -> tuple[float, float]:
    """Median seconds of importing torch alone, and of what pliant's stack, layers and a method add, in turn."""
    pairs = [
        (process("import torch"), process("import torch; from pliant import Stack, BatchNorm, nn"))
        for _ in range(repeats)
    ][1:]
    return statistics.median(a for a, _ in pairs), statistics.median(b - a for a, b in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description="what pliant costs where it should cost nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=60, help="interleaved rounds of ten steps")
    options = parser.parse_args()
    torch_alone, added = importing()
    helping = statistics.median(process("from pliant.cli import main; main(['--help'])") for _ in range(5))
    rows = [
        {"what": "importing Stack, BatchNorm and nn, beyond torch", "unit": "s", "value": added, "limit": 0.3},
        {"what": "pliant --help", "unit": "s", "value": helping, "limit": 1.0},
        {
            "what": "a step with all hooks and three keyed draws",
            "unit": "x",
            "value": hooks(options.rounds),
            "limit": 1.02,
        },
    ]
    if options.json:
        print(json.dumps({"torch": torch.__version__, "import_torch_s": torch_alone, "rows": rows}))
    else:
        for row in rows:
            verdict = "ok" if row["value"] <= row["limit"] else "over"
            print(f"{row['what']:44} {row['value']:.3f} {row['unit']} (limit {row['limit']:g})  {verdict}")
    return 0 if all(row["value"] <= row["limit"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
