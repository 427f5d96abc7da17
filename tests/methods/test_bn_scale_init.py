"""Batch-norm scale initialisation (Davis & Frank 2022): memberships, rates under schedules, and the scaling laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.core.errors import NoMatchError, SettingError
from pliant.models import build

SCHEDULERS: dict[str, Any] = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20),
    "step": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [5, 9], gamma=0.1),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "warm_up": lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.01, total_iters=8),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, max_lr=[10 * g["lr"] for g in o.param_groups], total_steps=20, cycle_momentum=False
    ),
}


class Net(nn.Module):
    """One of everything that the authors' rule by shape would confuse with a batch norm's scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.depthwise, self.bn2 = nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4, affine=False)
        self.ln, self.gn = nn.LayerNorm(4), nn.GroupNorm(2, 4)
        self.rnn, self.attention = nn.GRU(4, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)
        self.bn3, self.out = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn(self.conv(x)))
        h = self.gn(self.bn2(self.depthwise(h))).flatten(2).transpose(1, 2)
        h = self.rnn(self.ln(h))[0]
        h = self.attention(h, h, h, need_weights=False)[0]
        return self.out(F.relu(self.bn3(h.mean(1))))


def apply(model: nn.Module, **settings: Any) -> pliant.Applied:
    return pliant.Stack(pliant.BNScaleInit(**settings)).apply(model)


def test_every_scale_starts_at_gamma0_and_every_shift_at_0():
    torch.manual_seed(0)
    model = build("resnet20", input_shape=(3, 8, 8), classes=4)
    nn.init.constant_(model.bn1.bias, 0.5)
    others = {k: v.clone() for k, v in model.state_dict().items() if "bn" not in k}
    report = apply(model, gamma0=0.2).report
    norms = {path: m for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert report.changed() == list(norms) and len(norms) == 19
    for norm in norms.values():
        assert torch.equal(norm.weight, torch.full_like(norm.weight, 0.2)) and not norm.bias.any()
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in others.items())


def test_the_slow_group_is_exactly_the_scales_by_identity():
    model = Net()
    applied = apply(model, slowdown=50.0)
    groups = applied.groups(lr=0.1, weight_decay=0.01)
    (slow,) = [group for group in groups if group["lr_scale"] != 1.0]
    assert set(slow["params"]) == {model.bn.weight, model.bn3.weight}
    assert slow["lr"] == 0.1 / 50 and slow["weight_decay"] == 0.0
    assert all(group["lr"] == 0.1 for group in groups if group is not slow)


def test_decay_acts_on_weights_alone():
    model = Net()
    groups = apply(model).groups(lr=0.1, weight_decay=0.01)
    decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
    m = model
    weights = {m.conv.weight, m.depthwise.weight, m.out.weight, m.rnn.weight_ih_l0, m.rnn.weight_hh_l0}
    assert decayed == weights | {m.attention.in_proj_weight, m.attention.out_proj.weight}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.01}


@pytest.mark.parametrize("name", list(SCHEDULERS))
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_ratio_of_rates_lasts_through_schedules(name: str, kind: Any):
    model = Net()
    applied = apply(model, slowdown=100.0)
    optimizer = applied.attach(kind(applied.groups(lr=0.1, weight_decay=0.01)))
    schedule = SCHEDULERS[name](optimizer)
    rates = []
    for _ in range(18):
        slow = [g["lr"] for g in optimizer.param_groups if g["lr_scale"] != 1.0]
        plain = {g["lr"] for g in optimizer.param_groups if g["lr_scale"] == 1.0}
        (rate,) = plain
        assert slow == [pytest.approx(rate / 100, rel=1e-12)]
        rates.append(rate)
        optimizer.step()
        schedule.step()
    assert len(set(rates)) > 2


def test_one_step_moves_scales_a_hundredth():
    torch.manual_seed(0)
    model = build("resnet20", input_shape=(3, 8, 8), classes=4)
    applied = apply(model)
    optimizer = applied.attach(torch.optim.SGD(applied.groups(lr=0.1, weight_decay=0.5)))
    F.cross_entropy(model(torch.randn(6, 3, 8, 8)), torch.arange(6) % 4).backward()
    before = (model.bn1.weight.detach().clone(), model.bn1.bias.detach().clone(), model.fc.weight.detach().clone())
    optimizer.step()
    torch.testing.assert_close(model.bn1.weight.detach(), before[0] - 0.001 * model.bn1.weight.grad)
    torch.testing.assert_close(model.bn1.bias.detach(), before[1] - 0.1 * model.bn1.bias.grad)
    torch.testing.assert_close(model.fc.weight.detach(), before[2] - 0.1 * (model.fc.weight.grad + 0.5 * before[2]))


