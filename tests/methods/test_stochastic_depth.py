"""Stochastic depth on whole models (Huang et al. 2016): every gate pattern by hand, true skips, exact folding."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pliant
from pliant.core.errors import NoMatchError, SettingError
from pliant.core.gate import gates
from pliant.models import build

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


def resnet(depth: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return build({"name": "resnet", "depth": depth, "widths": [4, 4, 8]}, input_shape=(3, 8, 8), classes=3)


def apply(model: nn.Module, **settings: Any) -> pliant.Applied:
    seed = settings.pop("seed", 0)
    return pliant.Stack(pliant.StochasticDepth(**settings)).apply(model, sample=X, seed=seed)


def open_gates(model: nn.Module, pattern: tuple[bool, ...]) -> None:
    """Makes every training forward take this pattern, whatever is drawn."""

    def force(*_: Any) -> None:
        for (_, forward), is_open in zip(gates(model), pattern, strict=True):
            forward.open[:] = [is_open] * len(forward.open)

    model.register_forward_pre_hook(force)


def by_hand(model: Any, x: Tensor, factors: tuple[float, ...]) -> Tensor:
    """H_l = ReLU(factor_l f_l(H) + id_l(H)) with the model's own layers, block by block."""
    h = F.relu(model.bn1(model.conv1(x)))
    for block, factor in zip((*model.layer1, *model.layer2, *model.layer3), factors, strict=True):
        skip = block.shortcut(h)
        if factor:
            f = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(h)))))
            h = F.relu((f if factor == 1.0 else f * factor) + skip)
        else:
            h = F.relu(skip)
    return model.fc(h.mean((2, 3)))


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", list(itertools.product([False, True], repeat=3)))
def test_every_gate_pattern_is_the_manual_composition(pattern: tuple[bool, ...]):
    model, plain = resnet(), resnet()
    apply(model)
    open_gates(model, pattern)
    torch.testing.assert_close(model(X), by_hand(plain, X, tuple(map(float, pattern))), rtol=1e-6, atol=1e-6)
    for (name, a), b in zip(
        plain.named_buffers(), (model.get_buffer(n) for n, _ in plain.named_buffers()), strict=True
    ):
        assert torch.equal(a, b), name


def test_all_gates_open_is_the_plain_net_bit_for_bit_gradients_included():
    model, plain = resnet(), resnet()
    apply(model)
    open_gates(model, (True,) * 3)
    outputs = [net(X) for net in (plain, model)]
    for output in outputs:
        F.cross_entropy(output, Y).backward()
    assert torch.equal(*outputs)
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_certain_survival_is_the_plain_net_bit_for_bit():
    model, plain = resnet(), resnet()
    apply(model, p_last=1.0, schedule="uniform")
    for net in (plain, model):
        F.cross_entropy(net(X), Y).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), model.parameters(), strict=True))
    assert torch.equal(plain.eval()(X), model.eval()(X))


def test_a_skipped_branch_is_not_computed_and_its_statistics_stand_still():
    model = resnet()
    apply(model)
    calls: dict[str, int] = {}
    for path, _ in gates(model):
        for name in ("conv1", "bn1", "act1", "conv2", "bn2"):
            inner = model.get_submodule(f"{path}.{name}")
            inner.register_forward_hook(lambda *_, path=path: calls.__setitem__(path, calls.get(path, 0) + 1))
    opened = {path: 0 for path, _ in gates(model)}
    for _ in range(12):
        before = {path: model.get_submodule(path).bn1.running_mean.clone() for path in opened}
        model.zero_grad()
        model(X).sum().backward()
        for path, forward in gates(model):
            block = model.get_submodule(path)
            opened[path] += forward.open[0]
            assert torch.equal(block.bn1.running_mean, before[path]) is not forward.open[0]
            assert int(block.bn2.num_batches_tracked) == opened[path]
            assert (block.conv1.weight.grad is not None) is forward.open[0]
    assert calls == {path: 5 * count for path, count in opened.items()}
    assert 0 < sum(opened.values()) < 36


