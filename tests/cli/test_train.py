from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest


def _numbers(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((path / "record.json").read_text())
    return {key: value for key, value in record.items() if key != "seconds"}


def test_leaves_record_checkpoint_and_resolved_recipe(pliant: Any, recipe: str, tmp_path: Path) -> None:
    result = pliant("train", recipe, "--out", "run/a", "--set", "train.steps=8")
    assert result.code == 0, result.err
    folder = tmp_path / "run/a"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.safetensors", "recipe.toml", "record.json"]
    record = _numbers(folder)
    assert record["steps"] == 8
    assert [method["method"] for method in record["stack"]] == ["weight_norm"]
    assert tomllib.loads((folder / "recipe.toml").read_text())["train"]["steps"] == 8
    assert "final validation accuracy" in result.out
    assert "step 8/8" in result.err
    assert record["test_score"] is None


def test_json_and_the_test_set_on_request(pliant: Any, recipe: str) -> None:
    result = pliant("train", recipe, "--test", "--json")
    assert result.code == 0
    assert 0 <= result.json["test_score"] <= 1
    assert result.json["checkpoint"] == "run/last/checkpoint.safetensors"


def test_a_stopped_run_goes_on_where_it_was(
    pliant: Any, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pliant.train import Progress

    assert pliant("train", recipe, "--out", "whole").code == 0

    def stop(self: Progress, step: int, values: object) -> None:
        if step >= 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "log", stop)
        result = pliant("train", recipe, "--out", "parts")
    assert result.code == 130
    assert "continue with: pliant train tiny.toml --out parts" in result.err
    result = pliant("train", recipe, "--out", "parts")
    assert result.code == 0
    assert "resuming parts/checkpoint.safetensors" in result.err
    assert "step 4/12" not in result.err
    assert _numbers(tmp_path / "parts") == _numbers(tmp_path / "whole")


def test_another_run_in_the_folder_is_refused(pliant: Any, recipe: str) -> None:
    assert pliant("train", recipe).code == 0
    result = pliant("train", recipe, "--seed", "1")
    assert result.code == 2
    assert "seed was 0 and is 1" in result.err


def test_a_diverged_run_fails_with_a_remedy(pliant: Any, recipe: str) -> None:
    result = pliant("train", recipe, "--set", "train.lr=1e30", "--set", "methods.stack=[]")
    assert result.code == 1
    assert "diverged at learning rate 1e+30" in result.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothere.toml"], "cannot be read"),
        (["tiny.toml", "--set", "train.stps=3"], "did you mean 'train.steps'"),
        (["tiny.toml", "--set", "train.steps"], "expected key.key=value"),
        (["tiny.toml", "--set", "data=digitz"], "digits"),
        (["tiny.toml", "--seed", "-1"], "whole number of at least 0"),
        (["tiny.toml", "--out", "tiny.toml/x"], "name another with --out"),
    ],
)
def test_bad_input(pliant: Any, recipe: str, argv: list[str], message: str) -> None:
    result = pliant("train", *argv)
    assert result.code == 2
    assert message in result.err


def test_an_arm_of_the_comparison_can_be_trained(pliant: Any, recipe: str, tmp_path: Path) -> None:
    result = pliant("train", recipe, "--out", "run/arm", "--arm", "base", "--set", "train.steps=4")
    assert result.code == 0, result.err
    assert _numbers(tmp_path / "run/arm")["stack"] == []
    assert "no methods: the plain model is trained" in result.err
    result = pliant("train", recipe, "--out", "run/other", "--arm", "bas")
    assert result.code == 2
    assert "'base'" in result.err


def test_a_refused_run_leaves_no_folder(pliant: Any, recipe: str, tmp_path: Path) -> None:
    assert pliant("train", recipe, "--out", "run/bad", "--set", "data='npz:missing.npz'").code == 2
    assert not (tmp_path / "run/bad").exists()
