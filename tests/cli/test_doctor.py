from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pliant.cli import diagnosis
from pliant.core import registry

NET = """\
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.act, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.act(self.conv1(x)))

def build(input_shape, classes):
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3, padding=1), Block(), nn.Flatten(), nn.LazyLinear(classes))

def residual(input_shape, classes):
    size = 4 * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3, padding=1), Block(), nn.Flatten(), nn.Linear(size, classes))

class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.used(x)

def idle(input_shape, classes):
    return Idle()

def fixed():
    return nn.Linear(7, 2)

def explodes():
    net = nn.Linear(4, 2)
    nn.init.constant_(net.weight, float("inf"))
    return net
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return "net.py"


def _states(found: dict[str, Any]) -> dict[str, str]:
    return {method["name"]: method["state"] for method in found["methods"]}


def test_tells_for_every_method_where_it_applies(pliant: Any, net: str) -> None:
    result = pliant("doctor", f"{net}:residual", "--input-shape", "1,6,6", "--json")
    found = result.json
    states = _states(found)
    assert list(states) == registry.names()
    assert states["batch_norm"] == states["stochastic_depth"] == states["weight_norm"] == "applies"
    assert states["bn_scale_init"] == "no match"
    depth = next(m for m in found["methods"] if m["name"] == "stochastic_depth")
    assert [e["path"] for e in depth["report"]["entries"] if e["kind"] == "change"] == ["1"]
    assert "no batch norm" in next(m for m in found["methods"] if m["name"] == "bn_scale_init")["lines"][0]
    assert result.code == (1 if "broken" in states.values() else 0)


def test_text_shows_changes_reasons_and_the_machine(pliant: Any, net: str) -> None:
    text = pliant("doctor", f"{net}:residual", "--input-shape", "1,6,6").out
    assert "net.py:residual on inputs of shape 1×6×6" in text
    assert "bn_scale_init: no match" in text
    assert "weight = g * v / ||v||" in text
    assert "trainable parameters" in text
    for what in ("torch", "threads", "C++ compiler"):
        assert f"\n{what}" in text


def test_a_built_in_model_by_name(pliant: Any) -> None:
    found = pliant("doctor", "mlp", "--input-shape", "1,4,4", "--classes", "3", "--json").json
    assert found["facts"]["output"] == "8×3"
    assert found["facts"]["gradients"] == "reach every parameter"
    assert found["facts"]["train against eval"] == "same outputs"


def test_idle_parameters_are_named(pliant: Any, net: str) -> None:
    found = pliant("doctor", f"{net}:idle", "--input-shape", "4", "--json").json
    assert found["facts"]["gradients"] == "none reaches unused.weight, unused.bias"


def test_declared_pairs_are_drawn_and_explained(pliant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pliant.core import stack
    from pliant.core.stack import Pair

    monkeypatch.setattr(stack, "conflicts", lambda a, b: [Pair(a.name, b.name, "refused", "because")])
    monkeypatch.setattr(registry, "names", lambda: ["batch_norm", "weight_norm"])
    text = pliant("doctor", "mlp", "--input-shape", "1,4,4").out
    assert "1 batch_norm      x\n2 weight_norm  x\n" in text
    assert "batch_norm with weight_norm (refused): because" in text


def test_a_model_that_cannot_run_is_broken(pliant: Any, net: str) -> None:
    result = pliant("doctor", f"{net}:fixed", "--input-shape", "5", "--json")
    assert result.code == 1
    assert result.json["broken"] is True
    assert "float batch of shape 8×5" in result.json["faults"][0]
    assert "--input-shape" in result.json["faults"][0]
    assert result.json["methods"] == []


def test_numbers_that_are_not_finite_are_broken(pliant: Any, net: str) -> None:
    result = pliant("doctor", f"{net}:explodes", "--input-shape", "4")
    assert result.code == 1
    assert "broken: outputs or gradients on standard normal inputs are not finite" in result.out


def test_a_method_that_breaks_is_told_from_one_that_refuses(pliant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = registry.get("weight_norm")

    def plan(self: object, model: object, ctx: object) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr(method, "plan", plan)
    result = pliant("doctor", "mlp", "--input-shape", "1,4,4", "--json")
    assert _states(result.json)["weight_norm"] == "broken"
    assert result.json["faults"] == ["weight_norm: RuntimeError: lost"]
    assert result.code == 1


def test_many_places_share_a_line(pliant: Any) -> None:
    found = pliant("doctor", "resnet20", "--input-shape", "3,8,8", "--json").json
    lines = next(m for m in found["methods"] if m["name"] == "weight_norm")["lines"]
    assert lines[0].startswith("conv1, layer1.0.conv1, layer1.0.conv2, ... 20 places: weight = g")


def test_the_model_is_left_alone() -> None:
    import torch

    from pliant.models import build

    torch.manual_seed(0)
    net = build("mlp", input_shape=(1, 4, 4), classes=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = diagnosis.diagnose("mlp", (1, 4, 4), 3)
    diagnosis._try(net, torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)), found)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mpl"], "did you mean 'mlp'"),
        (["nothere.py:build"], "no such file"),
        (["mlp", "--input-shape", "3,x"], "'3,x' is no shape: expected whole numbers such as 3,32,32"),
        (["mlp", "--input-shape", "0,2"], "is no shape"),
        (["mlp", "--classes", "0"], "not a whole number of at least 1"),
    ],
)
def test_bad_input(pliant: Any, argv: list[str], message: str) -> None:
    result = pliant("doctor", *argv)
    assert result.code == 2
    assert message in result.err