def test_the_input_gradient_of_a_skipped_block_is_its_shortcuts():
    torch.manual_seed(0)
    model = resnet()
    block = model.layer2[0]
    apply(model)
    block.forward.open[0] = False
    x = torch.rand(5, 4, 8, 8, dtype=torch.float32, requires_grad=True)
    out = block(x)
    seed = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, x, seed)
    # id = average pooling and zero channels, and x >= 0 lets ReLU through: a quarter of the gradient to each pixel.
    expected = seed[:, :4].repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    torch.testing.assert_close(got, expected)


def test_gates_survive_with_their_probabilities():
    """2000 steps: counts within 5 binomial standard deviations, one by one and pairwise."""
    model = resnet()
    apply(model, p_last=0.2)
    model = nn.Sequential(model)  # the inner net keeps its clock
    inner, steps, seen = model[0], 2000, []
    clock = next(iter(inner._forward_pre_hooks.values()))
    for _ in range(steps):
        clock(inner, ())
        seen.append([float(forward.open[0]) for _, forward in gates(inner)])
    drawn = torch.tensor(seen)
    chances = [1 - (1 - 0.2) * l / 3 for l in (1, 2, 3)]
    for index, p in enumerate(chances):
        assert abs(float(drawn[:, index].sum()) - steps * p) < 5 * math.sqrt(steps * p * (1 - p))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        p = chances[i] * chances[j]
        assert abs(float((drawn[:, i] * drawn[:, j]).sum()) - steps * p) < 5 * math.sqrt(steps * p * (1 - p))
    # Successive steps are independent too.
    p = chances[2] ** 2
    assert abs(float((drawn[1:, 2] * drawn[:-1, 2]).sum()) - (steps - 1) * p) < 5 * 2 * math.sqrt(steps * p * (1 - p))


def patterns(seed: int, steps: int = 20, global_seed: int = 0) -> list[list[bool]]:
    model = resnet()
    apply(model, seed=seed)
    torch.manual_seed(global_seed)
    found = []
    for _ in range(steps):
        model(X[:2])
        found.append([forward.open[0] for _, forward in gates(model)])
    return found


def test_equal_seeds_give_equal_gates_whatever_the_global_generator_does():
    state = torch.get_rng_state()
    first = patterns(3)
    assert first == patterns(3, global_seed=99) and first != patterns(4)
    torch.set_rng_state(state)
    model = resnet()
    apply(model)
    state = torch.get_rng_state()
    model(X[:2])
    assert torch.equal(state, torch.get_rng_state())


def test_gates_go_on_after_a_resume():
    whole = patterns(1)
    model, again = resnet(), resnet()
    apply(model, seed=1), apply(again, seed=1)
    for _ in range(8):
        model(X)
    again.load_state_dict(model.state_dict())
    rest = []
    for _ in range(12):
        again(X)
        rest.append([forward.open[0] for _, forward in gates(again)])
    assert rest == whole[8:]


