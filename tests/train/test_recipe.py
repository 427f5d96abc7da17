from __future__ import annotations

from pathlib import Path

import pytest

from pliant.core.errors import InputError, SettingError
from pliant.core.registry import get
from pliant.train import Augment, Recipe, Task
from pliant.train.recipe import StudySettings

TEXT = """
version = 1
title = "a test"
data = "digits"

[model]
name = "mlp"
hidden = [10]

[train]
steps = 30
batch_size = 8
optimizer = "adam"
lr = 0.01
schedule = "cosine"
warmup = 0.1

[augment]
crop = 1

[methods]
stack = ["batch_norm"]

[arms]
base = []
wn = [{method = "weight_norm", init_scale = 2.0}]

[study]
seeds = 6
rates = [0.1, 1]
"""


def test_tables_become_task_stack_arms_and_plan() -> None:
    recipe = Recipe.from_toml(TEXT)
    task = recipe.task
    assert (task.data, task.model) == ("digits", {"name": "mlp", "hidden": [10]})
    assert (task.steps, task.batch_size, task.augment) == (30, 8, Augment(crop=1))
    assert (task.optimizer.name, task.optimizer.lr) == ("adam", 0.01)
    assert (task.schedule.name, task.schedule.warmup) == ("cosine", 0.1)
    assert [method.name for method in recipe.methods] == ["batch_norm"]
    assert recipe.arms["base"] == ()
    assert recipe.arms["wn"] == (get("weight_norm")(init_scale=2.0),)
    assert recipe.study == StudySettings(seeds=6, rates=(0.1, 1.0))
    assert recipe.title == "a test"


def test_round_trip_is_fully_resolved() -> None:
    for recipe in (Recipe.from_toml(TEXT), Recipe.default()):
        text = recipe.to_toml()
        assert Recipe.from_toml(text) == recipe
        assert Recipe.from_toml(text).to_toml() == text
        for key in ("momentum", "eval_every", "threads", "calibration", "eps"):
            assert f"{key} = " in text


def test_load_reads_a_file_and_applies_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT)
    recipe = Recipe.load(
        path,
        [
            "train.lr=0.5",
            "train.optimizer=sgd",
            "data = 'mnist'",
            "model.hidden=[4, 5]",
            'arms.bn=["batch_norm"]',
            "study.seeds=[3, 5, 8, 9]",
        ],
    )
    assert (recipe.task.optimizer.lr, recipe.task.optimizer.name) == (0.5, "sgd")
    assert recipe.task.data == "mnist"
    assert recipe.task.model == {"name": "mlp", "hidden": [4, 5]}
    assert list(recipe.arms) == ["base", "wn", "bn"]
    assert recipe.study.seeds == (3, 5, 8, 9)


def test_a_bare_word_with_a_file_is_a_string() -> None:
    assert Recipe.from_toml(TEXT, ["model=nets/mine.py:build"]).task.model == "nets/mine.py:build"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", r"mine\.toml: unknown key 'train\.lrr': did you mean 'train\.lr'"),
        ("train.seeds=3", r"unknown key 'train\.seeds': did you mean 'study\.seeds'\?"),
        ("traim.lr=3", r"unknown key 'traim': did you mean 'train'"),
        ("train.lr=-1", r"mine\.toml: train\.lr is -1; expected a number in \(0, inf\)"),
        ("train.steps='many'", r"mine\.toml: train\.steps is 'many'; expected a whole number"),
        ("train.schedule=cosinus", r"train\.schedule is 'cosinus'; .*did you mean 'cosine'"),
        ("augment.crop=-3", r"mine\.toml: augment\.crop is -3"),
        ("study.metric=accuracy", r"study\.metric is 'accuracy'; expected .*test_score"),
        ("study.alpha=1", r"study\.alpha is 1"),
        ("study.seeds=0", r"study\.seeds is 0"),
        ("study.rates=[0]", r"study\.rates is \[0\]"),
        ("study.base=bsae", r"study\.base is 'bsae', which is none of the arms: did you mean 'base'"),
        ("arms.x=['bath_norm']", r"mine\.toml: arms\.x: unknown method 'bath_norm': did you mean 'batch_norm'"),
        ("arms.x=[{method='weight_norm', init_scal=1.0}]", r"arms\.x: .*init_scal.*did you mean 'init_scale'"),
        ("arms.x='batch_norm'", r"arms\.x is 'batch_norm'; expected a list of methods"),
        ("methods.stack=[3]", r"methods\.stack is \[3\]"),
        ("methods=3", r"methods is 3; expected a table"),
        ("version=2", r"mine\.toml is written for recipe version 2, this pliant reads version 1; install a newer"),
        ("version=0", r"recipe version 0, .*; rewrite it"),
    ],
)
def test_refusals_name_file_key_and_remedy(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_toml(TEXT, [override], name="mine.toml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", r"expected key\.key=value"),
        (".lr=3", r"expected key\.key=value"),
        ("train.lr=[1", r"'\[1' is no TOML value"),
        ("title.x=1", r"'title' is 'a test', not a table"),
    ],
)
def test_malformed_overrides_are_explained(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_toml(TEXT, [override])


def test_files_that_are_no_recipes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml cannot be read"):
        Recipe.load(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("version = 1\ndata = digits\n")
    with pytest.raises(InputError, match=r"broken\.toml is no valid TOML: .*line 2"):
        Recipe.load(broken)
    with pytest.raises(InputError, match=r"has no version; add the line: version = 1"):
        Recipe.from_toml("data = 'digits'")
    with pytest.raises(SettingError, match=r"lacks model, train\.batch_size"):
        Recipe.from_toml("version = 1\ndata = 'digits'\n[train]\nsteps = 3")


def test_the_default_is_the_study_of_the_first_paper() -> None:
    recipe = Recipe.default(["train.steps=60"])
    assert list(recipe.arms) == ["base", "batch_norm", "weight_norm", "batchless_norm"]
    assert recipe.task.batch_size == 60 and recipe.task.steps == 60
    assert recipe.study.arguments()["rates"] == (0.1, 0.3, 1.0, 3.0, 10.0)


def test_objects_in_memory_have_no_recipe(blobs: object) -> None:
    task = Task(data=blobs, model="mlp", steps=1, batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Task\.data is an object in memory"):
        Recipe(task=task).to_toml()
