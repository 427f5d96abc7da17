from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pliant.core.applied import bind
from pliant.core.errors import CheckpointError
from pliant.core.registry import get
from pliant.core.stack import Stack
from pliant.train import load, save
from pliant.train.file import read

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """Encoder and decoder share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x).tanh())


def make_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adamax"])
def test_loading_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    options = {"momentum": 0.9} if kind == "SGD" else {}
    torch.manual_seed(0)
    model = make_net()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.05, **options)
    step(model, optimizer)
    save(tmp_path / "a.safetensors", model, optimizer, extra={"epoch": 3, "seen": torch.arange(2), "rates": (0.1, 0.2)})
    step(model, optimizer)

    other = make_net()
    optimizer = getattr(torch.optim, kind)(other.parameters(), lr=9.0, **options)
    extra = load(tmp_path / "a.safetensors", other, optimizer)
    assert extra["epoch"] == 3 and extra["rates"] == (0.1, 0.2) and extra["seen"].tolist() == [0, 1]
    step(other, optimizer)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_stack_is_stored_and_applied_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_net()
    applied = Stack(get("batch_norm")(), get("weight_norm")()).apply(model, sample=X, seed=7)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1), momentum=0.9))
    step(model, optimizer)
    save(tmp_path / "a.safetensors", model, optimizer)

    other = make_net()
    with pytest.raises(CheckpointError, match=r"made with batch_norm, weight_norm, which the model lacks"):
        load(tmp_path / "a.safetensors", other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9))
    load(tmp_path / "a.safetensors", other, sample=X)
    again = bind(other)
    assert again.stack.to_json() == applied.stack.to_json() and again.seed == applied.seed == 7
    fresh = again.attach(torch.optim.SGD(again.groups(lr=0.1), momentum=0.9))
    load(tmp_path / "a.safetensors", other, fresh)
    step(model, optimizer)
    step(other, fresh)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_model_with_the_same_stack_takes_over_the_seed_of_its_noise(tmp_path: Path) -> None:
    first, second = (Stack(get("batch_norm")()).apply(make_net(), sample=X, seed=seed) for seed in (7, 0))
    save(tmp_path / "a.safetensors", first.model)
    load(tmp_path / "a.safetensors", second.model)
    assert second.seed == bind(second.model).seed == 7


def test_another_stack_is_refused_by_its_differences(tmp_path: Path) -> None:
    model = make_net()
    Stack(get("batch_norm")(eps=1e-3)).apply(model, sample=X)
    save(tmp_path / "a.safetensors", model)
    other = make_net()
    Stack(get("batch_norm")(), get("weight_norm")()).apply(other, sample=X)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"batch_norm\.eps was 0\.001 and is 1e-05; weight_norm is only in the model"
    ):
        load(tmp_path / "a.safetensors", other)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    plain = make_net()
    save(tmp_path / "b.safetensors", plain)
    with pytest.raises(CheckpointError, match=r"batch_norm is only in the model; weight_norm is only in the model"):
        load(tmp_path / "b.safetensors", other)


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    save(tmp_path / "a.safetensors", model)
    tensors, meta = read(tmp_path / "a.safetensors")
    assert meta["aliases"] == {"decode.weight": "encode.weight"}
    assert sorted(tensors) == ["model/decode.bias", "model/encode.bias", "model/encode.weight"]
    other = Tied()
    load(tmp_path / "a.safetensors", other)
    assert other.decode.weight is other.encode.weight
    assert torch.equal(other(X), model(X))


def test_names_are_those_of_the_uncompiled_model(tmp_path: Path) -> None:
    model = make_net()
    whole = torch.compile(model, backend="eager")
    parts = make_net()
    parts[2] = torch.compile(parts[2], backend="eager")  # type: ignore[assignment, index]
    for index, compiled in enumerate((whole, parts)):
        path = tmp_path / f"{index}.safetensors"
        save(path, compiled)  # type: ignore[arg-type]
        assert sorted(read(path)[0]) == ["model/0.bias", "model/0.weight", "model/2.bias", "model/2.weight"]
    for target in (make_net(), parts, whole):
        for index in (1, 0):
            load(tmp_path / f"{index}.safetensors", target)  # type: ignore[arg-type]
            stored = read(tmp_path / f"{index}.safetensors")[0]
            for name, tensor in target.state_dict().items():
                assert torch.equal(tensor, stored[f"model/{name.replace('_orig_mod.', '')}"])


def test_another_model_is_refused_by_names_and_shapes(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", make_net())
    wider = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    with pytest.raises(CheckpointError, match=r"2\.weight is float32\[3, 5\] in the checkpoint and float32\[4, 5\]"):
        load(tmp_path / "a.safetensors", wider)
    deeper = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    with pytest.raises(CheckpointError, match=r"the checkpoint has no 1\.bias; the checkpoint has no 1\.weight"):
        load(tmp_path / "a.safetensors", deeper)
    with pytest.raises(CheckpointError, match=r"the model has no 2\.bias"):
        load(tmp_path / "a.safetensors", nn.Sequential(nn.Linear(6, 5)))
    with pytest.raises(CheckpointError, match=r"0\.bias is float32\[5\] in the checkpoint and float64\[5\]"):
        load(tmp_path / "a.safetensors", make_net().double())


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    model = make_net()
    path = tmp_path / "a.safetensors"
    save(path, model)
    with pytest.raises(CheckpointError, match="holds no optimizer"):
        load(path, model, torch.optim.SGD(model.parameters(), lr=0.1))
    save(path, model, torch.optim.Adam(model.parameters()))
    with pytest.raises(CheckpointError, match=r"holds the state of Adam, but the optimizer is SGD"):
        load(path, model, torch.optim.SGD(model.parameters(), lr=0.1))
    split = [{"params": [parameter]} for parameter in model.parameters()]
    with pytest.raises(CheckpointError, match=r"the optimizer's groups differ"):
        load(path, model, torch.optim.Adam(split))