class Checkpointed(nn.Module):
    """A ResNet whose blocks are run by torch.utils.checkpoint, or plainly where `reentrant` is None."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.net: Any = resnet()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.net.act1(self.net.bn1(self.net.conv1(x)))
        for block in (*self.net.layer1, *self.net.layer2, *self.net.layer3):
            h = block(h) if self.reentrant is None else checkpoint(block, h, use_reentrant=self.reentrant)
        return self.net.fc(self.net.pool(h).flatten(1))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch, of the recording without gradients
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_meets_the_same_gates(reentrant: bool):
    """Checkpointed blocks give the gradients of the plain pass, step after step."""
    found = []
    for kind in (None, reentrant):
        model = Checkpointed(kind)
        apply(model, seed=2)
        steps = []
        for _ in range(6):
            model.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            opened = tuple(forward.open[0] for _, forward in gates(model))
            steps.append((opened, [None if p.grad is None else p.grad.clone() for p in model.parameters()]))
        found.append(steps)
    assert len({opened for opened, _ in found[0]}) > 1
    for (plain_gates, plain), (recomputed_gates, recomputed) in zip(*found, strict=True):
        assert plain_gates == recomputed_gates
        for a, b in zip(plain, recomputed, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_checkpointing_the_whole_net_changes_no_gradient():
    found = []
    for recompute in (False, True):
        model = resnet()
        apply(model, seed=2)
        steps = []
        for _ in range(6):
            model.zero_grad()
            x = X.clone().requires_grad_()
            output = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
            F.cross_entropy(output, Y).backward()
            steps.append([x.grad, *(None if p.grad is None else p.grad.clone() for p in model.parameters())])
        found.append(steps)
    for plain, recomputed in zip(*found, strict=True):
        for a, b in zip(plain, recomputed, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


# -- schedules -----------------------------------------------------------------------------------------------------


def test_the_110_layer_net_has_the_papers_54_probabilities():
    """p_l = 1 - (l/54)/2, in the order of the blocks; 40.25 blocks run on average."""
    model = build({"name": "resnet", "depth": 110, "widths": [2, 2, 4]}, input_shape=(1, 4, 4), classes=2)
    report = pliant.Stack(pliant.StochasticDepth()).apply(model, sample=torch.randn(2, 1, 4, 4)).report
    blocks = [f"layer{g}.{i}" for g in (1, 2, 3) for i in range(18)]
    assert [path for path, _ in gates(model)] == blocks == report.changed()
    chances = [forward.chances[0] for _, forward in gates(model)]
    assert chances == pytest.approx([1 - l / 54 / 2 for l in range(1, 55)], abs=1e-15)
    assert sum(chances) == pytest.approx((3 * 54 - 1) / 4, abs=1e-12)
    assert "40.25 of 54 branches run in an average training step" in str(report)


@pytest.mark.parametrize(
    ("settings", "chances"),
    [
        ({"p_last": 0.4}, [0.8, 0.6, 0.4]),
        ({"p_last": 0.4, "schedule": "timm"}, [1.0, 0.7, 0.4]),
        ({"p_last": 0.4, "schedule": "uniform"}, [0.4, 0.4, 0.4]),
        ({"schedule": [0.9, 0.3, 0.6]}, [0.9, 0.3, 0.6]),
    ],
)
def test_schedules(settings: dict[str, Any], chances: list[float]):
    model = resnet()
    apply(model, **settings)
    assert [forward.chances[0] for _, forward in gates(model)] == pytest.approx(chances, abs=1e-15)


def test_every_addition_of_a_transformer_block_has_its_own_gate():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.0)
    model = nn.Sequential(layer, copy.deepcopy(layer))
    x = torch.randn(2, 5, 8)
    pliant.Stack(pliant.StochasticDepth(p_last=0.6)).apply(model, sample=x)
    assert [forward.chances for _, forward in gates(model)] == [
        pytest.approx((0.9, 0.8)),
        pytest.approx((0.7, 0.6)),
    ]


@pytest.mark.parametrize(
    "settings",
    [{"p_last": -0.1}, {"p_last": 1.1}, {"scale": "both"}, {"schedule": "cosine"}, {"schedule": [0.5, 2.0, 0.5]}],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]):
    with pytest.raises((SettingError, ValueError)):
        apply(resnet(), **settings)


def test_a_schedule_of_another_length_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="lists 2 survival probabilities for 3 residual blocks"):
        apply(resnet(), schedule=[0.5, 0.5])


def test_a_net_without_blocks_is_refused_with_the_remedy():
    with pytest.raises(NoMatchError, match=r"looked for shortcut \+ branch\(x\).*pliant\.Residual\("):
        pliant.Stack(pliant.StochasticDepth()).apply(nn.Sequential(nn.Linear(3, 3)), sample=torch.zeros(2, 3))
