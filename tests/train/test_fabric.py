from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pliant.core.errors import InputError
from pliant.core.objective import Outputs
from pliant.train import Task, fit, reopen, run
from pliant.train.engine import Single, engine_for, widen
from pliant.train.fabric import Distributed

SCRIPT = Path(__file__).parent / "two_processes.py"


def load_script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run_two(folder: Path, accumulate: int, case: str = "plain") -> list[dict[str, Any]]:
    """What torchrun does, without its minute of imports: two processes with ranks and a port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(SCRIPT), str(folder), str(accumulate), case]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    return [json.loads((folder / f"record{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """Batches of 15 and 33 validation examples do not divide by two: shares are weighted, nothing is padded."""
    first, second = run_two(tmp_path, accumulate=2)
    alone = fit(load_script().make_task(2), seed=3, test=True)
    expected = alone.record.to_json()
    for key in ("status", "steps", "parameters", "lr", "best_valid", "final_valid", "test_score"):
        assert first[key] == second[key] == expected[key], key
    for key in ("train_loss", "valid_loss"):
        assert first["curve"][key] == second["curve"][key] == pytest.approx(expected["curve"][key], rel=1e-5)
    weights = [torch.load(tmp_path / f"weights{rank}.pt") for rank in (0, 1)]
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name])
        torch.testing.assert_close(weights[0][name], tensor, rtol=1e-4, atol=1e-5)
    stored = reopen(tmp_path / "run.safetensors", data=load_script().make_task(2).data)
    assert stored.record.curve == first["curve"]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in stored.model.state_dict().items())


def test_skipped_branches_beside_terms_train_alike_on_both_processes(tmp_path: Path) -> None:
    """The terms reach parameters that the forward leaves alone, while unused ones have to be looked for."""
    first, second = run_two(tmp_path, accumulate=1, case="skips")
    assert first["status"] == second["status"] == "ok"
    assert first["curve"] == second["curve"]
    weights = [torch.load(tmp_path / f"weights{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # The statistics moved, so the terms' gradients arrived.
    means = [tensor for name, tensor in weights[0].items() if name.endswith("norm.mean")]
    assert means and all(bool(mean.abs().max() > 0) for mean in means)


def test_the_plain_engine_adds_no_wrapper(make_task: Callable[..., Task]) -> None:
    engine = engine_for(make_task())
    assert isinstance(engine, Single)
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []

    def criterion(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return output.sum()

    loss, backward, step = engine.wrap(model, criterion, optimizer)
    x = torch.ones(2, 3)
    assert torch.equal(loss(x, torch.zeros(2)), model(x).sum()) and engine.infer(model) is model
    assert len(seen) == 1 and backward is torch.Tensor.backward and step == optimizer.step


def test_a_batch_too_small_to_share_is_refused(make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    with pytest.raises(InputError, match=r"batch_size = 20 cannot be shared by 16 processes x 2 .* at least 32"):
        engine_for(make_task(accumulate=2))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_one_process_under_fabric_is_the_plain_run(
    make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
) -> None:
    task = make_task(precision=precision, accumulate=2)
    plain = run(task)
    monkeypatch.setattr("pliant.train.session.engine_for", Distributed)
    under = run(task, checkpoint=tmp_path / "run.safetensors")
    assert under.same(plain)
    assert run(task, checkpoint=tmp_path / "run.safetensors").same(plain)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(make_task: Callable[..., Task]) -> None:
    with pytest.raises(InputError, match=r"wants device 'cuda', but torch .* sees no GPU"):
        engine_for(make_task(device="cuda"))


def test_low_precision_outputs_are_widened_wherever_they_are() -> None:
    low = torch.ones(2, dtype=torch.bfloat16)
    assert widen(low).dtype == torch.float32
    assert widen(low.double()).dtype == torch.float64
    heads = widen(Outputs(low, (low,)))
    assert heads.main.dtype == heads.aux[0].dtype == torch.float32
