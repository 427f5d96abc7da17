from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pliant.core.errors import InputError
from pliant.core.objective import Outputs
from pliant.train import evaluate

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(101, 4, generator=GENERATOR, dtype=torch.float64), torch.arange(101) % 3


def make_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def cut(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("size", [101, 50, 7, 1])
def test_scores_are_means_over_examples_at_any_batch_size(size: int) -> None:
    model = make_net()
    found = evaluate(model, cut(X, Y, size))
    model.eval()
    output = model(X)
    assert found.loss == pytest.approx(nn.functional.cross_entropy(output, Y).item(), abs=1e-12)
    assert found.score == float((output.argmax(1) == Y).double().mean())
    assert found.count == 101


@pytest.mark.parametrize("world", [2, 3, 8])
def test_shares_of_odd_size_add_up_to_the_whole(world: int) -> None:
    model = make_net()
    whole = evaluate(model, cut(X, Y, 16))
    sums: list[Tensor] = []

    def collect(value: Tensor) -> Tensor:
        sums.append(value)
        return torch.stack(sums).sum(0)

    for rank in range(world):
        shared = evaluate(model, cut(X[rank::world], Y[rank::world], 16), reduce=collect)
    assert (shared.score, shared.count) == (whole.score, 101)
    assert shared.loss == pytest.approx(whole.loss, abs=1e-12)


def test_a_process_without_examples_takes_part() -> None:
    model = make_net()
    others = torch.tensor([2.0, 1.0, 4.0], dtype=torch.float64)
    found = evaluate(model, [], reduce=lambda value: value + others)
    assert (found.loss, found.score, found.count) == (0.5, 0.25, 4)


def test_every_module_gets_its_own_mode_back_even_after_an_error() -> None:
    model = make_net().train()
    model[1].eval()  # type: ignore[index]
    modes = [module.training for module in model.modules()]
    evaluate(model, cut(X, Y, 10))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError):
        evaluate(model, [(X[:, :2], Y)])
    assert [module.training for module in model.modules()] == modes


def test_evaluation_changes_nothing() -> None:
    model = make_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, cut(X, Y, 10))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_main_output_counts() -> None:
    class Heads(nn.Module):
        def forward(self, x: Tensor) -> Outputs:
            return Outputs(x, (-x,))

    found = evaluate(Heads(), [(torch.eye(3), torch.tensor([0, 1, 0]))])
    assert found.score == pytest.approx(2 / 3)


def test_targets_may_have_positions() -> None:
    output = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    target = output.argmax(1)
    target[0, 0] = (target[0, 0] + 1) % 3
    found = evaluate(nn.Identity(), [(output, target)])
    assert found.count == 20 and found.score == pytest.approx(19 / 20)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(output, target)), rel=1e-6)


def test_nothing_to_evaluate_on_is_an_error() -> None:
    with pytest.raises(InputError, match="0 examples; give a larger"):
        evaluate(make_net(), [])
