"""The stochastic depth layer: its gates, its three scales, and that they are a function of a key."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pliant.core.errors import InputError
from pliant.nn import StochasticDepth


def gates_of(layer: StochasticDepth, steps: int, rows: int = 1) -> torch.Tensor:
    return torch.stack([layer(torch.ones(rows, 2))[:, 0] != 0 for _ in range(steps)])


@pytest.mark.parametrize("mode", ["batch", "row"])
@pytest.mark.parametrize(
    ("scale", "open_gate", "evaluation"), [("test", 1, 0.8), ("train", 1 / 0.8, 1), ("none", 1, 1)]
)
def test_the_three_scales(mode, scale, open_gate, evaluation):
    layer = StochasticDepth(0.8, mode, scale, block=1)
    f = torch.ones(6, 3, 2, 2)
    seen = sorted({float(v) for _ in range(40) for v in layer(f).unique()})
    assert seen == pytest.approx([0.0, open_gate])
    assert float(layer.eval()(f).unique()) == pytest.approx(evaluation)


def test_the_expectation_over_gates_is_the_evaluation_output():
    # 0.8 within 4 deviations of the mean of 20000 gates.
    for scale, expected in (("test", 0.8), ("train", 1.0)):
        layer = StochasticDepth(0.8, "row", scale, block="b", seed=3)
        f = torch.ones(20000, 1, dtype=torch.float64)
        error = 4 * (0.8 * 0.2 / 20000) ** 0.5 * expected / 0.8
        assert abs(float(layer(f).mean()) - expected) < error
        assert float(layer.eval()(f).mean()) == pytest.approx(expected)


def test_batch_mode_has_one_gate_and_row_mode_one_per_example():
    batch, row = (StochasticDepth(0.5, mode, block=2) for mode in ("batch", "row"))
    assert all(len(set(step.tolist())) == 1 for step in gates_of(batch, 20, rows=8))
    mixed = gates_of(row, 20, rows=8)
    assert sum(len(set(step.tolist())) == 2 for step in mixed) > 10
    f = torch.arange(1.0, 9.0)[:, None].expand(8, 5)
    y = row(f)
    assert all(torch.equal(y[i], f[i]) or not y[i].any() for i in range(8))


def test_a_closed_gate_stops_gradients_and_nan():
    layer = StochasticDepth(0.5, block=0)
    for _ in range(20):
        x, bad = torch.ones(3, 2, requires_grad=True), torch.full((3, 2), torch.nan)
        step = layer.step.clone()
        y = x + layer(x * 7)
        y.sum().backward()
        layer.step.copy_(step)
        closed = not torch.isnan(layer(bad)).any()
        assert x.grad.unique().tolist() == [1.0 if closed else 8.0]


def test_gates_are_a_function_of_seed_block_and_step():
    gates = gates_of(StochasticDepth(0.5, block=3, seed=1), 64)
    assert torch.equal(gates, gates_of(StochasticDepth(0.5, block=3, seed=1), 64))
    for other in (StochasticDepth(0.5, block=4, seed=1), StochasticDepth(0.5, block=3, seed=2)):
        assert not torch.equal(gates, gates_of(other, 64))
    assert 16 < int(gates.sum()) < 48


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    gates_of(StochasticDepth(0.5, "row", block=0), 3, rows=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_interrupted_is_uninterrupted():
    whole, first, second = (StochasticDepth(0.5, "row", block=0) for _ in range(3))
    expected = gates_of(whole, 10, rows=4)
    head = gates_of(first, 4, rows=4)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(torch.cat([head, gates_of(second, 6, rows=4)]), expected)
    assert whole.step.item() == 10
    assert torch.equal(gates_of(copy.deepcopy(whole), 3), gates_of(whole, 3))


def test_evaluation_draws_nothing():
    layer = StochasticDepth(0.5, block=0).eval()
    layer(torch.ones(2, 2))
    assert layer.step.item() == 0


@pytest.mark.parametrize("rank_in_key", ["batch", "row"])
def test_ranks_agree_on_batch_gates_and_differ_on_rows(rank_in_key, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    gates = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        gates.append(gates_of(StochasticDepth(0.5, rank_in_key, block=0), 16, rows=4))
    assert torch.equal(*gates) == (rank_in_key == "batch")


class Block(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.branch, self.depth = nn.Linear(3, 3), StochasticDepth(0.5, mode, block=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.depth(self.branch(x))


@pytest.mark.parametrize("mode", ["batch", "row"])
def test_recomputation_takes_the_same_gate(mode):
    plain = Block(mode)
    recomputed = copy.deepcopy(plain)
    for seed in range(8):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
        a = plain(x)
        b = checkpoint(recomputed, x, use_reentrant=False)
        assert torch.equal(a, b)
        a.square().sum().backward()
        b.square().sum().backward()
        assert torch.equal(plain.branch.weight.grad, recomputed.branch.weight.grad)
        assert torch.equal(plain.depth.step, recomputed.depth.step)


@pytest.mark.parametrize("scale", ["test", "train", "none"])
def test_certain_survival_returns_the_input_itself(scale):
    layer, x = StochasticDepth(1.0, scale=scale, block=0), torch.ones(2)
    assert layer(x) is x and torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("scale", ["test", "train", "none"])
def test_certain_death_is_finite_and_told_of(scale):
    with pytest.warns(UserWarning, match="never trained"):
        layer = StochasticDepth(0.0, scale=scale, block=0)
    x = torch.ones(2, 2, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert not y.any() and not x.grad.any()


def test_half_precision():
    layer = StochasticDepth(0.5, scale="train", block=0)
    assert layer(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.eval()(torch.ones(2, 2, dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, "rows"), r"did you mean 'row'"),
        ((0.5, "row", "tests"), r"did you mean 'test'"),
        ((1.5,), r"outside \[0, 1\]"),
    ],
)
def test_errors_name_cause_and_remedy(arguments, message):
    with pytest.raises(InputError, match=message):
        StochasticDepth(*arguments, block=0)
