"""Time of pliant's layers beside torch's own, forward and backward, interleaved in one process.

    python benchmarks/layers.py [--json] [--rounds 60] [--threads 1]

Prints the medians in microseconds and the median of the ratios of neighbouring rounds. Ours must stay within 1.05.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

import pliant.nn

LIMIT = 1.05
CASES = {
    (64, 64, 32, 32): (pliant.nn.BatchNorm2d, torch.nn.BatchNorm2d),
    (128, 256, 14, 14): (pliant.nn.BatchNorm2d, torch.nn.BatchNorm2d),
    (256, 512): (pliant.nn.BatchNorm1d, torch.nn.BatchNorm1d),
}


def step_of(layer: torch.nn.Module, shape: tuple[int, ...]) -> Callable[[], None]:
    """One forward and backward of `layer` on a fixed input."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).requires_grad_()
    upstream = torch.randn(shape, generator=generator)

    def step() -> None:
        layer(x).backward(upstream)
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None

    return step


def seconds(step: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, object]:
    """Median microseconds of both layers, and the median ratio of rounds that alternate which goes first."""
    ours, theirs = (step_of(layer(shape[1]), shape) for layer in CASES[shape])
    repeats = max(1, int(0.005 / seconds(theirs, 3)))
    for step in (ours, theirs):
        seconds(step, repeats)
    pairs = []
    for index in range(rounds):
        order = (ours, theirs) if index % 2 else (theirs, ours)
        taken = {step: seconds(step, repeats) for step in order}
        pairs.append((taken[ours], taken[theirs]))
    return {
        "layer": CASES[shape][0].__name__,
        "shape": list(shape),
        "ours_us": statistics.median(a for a, _ in pairs) * 1e6,
        "torch_us": statistics.median(b for _, b in pairs) * 1e6,
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="pliant's layers beside torch's, forward and backward")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=60, help="interleaved rounds of at least 5 ms each")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(shape, options.rounds) for shape in CASES]
    if options.json:
        print(json.dumps({"torch": torch.__version__, "threads": options.threads, "limit": LIMIT, "rows": rows}))
    else:
        for row in rows:
            verdict = "ok" if row["ratio"] <= LIMIT else f"over {LIMIT}"
            print(
                f"{row['layer']:12} {row['shape']!s:20} ours {row['ours_us']:9.1f} us   torch {row['torch_us']:9.1f} us"
                f"   ratio {row['ratio']:.3f}  {verdict}"
            )
    return 0 if all(row["ratio"] <= LIMIT for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