# -- scaling laws --------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """conv-BN-ReLU, conv-BN-ReLU, global average pooling, linear: the plain chain of the derivation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-12)
        self.conv2, self.bn2 = nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5, eps=1e-12)
        self.fc = nn.Linear(5, 3)

    def features(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def chain() -> Chain:
    torch.manual_seed(0)
    return Chain().double()


X = torch.randn(8, 2, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
OUTPUT_GRADIENT = torch.randn(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("a", [0.5, 0.1])
def test_small_scales_shrink_features_and_logits_and_gradients_as_derived(a: float):
    """With all gamma scaled by a: logits - bias by a; for one output gradient dW of convs and classifier by a, dgamma
    and dbeta not at all."""
    one, small = chain(), chain()
    apply(small, gamma0=a)
    for model in (one, small):
        model(X).backward(OUTPUT_GRADIENT)
    # eps 1e-12 against variances of order a^2: the laws hold to about 1e-12 / a^2.
    close = {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(small.features(X), a * one.features(X), **close)
    torch.testing.assert_close(small(X) - small.fc.bias, a * (one(X) - one.fc.bias), **close)
    for layer in ("conv1", "conv2", "fc"):
        torch.testing.assert_close(
            getattr(small, layer).weight.grad, a * getattr(one, layer).weight.grad, **close, msg=layer
        )
    for norm in ("bn1", "bn2"):
        for name in ("weight", "bias"):
            torch.testing.assert_close(
                getattr(getattr(small, norm), name).grad, getattr(getattr(one, norm), name).grad, **close
            )
    torch.testing.assert_close(small.fc.bias.grad, one.fc.bias.grad, **close)


def test_inner_norms_are_invariant_to_their_common_scale():
    """sum(gamma dgamma) + sum(beta dbeta) = 0 where another conv and batch norm follow."""
    model = chain()
    apply(model, gamma0=0.3)
    with torch.no_grad():
        model.bn1.weight.add_(torch.linspace(-0.2, 0.4, 4))
        model.bn1.bias.add_(torch.linspace(-0.3, 0.5, 4))
    model(X).backward(OUTPUT_GRADIENT)
    parts = [model.bn1.weight.detach() * model.bn1.weight.grad, model.bn1.bias.detach() * model.bn1.bias.grad]
    assert abs(float(sum(parts).sum())) < 1e-8 * float(sum(p.abs().sum() for p in parts))
    last = model.bn2.weight.detach() * model.bn2.weight.grad + model.bn2.bias.detach() * model.bn2.bias.grad
    assert abs(float(last.sum())) > 1e-3


def test_the_loss_starts_at_ln_classes():
    torch.manual_seed(0)
    model = build({"name": "resnet", "depth": 8, "widths": [8, 8, 16]}, input_shape=(1, 8, 8), classes=10)
    apply(model)
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = float(F.cross_entropy(model(x), torch.arange(40) % 10).detach())
    assert abs(loss - float(np.log(10))) < 0.05


# -- what it leaves alone ------------------------------------------------------------------------------------------


def test_zero_init_residual_branches_stay_zero():
    model = build("resnet20", input_shape=(3, 8, 8), classes=4)
    for name, module in model.named_modules():
        if name.endswith("bn2"):
            nn.init.zeros_(module.weight)
    report = apply(model).report
    assert not model.layer1[0].bn2.weight.any()
    assert torch.equal(model.layer1[0].bn1.weight, torch.full((16,), 0.1))
    assert "layer1.0.bn2" not in report.changed()
    assert "left alone: its scale starts at 0 on purpose (zero-init residual branch)" in str(report)


def test_norms_without_a_scale_are_passed_over():
    report = apply(Net()).report
    assert report.changed() == ["bn", "bn3"] and "no scale: built with affine=False" in str(report)


def test_trained_scales_are_refused_by_name_unless_forced():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.add_(0.25)
    with pytest.raises(SettingError, match=r"batch norm '1' has trained scales \(mean 1\.25, not 1\).*force=True"):
        apply(model)
    assert torch.equal(model[1].weight, torch.full((4,), 1.25))
    apply(model, force=True)
    assert torch.equal(model[1].weight, torch.full((4,), 0.1))


def test_a_net_without_batch_norms_is_refused_with_the_remedy():
    with pytest.raises(NoMatchError, match=r"put pliant\.BatchNorm\(\) into the stack"):
        apply(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)))


def test_it_reaches_the_norms_of_its_own_stack():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    stack = pliant.Stack(pliant.BNScaleInit(gamma0=0.5), pliant.BatchNorm())
    applied = stack.apply(model, sample=torch.randn(5, 3))
    norm = model[0].norm
    assert torch.equal(norm.weight, torch.full((4,), 0.5))
    (slow,) = [group for group in applied.groups(lr=1.0) if group["lr_scale"] != 1.0]
    assert set(slow["params"]) == {norm.weight}


def test_neutral_settings_are_the_plain_net_bit_for_bit():
    one, other = chain(), chain()
    apply(other, gamma0=1.0, slowdown=1.0)
    assert torch.equal(one(X), other(X))
    assert {group["lr_scale"] for group in pliant.bind(other).groups(lr=0.1)} == {1.0}


@pytest.mark.parametrize("settings", [{"gamma0": 0.0}, {"gamma0": -0.1}, {"gamma0": 1.1}, {"slowdown": 0.5}])
def test_impossible_settings_are_refused(settings: dict[str, float]):
    with pytest.raises(SettingError, match=r"\(the paper: "):
        pliant.BNScaleInit(**settings)


def test_the_spread_of_rectified_normal_numbers():
    """sigma_act = std(max(0, z)), z ~ N(0, 1), by the trapezoid rule on [-12, 12]."""
    z = np.linspace(-12, 12, 2_000_001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    r = np.maximum(z, 0)
    mean, square = np.trapezoid(r * density, z), np.trapezoid(r**2 * density, z)
    assert abs(pliant.functional.SIGMA_ACT - np.sqrt(square - mean**2)) < 1e-9
    assert round(pliant.functional.SIGMA_ACT, 4) == 0.5838
