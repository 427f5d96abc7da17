"""A model that does not fit its data is told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pliant.core.errors import InputError
from pliant.train import Task, run


def too_wide(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(1 + torch.Size(input_shape).numel(), classes))


def too_few_scores(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), classes - 1))


def test_an_input_that_the_model_cannot_take(make_task: Callable[..., Task]) -> None:
    with pytest.raises(InputError, match=r"cannot take this data: two examples, shape .* input_shape="):
        run(make_task(model=too_wide))


def test_an_output_of_another_shape(make_task: Callable[..., Task]) -> None:
    with pytest.raises(InputError, match=r"expected one score for each of the"):
        run(make_task(model=too_few_scores))
