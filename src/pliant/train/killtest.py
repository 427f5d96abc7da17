"""Kill training runs with SIGKILL at random times, start them again, and compare with runs that were left alone.

    python -m pliant.train.killtest --runs 20 --out kill-resume.json

Every run must end with the same record (measured seconds aside) and the same weights, bit for bit. POSIX only.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pliant._version import __version__
from pliant.core import keyed
from pliant.core.stack import Stack

from .feed import dataset
from .run import fit
from .task import Optimizer, Schedule, Task

EVERY = 3
"""Steps between checkpoints: so few that about half of the kills meet a file being written."""
CASES: dict[str, tuple[Optimizer, list[str]]] = {
    "sgd": (Optimizer(lr=0.3, momentum=0.9, weight_decay=1e-4), ["batch_norm"]),
    "adamw": (Optimizer(name="adamw", lr=0.003, weight_decay=1e-2), ["weight_norm"]),
}


def make_task(optimizer: Optimizer, steps: int) -> Task:
    """Digits with a small net: cosine schedule with warm-up, validations that do not fall on checkpoints."""
    return Task(
        data="digits",
        model={"name": "mlp", "hidden": [64, 64]},
        steps=steps,
        batch_size=60,
        optimizer=optimizer,
        schedule=Schedule(name="cosine", warmup=0.1),
        eval_every=25,
    )


def train_once(case: str, steps: int, folder: Path) -> None:
    """Trains or takes up the run in `folder` and leaves its result there."""
    optimizer, names = CASES[case]
    trained = fit(
        make_task(optimizer, steps),
        Stack.from_json(names),
        test=True,
        checkpoint=folder / "run.safetensors",
        checkpoint_every=EVERY,
    )
    weights = hashlib.sha256()
    for name, tensor in trained.model.state_dict().items():
        weights.update(name.encode() + tensor.numpy().tobytes())
    record = dataclasses.replace(trained.record, seconds=0.0).to_json()
    result = folder / "result.part"
    result.write_text(json.dumps({"record": record, "weights": weights.hexdigest()}))
    result.replace(folder / "result.json")


def in_child(case: str, steps: int, folder: Path, kill_after: float | None) -> bool:
    """Runs `train_once` in a forked process; whether it was killed before its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train_once(case, steps, folder)
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"the run in {folder} failed: see the traceback above")
    return False


def _load_once() -> None:
    """What every forked run would load again; a process that has run threads of its own must not be forked."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")
    dataset("digits")


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def kill_runs(runs: int, steps: int, kills: int, seed: int) -> dict[str, Any]:
    """Per run: how often it was killed and whether it ended like the run left alone."""
    trials: list[dict[str, Any]] = []
    _load_once()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        whole: dict[str, dict[str, Any]] = {}
        seconds: dict[str, float] = {}
        for case in CASES:
            folder = root / case
            folder.mkdir()
            began = time.perf_counter()
            in_child(case, steps, folder, None)
            seconds[case] = time.perf_counter() - began
            whole[case] = result_of(folder)
        for index in range(runs):
            case = list(CASES)[index % len(CASES)]
            folder = root / f"run{index}"
            folder.mkdir()
            killed = 0
            for attempt in range(kills):
                pause = seconds[case] * keyed.host_uniform(seed, "kill", index, attempt)
                if not in_child(case, steps, folder, pause):
                    break
                killed += 1
            in_child(case, steps, folder, None)
            left = [item.name for item in folder.iterdir() if item.name.endswith(".part")]
            same = result_of(folder) == whole[case]
            trials.append({"case": case, "killed": killed, "same": same, "left_behind": left})
    return {
        "what": "runs killed with SIGKILL at random times and started again, against runs left alone",
        "runs": runs,
        "steps": steps,
        "checkpoint_every": EVERY,
        "kills": sum(trial["killed"] for trial in trials),
        "same": sum(trial["same"] for trial in trials),
        "left_behind": sum(len(trial["left_behind"]) for trial in trials),
        "trials": trials,
        "environment": {
            "pliant": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pliant.train.killtest", description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=3, help="kills of each run, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the times at which runs are killed")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    options = parser.parse_args(arguments)
    report = kill_runs(options.runs, options.steps, options.kills, options.seed)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['same']} of {report['runs']} runs ended the same, bit for bit, after {report['kills']} kills")
    return 0 if report["same"] == report["runs"] and not report["left_behind"] else 1


if __name__ == "__main__":
    sys.exit(main())
