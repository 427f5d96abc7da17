from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pliant.models
from pliant.core.errors import InputError
from pliant.models import build, model_factories

SHAPE = {"input_shape": (1, 8, 8), "classes": 10}


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"])
def test_every_name(name: str) -> None:
    assert name in model_factories()
    assert build(name, **SHAPE)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_options() -> None:
    net = build({"name": "mlp", "hidden": [7], "activation": "relu", "init_std": None}, **SHAPE)
    assert (net.fc1.out_features, type(net.act1)) == (7, nn.ReLU)
    assert len(build({"name": "resnet", "depth": 14}, **SHAPE).layer1) == 2
    assert build({"name": "resnet20", "widths": [2, 4, 8]}, **SHAPE).fc.in_features == 8


def test_weights_come_from_the_global_generator_alone() -> None:
    with torch.random.fork_rng():
        nets = []
        for _ in range(2):
            torch.manual_seed(5)
            nets.append(build("cnn", **SHAPE))
        nets.append(build("cnn", **SHAPE))
    weights = [net.conv1.weight for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_new_file_adds_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linear.py").write_text(
        "from torch import nn\n"
        "def linear(*, input_shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
        "MODELS = {'linear': linear}\n"
    )
    monkeypatch.setattr(pliant.models, "__path__", [*pliant.models.__path__, str(tmp_path)])
    model_factories.cache_clear()
    try:
        assert set(model_factories()) >= {"linear", "mlp"}
        assert len(build("linear", **SHAPE)) == 2
    finally:
        model_factories.cache_clear()


def test_a_callable_gets_what_it_accepts() -> None:
    seen: dict[str, Any] = {}

    def all_of_it(**everything: Any) -> nn.Module:
        seen.update(everything)
        return nn.Identity()

    build({"name": all_of_it, "width": 3}, **SHAPE)
    assert seen == {"input_shape": (1, 8, 8), "classes": 10, "width": 3}
    assert isinstance(build(lambda: nn.Flatten(), **SHAPE), nn.Flatten)
    assert build(lambda classes: nn.Linear(64, classes), **SHAPE).out_features == 10
    assert isinstance(build(nn.Flatten, **SHAPE), nn.Flatten)


def broken(classes: int) -> nn.Module:
    raise RuntimeError("no such layer")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mpl", "unknown model 'mpl': did you mean 'mlp'.*file.py:factory"),
        ("resnet21", "did you mean 'resnet"),
        ({"name": "mlp", "hiden": [3]}, "model 'mlp' has no option 'hiden': did you mean 'hidden'"),
        ({"name": "resnet20", "depth": 32}, "model 'resnet20' has no option 'depth'"),
        ({"name": "mlp", "classes": 3}, "'classes' comes from the data; remove it"),
        ({"hidden": [3]}, "key 'name' is missing .found hidden"),
        ({"name": nn.Linear}, "model 'Linear' needs 'in_features'; give it in the recipe"),
        (nn.Flatten(), "got a built Flatten; give a function that builds it"),
        (3, "got a int, expected a name"),
        (dict, "model 'dict' does not tell its parameters; wrap it"),
        (lambda: 5, "returned a int, expected a torch.nn.Module"),
        (
            broken,
            r"model 'broken' failed while it was built: RuntimeError: no such layer \(test_registry.py, line \d+\)",
        ),
        ({"name": "mlp", "activation": "rellu"}, "^mlp: unknown activation 'rellu'"),
    ],
)
def test_bad_specs(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(spec, **SHAPE)
