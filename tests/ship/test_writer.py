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
    with pytest.raises(FinalizeError, match="is not the model: it differs by"):
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


class Pair(nn.Module):
    """Takes two inputs of different widths and a plain number; returns what `answer` makes of the sum."""

    def __init__(self, answer):
        super().__init__()
        self.a, self.b, self.answer = nn.Linear(4, 3), nn.Linear(2, 3), answer

    def forward(self, a, b, scale=1.0):
        return self.answer((self.a(a) + self.b(b)) * scale)


def pair_sample(rows: int = 5) -> dict[str, torch.Tensor]:
    return {"b": torch.linspace(-1, 1, 2 * rows).view(rows, 2), "a": torch.linspace(-2, 1, 4 * rows).view(rows, 4)}


@pytest.mark.parametrize("options", [{}, {"scale": torch.tensor(2.0)}, {"scale": 2.0}])
def test_keyword_arguments_in_any_order_keep_a_free_batch(options, tmp_path):
    net = Pair(nn.Identity())
    path = pliant.export(net, tmp_path / "net.pt2", sample=pair_sample() | options)
    other = pair_sample(7) | options
    torch.testing.assert_close(torch.export.load(path).module()(**other), net(**other))


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: pliant.Outputs(y, (y.exp(),)),
        lambda y: (y, y > 0),
        lambda y: {"class": y.argmax(-1)},
        lambda y: y.masked_fill(y > 0, float("-inf")),
    ],
    ids=["Outputs", "bool", "int", "inf"],
)
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_every_kind_of_output_is_written_and_compared(answer, ending, tmp_path):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = Pair(answer)
    lean = pliant.Stack(pliant.WeightNorm(data_init=False)).apply(net, sample=pair_sample()).finalize()
    assert pliant.export(lean, tmp_path / f"net.{ending}", sample=pair_sample()).is_file()


def test_modules_keep_their_own_modes(x, tmp_path):
    net = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)).train()
    net[1].eval()
    pliant.export(net, tmp_path / "net.pt2", sample=x)
    assert net.training and net[0].training and not net[1].training


def test_a_model_that_the_runtime_cannot_run_is_told_with_the_remedy(x, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = nn.Sequential(nn.Conv1d(6, 3, 1)).double()
    with pytest.raises(FinalizeError, match=r"ONNX Runtime cannot run this model .*export model.float\(\)"):
        pliant.export(net, tmp_path / "net.onnx", sample=x.double()[None])
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_allowed_its_rounding(x, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)).half()
    assert pliant.export(net, tmp_path / "net.onnx", sample=x.half()).is_file()
