"""Exported files compute what the model computes, or do not exist."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant.core.errors import FinalizeError, InputError
from pliant.ship import writer as module


@pytest.fixture
def x() -> torch.Tensor:
    return torch.linspace(-2, 2, 6 * 8).view(6, 8)


def finished(x: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    return pliant.Stack(pliant.BatchNorm()).apply(net, sample=x).finalize(data=[x])


def test_pt2_loads_with_torch_alone_and_takes_other_batch_sizes(x, tmp_path):
    lean = finished(x)
    path = pliant.export(lean, tmp_path / "net.pt2", sample=x)
    loaded = torch.export.load(path).module()
    for rows in (2, 5, 6):
        torch.testing.assert_close(loaded(x[:rows]), lean(x[:rows]))
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


def test_onnx_runs_in_onnxruntime(x, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    lean = finished(x)
    path = pliant.export(lean, tmp_path / "net.onnx", sample=x)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x[:2].numpy()})
    torch.testing.assert_close(torch.from_numpy(got), lean(x[:2]).detach(), atol=1e-5, rtol=1e-5)


def test_a_file_that_disagrees_is_not_kept(x, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_run_pt2", lambda *_: torch.zeros(6, 3))
    with pytest.raises(FinalizeError, match="differs from the model"):
        pliant.export(finished(x), tmp_path / "net.pt2", sample=x)
    assert list(tmp_path.iterdir()) == []


def test_refusals_say_what_to_do(x, tmp_path):
    lean = finished(x)
    with pytest.raises(InputError, match=r"\.onnx"):
        pliant.export(lean, tmp_path / "net.onx", sample=x)
    with pytest.raises(InputError, match="make it first"):
        pliant.export(lean, tmp_path / "missing" / "net.pt2", sample=x)
    training = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
    pliant.Stack(pliant.BatchNorm()).apply(training, sample=x)
    with pytest.raises(InputError, match="finalize"):
        pliant.export(training, tmp_path / "net.pt2", sample=x)


def test_the_mode_of_the_model_survives(x, tmp_path):
    net = nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5)).train()
    pliant.export(net, tmp_path / "net.pt2", sample=x)
    assert net.training
