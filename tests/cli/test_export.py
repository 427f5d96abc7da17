from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def test_a_trained_run_becomes_a_file_that_torch_alone_runs(pliant: Any, recipe: str, tmp_path: Path) -> None:
    assert pliant("train", recipe, "--out", "run/a").code == 0
    result = pliant("export", "run/a", "--json")
    assert result.code == 0, result.err
    # Weight norm's lengths are gone: 8 + 10 fewer parameters.
    counts = result.json["parameters"]
    assert counts["trained"] - counts["finished"] == 18
    loaded = torch.export.load(tmp_path / result.json["path"]).module()
    assert loaded(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_the_file_can_be_named(pliant: Any, recipe: str, tmp_path: Path) -> None:
    assert pliant("train", recipe, "--out", "run/a").code == 0
    result = pliant("export", "run/a/checkpoint.safetensors", "-o", "small.pt2")
    assert result.code == 0, result.err
    assert "agree with eval mode" in result.out
    assert (tmp_path / "small.pt2").exists()


def test_bad_input(pliant: Any, recipe: str) -> None:
    result = pliant("export", "nowhere")
    assert result.code == 2
    assert "train first" in result.err
    assert pliant("train", recipe, "--out", "run/a").code == 0
    result = pliant("export", "run/a", "-o", "net.bin")
    assert result.code == 2
    assert ".pt2" in result.err
