from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.core.errors import CheckpointError
from pliant.core.registry import get
from pliant.core.stack import Stack
from pliant.train import Optimizer, Schedule, Task, fit, run
from pliant.train.file import read, write

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "momentum, cosine": ({"optimizer": Optimizer(momentum=0.9), "schedule": Schedule(name="cosine", warmup=0.1)}, []),
    "nesterov, steps": (
        {"optimizer": Optimizer(momentum=0.9, nesterov=True), "schedule": Schedule(name="step")},
        ["weight_norm"],
    ),
    "adam": ({"optimizer": Optimizer(name="adam", lr=0.01)}, ["batch_norm"]),
    "adamw, accumulated": (
        {
            "optimizer": Optimizer(name="adamw", lr=0.01, weight_decay=0.1),
            "schedule": Schedule(name="cosine"),
            "accumulate": 3,
        },
        ["batch_norm", "weight_norm"],
    ),
    "plain": ({}, ["batchless_norm"]),
}


class Stop(Exception):
    pass


class StopAt:
    """A tracker that fails once the run is at `step`, as a full disk or a lost network would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, facts: Mapping[str, Any], step: int, steps: int) -> None:
        assert facts["seed"] == 3

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        if step >= self.step:
            raise Stop

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("every", [4, 10])
@pytest.mark.parametrize("case", list(CASES))
def test_interrupted_is_uninterrupted_bit_for_bit(
    case: str, every: int, make_task: Callable[..., Task], tmp_path: Path
) -> None:
    fields, names = CASES[case]
    task, stack = make_task(**fields), Stack.from_json(names)
    whole = fit(task, stack, seed=3, test=True)
    path = tmp_path / "run.safetensors"
    options: dict[str, Any] = {"seed": 3, "test": True, "checkpoint": path, "checkpoint_every": every}
    for step in (4, 12, 13, 31):
        with pytest.raises(Stop):
            fit(task, stack, trackers=[StopAt(step)], **options)
    resumed = fit(task, stack, **options)
    assert resumed.record.same(whole.record)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    finished = path.read_bytes()
    assert fit(task, stack, **options).record.same(whole.record)
    assert path.read_bytes() == finished


class Noisy(nn.Module):
    """Draws from torch's global generator, as users' modules do."""

    def __init__(self, interrupt_at: int = -1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.interrupt_at, self.calls = interrupt_at, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls == self.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
        return self.net(x)


ATTEMPTS = iter((-1, 7, 6, -1))


def build_noisy() -> nn.Module:
    return Noisy(next(ATTEMPTS))


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(make_task: Callable[..., Task], tmp_path: Path) -> None:
    task = make_task(model=build_noisy)
    whole = fit(task, seed=1)
    path = tmp_path / "run.safetensors"
    handler = signal.getsignal(signal.SIGINT)
    for step in (7, 13):
        with pytest.raises(KeyboardInterrupt):
            fit(task, seed=1, checkpoint=path)
        assert read(path)[1]["run"]["position"]["step"] == step
        assert signal.getsignal(signal.SIGINT) is handler
    resumed = fit(task, seed=1, checkpoint=path)
    assert resumed.record.same(whole.record)
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_another_run_is_refused_by_its_differences(make_task: Callable[..., Task], tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    task = make_task(steps=4)
    run(task, seed=3, lr=0.2, checkpoint=path)
    other = make_task(steps=5, optimizer=Optimizer(momentum=0.5), eval_every=2)
    expected = (
        r"belongs to another run: lr was 0\.2 and is 0\.1; seed was 3 and is 4; task\.eval_every was 10 and is 2; "
        r"task\.optimizer\.momentum was 0\.0 and is 0\.5; task\.steps was 4 and is 5\. Delete it, name another file"
    )
    with pytest.raises(CheckpointError, match=expected):
        run(other, seed=4, checkpoint=path)
    with pytest.raises(CheckpointError, match="batch_norm is only in the model"):
        run(task, [get("batch_norm")()], seed=3, lr=0.2, checkpoint=path)
    with pytest.raises(CheckpointError, match="salt was '' and is 'a'"):
        run(task, seed=3, lr=0.2, salt="a", checkpoint=path)


def test_a_users_checkpoint_is_no_run(make_task: Callable[..., Task], tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    write(path, {}, {"stack": []})
    with pytest.raises(CheckpointError, match=r"written by pliant\.train\.save, not by a training run"):
        run(make_task(), checkpoint=path)


def kill_runs(tmp_path: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "pliant.train.killtest", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(out.read_text())
    return report


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_killed_runs_end_like_runs_left_alone(tmp_path: Path) -> None:
    report = kill_runs(tmp_path, "--runs", "2", "--steps", "100")
    assert report["same"] == 2 and report["kills"] >= 1 and report["left_behind"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_twenty_killed_runs_end_like_runs_left_alone(tmp_path: Path) -> None:
    report = kill_runs(tmp_path, "--runs", "20", "--seed", "1")
    assert report["same"] == 20 and report["kills"] >= 20 and report["left_behind"] == 0
