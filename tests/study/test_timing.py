from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pliant.study.simulated import SimulatedTask
from pliant.study.timing import time_arms


def recorder(log: Path) -> Any:
    """A time_step that is slower for rate 2 and drifts from call to call; sent to workers by value."""

    def time_step(task: Any, methods: Any, *, lr: float, steps: int) -> dict[str, float]:
        calls = log.read_text().splitlines() if log.exists() else []
        log.write_text("\n".join([*calls, f"{lr} {steps} {torch.get_num_threads()} {os.getpid()}"]))
        drift = 1.0 + len(calls) // 2
        return {"step_ms": drift * (3.0 if lr == 2.0 else 1.0), "peak_mb": 10.0 * lr}

    return time_step


def test_arms_are_interleaved_in_fresh_processes_and_ratios_taken_within_rounds(tmp_path: Path) -> None:
    found = time_arms(
        SimulatedTask(threads=2),
        {"base": [], "slow": []},
        {"base": 1.0, "slow": 2.0},
        "base",
        steps=7,
        rounds=2,
        time_step=recorder(tmp_path / "log"),
    )
    rates, steps, threads, processes = zip(
        *(line.split() for line in (tmp_path / "log").read_text().splitlines()), strict=True
    )
    assert rates == ("1.0", "2.0", "2.0", "1.0")
    assert set(steps) == {"7"}
    assert set(threads) == {"2"}
    assert len(set(processes)) == 4 and str(os.getpid()) not in processes
    # The machine slows down from round to round (1, 2): the medians follow it, the ratio does not.
    assert found["base"] == {"step_ms": 1.5, "step_ms_ratio": 1.0, "peak_mb": 10.0}
    assert found["slow"] == {"step_ms": 4.5, "step_ms_ratio": 3.0, "peak_mb": 20.0}
