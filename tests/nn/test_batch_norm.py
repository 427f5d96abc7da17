"""The batch norm layers: torch's results and state dict, the guard, freezing, errors."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import pliant.nn
from pliant.core.errors import InputError
from pliant.nn import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d

PAIRS = [
    (BatchNorm1d, nn.BatchNorm1d, (6, 3)),
    (BatchNorm1d, nn.BatchNorm1d, (4, 3, 5)),
    (BatchNorm2d, nn.BatchNorm2d, (4, 3, 4, 5)),
    (BatchNorm3d, nn.BatchNorm3d, (2, 3, 2, 3, 4)),
    (BatchNorm, nn.BatchNorm1d, (6, 3)),
    (BatchNorm, nn.BatchNorm2d, (4, 3, 4, 5)),
    (BatchNorm, nn.BatchNorm3d, (2, 3, 2, 3, 4)),
]
OPTIONS = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 1e-2, "momentum": 0.5}]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(layer: nn.Module, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Everything a layer shows in three training steps and one evaluation."""
    seen = []
    for step in range(3):
        x = draw(*shape, seed=step).requires_grad_()
        y = layer(x)
        y.square().mul(draw(*shape, seed=9)).sum().backward()
        seen += [y.detach(), x.grad]
    seen += [parameter.grad for parameter in layer.parameters()]
    seen += [layer.eval()(draw(*shape, seed=5)).detach(), *layer.state_dict().values()]
    return seen


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_as_torch_bit_for_bit(ours, theirs, shape, options):
    left, right = ours(3, **options), theirs(3, **options)
    assert isinstance(left, nn.modules.batchnorm._BatchNorm)
    for a, b in zip(run(left, shape), run(right, shape), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
def test_state_dict_goes_both_ways(ours, theirs, shape):
    left, right = ours(3), theirs(3)
    left(draw(*shape, seed=1))
    right(draw(*shape, seed=2))
    assert list(left.state_dict()) == list(right.state_dict())
    for source, target in ((right, ours(3)), (left, theirs(3))):
        target.load_state_dict(source.state_dict(), strict=True)
        x = draw(*shape, seed=3)
        assert torch.equal(source.eval()(x), target.eval()(x))


def test_an_old_state_dict_without_num_batches_tracked_loads():
    state = nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    assert BatchNorm2d(3).load_state_dict(state).missing_keys == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_bad_batch_leaves_the_running_statistics_and_is_told_of_once(bad, momentum):
    layer = BatchNorm2d(3, momentum=momentum)
    layer(draw(4, 3, 2, 2))
    before = copy.deepcopy(layer.state_dict())
    x = draw(4, 3, 2, 2, seed=1)
    x[2, 1, 0, 0] = bad
    with pytest.warns(RuntimeWarning, match=r"BatchNorm2d\(3\) saw a batch .*`skipped_batches`"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    assert layer.skipped_batches.item() == 2
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    layer(draw(4, 3, 2, 2, seed=2))
    assert layer.num_batches_tracked.item() == 2 and layer.skipped_batches.item() == 2


def test_the_backward_of_a_bad_batch_runs():
    # Gradient scaling relies on it: it looks at the gradients to see that they are not finite.
    layer = BatchNorm1d(3)
    good, bad = draw(4, 3).requires_grad_(), torch.full((4, 3), math.nan, requires_grad=True)
    y = layer(good)
    with pytest.warns(RuntimeWarning, match="not finite"):
        z = layer(bad)
    (y.sum() + z.sum()).backward()
    assert torch.isnan(layer.weight.grad).all() and torch.isfinite(good.grad).all()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_way_without_waiting_for_the_device_computes_the_same(momentum):
    # A Parameter as input takes it on the CPU too.
    host, device = BatchNorm1d(3, momentum=momentum), BatchNorm1d(3, momentum=momentum)
    for step in range(4):
        x = draw(5, 3, seed=step)
        if step == 2:
            x[0, 0] = math.inf
            with pytest.warns(RuntimeWarning):
                left = host(x)
        else:
            left = host(x)
        right = device(nn.Parameter(x))
        torch.testing.assert_close(left, right, equal_nan=True)
        for name, value in host.state_dict().items():
            torch.testing.assert_close(device.state_dict()[name], value)
    assert host.skipped_batches.item() == device.skipped_batches.item() == 1
    with pytest.warns(RuntimeWarning, match="not finite"):
        device.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device.train()


def test_cumulative_mode_is_the_plain_mean():
    layer = BatchNorm1d(3, momentum=None)
    batches = [draw(4, 3, seed=seed) for seed in range(5)]
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([b.var(0) for b in batches]).mean(0))


@pytest.mark.parametrize("how", ["constructor", "method"])
def test_frozen_uses_and_keeps_running_statistics_through_train(how):
    layer = BatchNorm2d(3, frozen=True) if how == "constructor" else BatchNorm2d(3).freeze()
    layer.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    before = copy.deepcopy(layer.state_dict())
    x = draw(4, 3, 2, 2)
    expected = layer.eval()(x)
    holder = nn.Sequential(layer).train()
    assert layer.training and torch.equal(holder(x), expected)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert layer(draw(1, 3, 1, 1)).shape == (1, 3, 1, 1)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    holder(x).sum().backward()
    assert layer.weight.grad is not None and "frozen=True" in repr(layer)
    assert not torch.equal(layer.unfreeze()(x), expected)
    assert layer.num_batches_tracked.item() == 1


def test_frozen_without_running_statistics_is_refused():
    with pytest.raises(InputError, match="track_running_stats=True"):
        BatchNorm2d(3, track_running_stats=False, frozen=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_keeps_float32_statistics(dtype):
    layer = BatchNorm2d(2, momentum=1.0)
    x = (200 + draw(64, 2, 8, 8)).to(dtype)
    assert layer(x).dtype == dtype
    exact = x.double()
    assert layer.running_mean.dtype == torch.float32
    torch.testing.assert_close(layer.running_mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var.double(), exact.var((0, 2, 3)), rtol=1e-4, atol=0)


def test_whole_layer_in_half_precision_is_guarded_too():
    layer = BatchNorm1d(3).bfloat16()
    layer(draw(8, 3).bfloat16())
    kept = layer.running_var.clone()
    with pytest.warns(RuntimeWarning):
        layer(torch.full((8, 3), math.nan, dtype=torch.bfloat16))
    assert torch.equal(layer.running_var, kept) and layer.num_batches_tracked == 1


def test_a_changed_dtype_or_size_after_a_forward():
    layer = BatchNorm1d(3)
    layer(draw(4, 3))
    layer.double()(draw(4, 3).double())
    with pytest.warns(RuntimeWarning):
        layer(torch.full((4, 3), math.nan).double())
    assert layer.num_batches_tracked == 2 and torch.isfinite(layer.running_mean).all()
    layer.num_features = 4
    layer.running_mean, layer.running_var = torch.zeros(4).double(), torch.ones(4).double()
    layer.weight, layer.bias = nn.Parameter(torch.ones(4).double()), nn.Parameter(torch.zeros(4).double())
    assert layer(draw(4, 4).double()).shape == (4, 4)


def test_empty_batch_gives_empty_output_and_leaves_everything():
    layer = BatchNorm2d(3)
    before = copy.deepcopy(layer.state_dict())
    assert layer(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert layer.skipped_batches.item() == 0
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    assert layer.eval()(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (BatchNorm1d(3), torch.zeros(1, 3), r"BatchNorm1d: expected more than 1 value per channel.*drop_last"),
        (BatchNorm2d(3), torch.zeros(1, 3, 1, 1), r"more than 1 value per channel"),
        (BatchNorm2d(3), torch.zeros(2, 4, 2, 2), r"BatchNorm2d expects 3 channels in axis 1, found 4"),
        (BatchNorm2d(3).eval(), torch.zeros(2, 4, 2, 2), r"BatchNorm2d expects 3 channels in axis 1, found 4"),
        (BatchNorm2d(3), torch.zeros(2, 3, 2, 2, dtype=torch.uint8), r"uint8.*x\.float\(\)"),
        (BatchNorm(3), torch.zeros(3), r"no batch axis"),
        (BatchNorm1d(3, track_running_stats=False).eval(), torch.zeros(1, 3), r"more than 1 value per channel"),
    ],
)
def test_errors_name_cause_and_remedy(layer, x, message):
    with pytest.raises(InputError, match=message):
        layer(x)


def test_a_wrong_rank_raises_as_in_torch():
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNorm2d(3)(torch.zeros(2, 3))


def test_one_value_per_channel_is_fine_in_evaluation():
    assert BatchNorm1d(3).eval()(torch.zeros(1, 3)).shape == (1, 3)


def test_building_and_switching_without_real_storage():
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert BatchNorm2d(3, device="meta").train().eval()(torch.empty(2, 3, 4, 4, device="meta")).is_meta
    with FakeTensorMode():
        layer = BatchNorm2d(3)
        assert layer(torch.empty(2, 3, 4, 4)).shape == (2, 3, 4, 4)
        layer.eval()


def test_functional_call_updates_the_buffers_given():
    layer = BatchNorm1d(3)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    torch.func.functional_call(layer, state, draw(4, 3))
    assert state["num_batches_tracked"].item() == 1 and layer.num_batches_tracked.item() == 0
    assert not torch.equal(state["running_mean"], layer.running_mean)


def test_torch_can_convert_it_to_synchronised():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(BatchNorm2d(3)))
    assert isinstance(converted[0], nn.SyncBatchNorm)


def test_public_names():
    for name in pliant.nn.__all__:
        assert getattr(pliant.nn, name).__doc__
