"""Population statistics (algorithm 2) on models that hold more than batch norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pliant.core.errors import InputError
from pliant.nn import BatchNorm1d, BatchNorm2d, recalibrate


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Sequential:
    hidden = [nn.Linear(5, 4), BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5)]
    model = nn.Sequential(*hidden, nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.3))
    for index, parameter in enumerate(model.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=index))
    return model


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


BATCHES = [2 * draw(8, 5, seed=seed) + 1 for seed in range(4)]


def test_statistics_are_the_means_over_batches_of_means_and_unbiased_variances():
    model = net()
    model[1].running_mean.fill_(100.0)
    assert recalibrate(model, BATCHES) == ["1", "5"]
    first = [model[0](b) for b in BATCHES]
    torch.testing.assert_close(model[1].running_mean, torch.stack([t.mean(0) for t in first]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([t.var(0) for t in first]).mean(0))
    # The second sees what training gives it, batch statistics in front, but no dropout.
    bn = nn.BatchNorm1d(4)
    bn.load_state_dict(model[1].state_dict())
    second = [model[4](torch.relu(bn.train()(t))) for t in first]
    torch.testing.assert_close(model[5].running_mean, torch.stack([t.mean(0) for t in second]).mean(0))
    torch.testing.assert_close(model[5].running_var, torch.stack([t.var(0) for t in second]).mean(0))


def test_modes_momenta_and_parameters_are_as_before():
    model = net().train()
    model[3].eval()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    parameters = [p.clone() for p in model.parameters()]
    recalibrate(model, iter(BATCHES))
    assert [m.training for m in model.modules()] == modes
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_the_same_result_whatever_the_batches_look_like():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, pixels):
            return self.net(pixels)

    tensors = net()
    recalibrate(tensors, BATCHES)
    labels = torch.zeros(8)
    for batches in ([(b, labels) for b in BATCHES], [[b, labels] for b in BATCHES]):
        pairs = net()
        recalibrate(pairs, batches)
        assert_same(pairs, tensors.state_dict())
    keyword = Keyword()
    recalibrate(keyword, [{"pixels": b} for b in BATCHES])
    assert_same(keyword.net, tensors.state_dict())
    custom = net()
    recalibrate(custom, [{"x": b, "y": labels} for b in BATCHES], forward=lambda model, batch: model(batch["x"]))
    assert_same(custom, tensors.state_dict())


def test_eval_then_agrees_with_batch_statistics_better_than_an_untrained_average():
    model = net()
    x = torch.cat(BATCHES)
    model[3].p = 0.0
    target = model.train()(x)
    fresh = net().eval()(x)
    recalibrate(model, BATCHES)
    assert (model.eval()(x) - target).square().mean() < 0.2 * (fresh - target).square().mean()


def test_a_model_without_batch_norm_is_left_alone():
    assert recalibrate(nn.Linear(2, 2), iter([])) == []


def test_frozen_untracked_and_unreached_batch_norms_are_left_alone():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.auxiliary = BatchNorm2d(2), nn.BatchNorm2d(2)
            self.fixed, self.own = BatchNorm2d(2).freeze(), nn.BatchNorm2d(2, track_running_stats=False)

        def forward(self, x):
            x = self.own(self.fixed(self.main(x)))
            return (x, self.auxiliary(x)) if self.training else x

    model = Heads()
    model(draw(4, 2, 3, 3))
    before = state_of(model)
    assert recalibrate(model, [draw(4, 2, 3, 3, seed=1)]) == ["main"]
    after = state_of(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"main.running_mean", "main.running_var"}


def broken(model: nn.Module, batch: torch.Tensor) -> None:
    model(batch)
    raise RuntimeError("the loader's third file is damaged")


@pytest.mark.parametrize(
    ("batches", "forward", "error", "message"),
    [
        ([], None, InputError, "no batches.*fresh one"),
        (["text"], None, InputError, "batch of type str.*forward="),
        ([()], None, InputError, "batch of type tuple"),
        (BATCHES, broken, RuntimeError, "damaged"),
        ([BATCHES[0], torch.full((8, 5), torch.nan)], None, InputError, "batch norm '5' gave statistics .* not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:BatchNorm1d:RuntimeWarning")
def test_a_failure_leaves_the_model_as_it_was(batches, forward, error, message):
    model = net().train()
    model(BATCHES[0])
    before = state_of(model)
    with pytest.raises(error, match=message):
        recalibrate(model, batches, forward)
    assert_same(model, before)
    assert all(m.training for m in model.modules()) and model[5].momentum == 0.3


def test_bare_layer_and_copy():
    layer = BatchNorm1d(5)
    other = copy.deepcopy(layer)
    assert recalibrate(layer, BATCHES) == [""]
    assert not torch.equal(layer.running_mean, other.running_mean)
