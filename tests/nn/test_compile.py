"""Every layer as one graph for the compiler, and in evaluation for torch.export."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pliant.nn import BatchlessNorm, BatchNorm, BatchNorm1d, BatchNorm2d, StochasticDepth


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYERS = {
    "batch_norm": (lambda: BatchNorm2d(3), (4, 3, 2, 2)),
    "cumulative": (lambda: BatchNorm1d(3, momentum=None), (4, 3)),
    "frozen": (lambda: BatchNorm(3, frozen=True), (4, 3)),
    "batchless_norm": (lambda: BatchlessNorm(3), (4, 3, 2, 2)),
    "stochastic_depth": (lambda: StochasticDepth(0.5, "batch", "test", block=1), (4, 3)),
    "stochastic_depth_rows": (lambda: StochasticDepth(0.5, "row", "train", block=1), (4, 3)),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_whole_equals_eager(name):
    make, shape = LAYERS[name]
    eager = make()
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(4):
        x, y = (draw(*shape, seed=step).requires_grad_() for _ in range(2))
        left, right = eager(x), run(y)
        torch.testing.assert_close(left, right)
        left.square().sum().backward()
        right.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        for a, b in zip(eager.buffers(), compiled.buffers(), strict=True):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(eager.eval()(x), torch.compile(compiled.eval(), fullgraph=True, backend="aot_eager")(x))


def test_compiled_batch_norm_is_guarded():
    layer = BatchNorm2d(3)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    run(draw(4, 3, 2, 2))
    before = copy.deepcopy(layer.state_dict())
    run(torch.full((4, 3, 2, 2), torch.nan))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    assert layer.skipped_batches.item() == 1
    with pytest.warns(RuntimeWarning, match="not finite"):
        layer.eval()


def test_batchless_likelihood_in_and_beside_a_compiled_model():
    eager, compiled = BatchlessNorm(3), BatchlessNorm(3)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(3):
        x = draw(5, 3, seed=step) + 2
        for layer, forward in ((eager, eager), (compiled, run)):
            forward(x)
            forward(3 * x)
            layer.nll().backward()
    torch.testing.assert_close(eager.mean.grad, compiled.mean.grad)
    torch.testing.assert_close(eager.log_std.grad, compiled.log_std.grad)

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = BatchlessNorm(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x).sum() + self.norm.nll()

    model = WithLoss()
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in range(2):
        x = draw(5, 3, seed=step)
        torch.testing.assert_close(whole(x), copy.deepcopy(model)(x))


@pytest.mark.parametrize("name", LAYERS)
def test_export_in_evaluation(name):
    make, shape = LAYERS[name]
    layer = make()
    layer(draw(*shape))
    layer.eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (draw(*shape),), dynamic_shapes=({0: batch},))
    x = draw(7, *shape[1:], seed=1)
    torch.testing.assert_close(program.module()(x), layer(x))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten.") for name in operators)
