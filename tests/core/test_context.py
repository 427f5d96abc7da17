"""Batches of every form, and gradients as the optimizer's scaler left them."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import nn

from pliant.core.context import Context, Sample, arguments, joined, modes_kept, run
from pliant.core.errors import TraceError

A, B = torch.zeros(2, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (A, ((A,), {})),
        ((A, B), ((A,), {})),
        ([A, B], ((A,), {})),
        ({"x": A}, ((), {"x": A})),
        (Sample(A), ((A,), {})),
        (Sample((A, B)), ((A, B), {})),
        (Sample({"x": A, "y": B}), ((), {"x": A, "y": B})),
        (UserDict({"x": A}), ((), {"x": A})),
        (Sample(UserDict({"x": A})), ((), {"x": A})),
    ],
)
def test_batches_of_every_form_become_a_call(batch: object, expected: tuple):
    args, kwargs = arguments(batch)
    assert all(a is b for a, b in zip(args, expected[0], strict=True))
    assert kwargs.keys() == expected[1].keys() and all(kwargs[k] is v for k, v in expected[1].items())


def test_run_calls_the_model_with_the_input_of_a_pair():
    assert run(nn.Flatten(), (A, "target")).shape == (2, 3)
    assert run(nn.Flatten(), {"input": B}).shape == (4, 3)


def test_joined_batches_are_the_concatenated_inputs():
    assert torch.equal(joined([(A, 1), (B, 2)]), torch.cat([A, B]))
    assert torch.equal(joined([A, B]), torch.cat([A, B]))
    assert joined([]) is None and joined(iter([(A, 1)]))[0] is A
    first = {"x": A}
    assert joined([first, {"x": B}]) is first


def test_calibration_falls_back_to_the_sample_as_a_whole_call():
    assert [id(batch) for batch in Context(batches=[A, B], sample=A).calibration()] == [id(A), id(B)]
    (given,) = Context(sample=(A, B)).calibration()
    assert isinstance(given, Sample) and given.value[0] is A and given.value[1] is B
    assert list(Context().calibration()) == []


def test_a_missing_sample_names_the_remedy():
    with pytest.raises(TraceError, match=r"pass sample=x, as you call the model"):
        Context().sample_call()


def test_gradients_are_unscaled_when_the_optimizer_steps_on_scaled_ones():
    p = nn.Parameter(torch.ones(2))
    assert Context().gradient(p) is None
    p.grad = torch.tensor([8.0, 4.0])
    optimizer = torch.optim.SGD([p], lr=1.0)
    ctx = Context(optimizer=optimizer)
    assert ctx.gradient(p) is p.grad
    optimizer.grad_scale = torch.tensor(4.0)  # what GradScaler sets around the step of a fused optimizer
    assert torch.equal(ctx.gradient(p), torch.tensor([2.0, 1.0]))


def test_the_rank_is_0_without_processes():
    assert Context().rank == 0


def test_run_brings_a_batch_to_the_model():
    far = nn.Linear(2, 3, device="meta")
    for batch in (torch.ones(4, 2), (torch.ones(4, 2), torch.ones(4)), {"input": torch.ones(4, 2)}):
        assert run(far, batch).device.type == "meta"


def test_modes_are_given_back_one_by_one():
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    net[1].eval()
    with pytest.raises(KeyError), modes_kept(net):
        net.eval()
        raise KeyError
    assert net.training and net[0].training and not net[1].training
